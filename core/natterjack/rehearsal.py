"""A rehearsal: what provisioning would do, and nothing is done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from natterjack.bus import Bus, Message, Stored
from natterjack.errors import NotProvisionedError

CHANGES: Final = (
    "STREAM.CREATE.",
    "STREAM.UPDATE.",
    "STREAM.DELETE.",
    "STREAM.PURGE.",
    "CONSUMER.DURABLE.",
    "CONSUMER.DELETE.",
)


class Rehearsal:
    """A bus that reads, and changes nothing; what would have been made first is empty.

    Args:
        bus: The bus.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def api(self, name: str, body: Mapping[str, Any] | None = None, *, timeout: float = 10.0) -> dict[str, Any]:
        """Call the JetStream API, but for what would change something; `timeout` is in seconds."""
        return {} if name.startswith(CHANGES) else await self._bus.api(name, body, timeout=timeout)

    async def store(self, subject: str, data: bytes, **options: Any) -> Stored:
        """Store nothing."""
        del subject, data, options
        return Stored(0, duplicate=False)

    async def last(self, stream: str, subject: str) -> Message | None:
        """Return the newest message on a subject, or None, also where there is no stream yet."""
        return await self._bus.last(stream, subject) if await self._has(stream) else None

    async def read(self, stream: str, pattern: str) -> AsyncIterator[Message]:
        """Yield the stored messages that match a pattern; none, where there is no stream yet."""
        if await self._has(stream):
            async for message in self._bus.read(stream, pattern):
                yield message

    async def _has(self, stream: str) -> bool:
        try:
            await self._bus.api(f"STREAM.INFO.{stream}")  # answers at once, also where there is none
        except NotProvisionedError:
            return False
        return True

    async def consumers(self, stream: str) -> list[str]:
        """Return the names of a stream's consumers; none, where there is no stream yet."""
        try:
            return await self._bus.consumers(stream)
        except NotProvisionedError:
            return []
