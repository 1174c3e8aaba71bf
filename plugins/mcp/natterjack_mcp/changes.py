"""Changes of a server's lists and resources, told to all who listen, and to its other replicas."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared.subscriptions import ServerEvent

Relay = Callable[[ServerEvent], Awaitable[None]]


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
