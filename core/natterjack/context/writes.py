"""Writes to the shared context: each ends with a revision or an error, and of an error somebody hears."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import Any

from natterjack.bus import STORE_BUDGET
from natterjack.context.state import Version


class Write:
    """A write on its way. Await it for its revision; cancelling whoever awaits does not cancel the write.

    Attributes:
        key: What is written.
        version: Its value; it has its revision once the broker has it.
        expected: Revision that the key must have, if any.
        deadline: Until when it is tried, in seconds on `time.monotonic`.
        ended: Whether it is durable, or has failed.
        claimed: Whether somebody awaits it, and so hears of its failure.
        kept_in: Where it is kept until it is durable, or somebody has heard why it is not.
    """

    __slots__ = ("_error", "_waiting", "claimed", "deadline", "ended", "expected", "kept_in", "key", "version")

    def __init__(self, key: str, version: Version, expected: int | None = None) -> None:
        self.key, self.version, self.expected = key, version, expected
        self.deadline = time.monotonic() + STORE_BUDGET
        self.ended = self.claimed = False
        self.kept_in: list[Writes] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._error: Exception | None = None

    def __await__(self) -> Generator[Any, None, int]:
        self.claimed = True
        yield from self.until_ended().__await__()
        if self._error is not None:
            self.forget()
            raise self._error
        return self.version.revision

    async def until_ended(self) -> None:
        """Return once it has ended, well or not; this is not to hear of a failure."""
        if not self.ended:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting

    def end(self, error: Exception | None = None) -> None:
        """Tell those who wait that it is durable, or why it is not."""
        self.ended, self._error = True, error
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        if error is None or self.claimed:
            self.forget()

    def forget(self) -> None:
        """Be kept no longer."""
        for writes in self.kept_in:
            writes.open.pop(self, None)


class Writes:
    """Writes that are under way, or have failed and nobody awaited them.

    Attributes:
        open: These writes, in their order.
    """

    def __init__(self) -> None:
        self.open: dict[Write, None] = {}

    def add(self, write: Write) -> None:
        """Keep a write until it is settled."""
        self.open[write] = None
        write.kept_in.append(self)

    async def settle(self) -> None:
        """Return once all are durable, or raise the first failure that nobody awaited."""
        while not all(write.ended for write in self.open):
            await self.quiet()
        failed = list(self.open)
        for write in failed:
            write.forget()
        for write in failed:
            await write

    async def quiet(self) -> None:
        """Return once all that is under way now has ended, well or not."""
        for write in list(self.open):
            await write.until_ended()
