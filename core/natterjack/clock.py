"""The time, as triggers see it: a seam, so that a test need not wait for it; and one timer for many deadlines."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import ClassVar


class Clock:
    """The real time. A test takes `natterjack.testing.ScriptedClock` instead, which goes on only when it is told.

    Attributes:
        real: Whether the broker has the same time; else a run that sleeps stays in its process.
    """

    real: ClassVar[bool] = True

    def now(self) -> float:
        """Return the time in Unix seconds."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        await asyncio.sleep(seconds)


class Alarm:
    """One timer for many moments: rings at the earliest. A timer for each would cost 2 µs a piece.

    Args:
        ring: Called then; it says by `by` when to ring again.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def by(self, moment: float) -> None:
        """Ring at this moment of the event loop's clock, or earlier if that was wanted before."""
        if moment >= self._due:
            return
        self.stop()
        self._due = moment
        self._timer = asyncio.get_running_loop().call_at(moment, self._now)

    def _now(self) -> None:
        self._due = math.inf
        self._ring()

    def stop(self) -> None:
        """Do not ring any more, until asked again."""
        self._due = math.inf
        if self._timer is not None:
            self._timer.cancel()
