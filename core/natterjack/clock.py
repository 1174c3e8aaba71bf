"""The time, as triggers see it: a seam, so that a test need not wait for it."""

from __future__ import annotations

import asyncio
import time


class Clock:
    """The real time. A test takes `natterjack.testing.ScriptedClock` instead, which goes on only when it is told."""

    def now(self) -> float:
        """Return the time in Unix seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        await asyncio.sleep(seconds)
