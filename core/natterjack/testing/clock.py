"""A clock that a test moves."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from natterjack.clock import Clock
from natterjack.testing.waiting import until

PATIENCE = 10.0
"""Real seconds that something may take to fall asleep; then the test fails."""


class ScriptedClock(Clock):
    """A clock that stands still until the test moves it: what sleeps for an hour is tested in a millisecond.

    Example::

        clock = ScriptedClock()
        runtime = AgentRuntime(own_server.url, clock=clock)
        …
        await clock.advance(3600)

    Args:
        start: Unix seconds at which it stands.
    """

    real: ClassVar[bool] = False

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._asleep: dict[asyncio.Task[Any] | None, tuple[float, asyncio.Future[None]]] = {}

    def now(self) -> float:
        """Return the time it shows, Unix seconds."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Return once the test has moved the clock by so many seconds."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        task, woken = asyncio.current_task(), asyncio.get_running_loop().create_future()
        self._asleep[task] = (self._now + seconds, woken)
        try:
            await woken
        finally:
            self._asleep.pop(task, None)

    async def advance(self, seconds: float) -> None:
        """Move the clock, and wake who is due in the order of time. Returns once all of them sleep again, or ended.

        Raises:
            AssertionError: Nobody sleeps on this clock, or who was woken did not go to sleep again.
        """
        await until(lambda: self._asleep, PATIENCE, "somebody sleeps on this clock; does it await `ctx.clock.sleep`?")
        end = self._now + seconds
        while (due := min(self._asleep.items(), key=lambda each: each[1][0], default=None)) and due[1][0] <= end:
            task, (self._now, woken) = due
            del self._asleep[task]
            if not woken.done():  # it may have been cancelled
                woken.set_result(None)
            await self._settled(task)
        self._now = end

    async def _settled(self, task: asyncio.Task[Any] | None) -> None:
        def settled() -> bool:
            return task is None or task.done() or task in self._asleep

        await until(settled, PATIENCE, f"{task} sleeps again after the clock woke it")
