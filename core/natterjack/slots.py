"""Slots: how much an agent handles at once, over all its triggers."""

from __future__ import annotations

import asyncio


class Slots:
    """Bounds what an agent handles at once, over all its triggers: so many, or one alone.

    What was running when the process died runs alone the next time: if it kills the process again, it takes
    nothing with it that would then be called dead, too.
    """

    def __init__(self, count: int) -> None:
        self._count, self._free, self._turn = count, asyncio.Semaphore(count), asyncio.Lock()
        self.busy = 0
        """Slots that are taken now."""

    async def take(self, *, alone: bool) -> int:
        """Wait for a slot, or for all of them, and return how many to `give` back."""
        if not alone:
            await self._free.acquire()
            self.busy += 1
            return 1
        held = 0
        try:
            async with self._turn:  # two that want all would wait for each other
                while held < self._count:
                    await self._free.acquire()
                    self.busy += 1
                    held += 1
        except BaseException:
            self.give(held)
            raise
        return held

    def give(self, held: int) -> None:
        """Free slots."""
        self.busy -= held
        for _ in range(held):
            self._free.release()
