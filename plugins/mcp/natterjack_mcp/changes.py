"""Changes of a server's lists and resources, told to all who listen, and to its other replicas."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Final

import orjson
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)

Relay = Callable[[ServerEvent], Awaitable[None]]
_EVENTS: Final = {
    each.__name__: each for each in (PromptsListChanged, ResourcesListChanged, ResourceUpdated, ToolsListChanged)
}


def packed(event: ServerEvent, by: str) -> bytes:
    """Return a change as one replica tells it the others."""
    return orjson.dumps({"by": by, "event": type(event).__name__, "of": asdict(event)})


def unpacked(data: bytes) -> tuple[ServerEvent, str] | None:
    """Return a change, and which replica tells it; None of a kind that is not known here.

    Raises:
        ValueError: It is no change.
    """
    try:
        told = orjson.loads(data)
        kind = _EVENTS.get(str(told.get("event")))
        return (kind(**told.get("of", {})), str(told.get("by"))) if kind else None
    except (TypeError, AttributeError) as error:
        msg = f"a replica tells what is no change: {error}"
        raise ValueError(msg) from error


class Changes(InMemorySubscriptionBus):
    """Tells changes to this process, and to each relay, which tells those of other replicas here (`tell`).

    Attributes:
        relays: Where changes of this process go, too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.relays: list[Relay] = []

    async def publish(self, event: ServerEvent) -> None:
        """Tell a change of this process."""
        await self.tell(event)
        for relay in self.relays:
            await relay(event)

    async def tell(self, event: ServerEvent) -> None:
        """Tell a change to who listens at this process."""
        await super().publish(event)
