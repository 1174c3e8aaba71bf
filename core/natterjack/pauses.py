"""Pauses: what a run waits for without holding a process.

A run leaves its process when all it does is wait: no step of it is under way. Its handler is then cancelled where it
waits, and repeated from its beginning when the time has come.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from natterjack.branches import calling
from natterjack.calls import Calls
from natterjack.clock import Clock
from natterjack.components import Entry
from natterjack.coroutines import first_of
from natterjack.errors import ConfigError, WaitTimeoutError
from natterjack.journal import SLEEP, WAITED, WAITING
from natterjack.messages import Event
from natterjack.tickets import Ticket, Wait
from natterjack.waits import Waits, journaled, kept

SHORT: Final = 1.0
"""Seconds that are waited out in the process: to leave it and to come back costs more."""
GRACE: Final = 0.5
"""Seconds in which the other tasks of a handler may begin with a step, before the run leaves."""
KEPT: Final = 28 * 86_400.0
"""Seconds from its beginning in which a run must have come to its end: journals are kept for 30 days."""


class Left(Exception):
    """A handler was cancelled: its run goes on when a ticket is due, or (without one) was itself cancelled."""

    def __init__(self, ticket: Ticket | None) -> None:
        self.ticket = ticket
        super().__init__()


class _Pause(NamedTuple):
    due: float
    wait: Wait | None
    task: asyncio.Task[Any] | None


class Pauses:
    """The sleeps and waits of one run.

    Args:
        calls: Its calls.
        clock: The time.
        waits: What it may wait for.
        sequence: Of the ticket by which it came, 0: by none; None: it may not leave its process, because somebody waits
            for it.
        since: Sequence in EVENTS of what it handles; 0: it is none of these.
        interrupt: Cancels its handler.

    Attributes:
        ticket: By which it goes on, once it leaves.
    """

    def __init__(
        self,
        calls: Calls,
        clock: Clock,
        waits: Waits,
        sequence: int | None,
        since: int,
        interrupt: Callable[[], None],
    ) -> None:
        self._calls, self._clock, self._waits, self._interrupt = calls, clock, waits, interrupt
        self._sequence, self._since = sequence, since
        self._pauses: dict[str, _Pause] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._active = 0
        self.ticket: Ticket | None = None
        self._leaves = clock.real and sequence is not None
        self._last: dict[str, int] = {}  # sequences of the last event of each type

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Take a position for a sleep, at once; awaiting what is returned sleeps. See `RunContext.sleep`."""
        if not 0 <= seconds < math.inf:
            msg = f"a run cannot sleep for {seconds!r} seconds; give a number that is not negative"
            raise ConfigError(msg)
        position, entry = self._calls.call(SLEEP, "")
        return self._sleep(position, seconds if entry is None else None, entry.data["until"] if entry else 0.0)

    async def _sleep(self, position: str, seconds: float | None, until: float) -> None:
        if seconds is not None:
            until = self._clock.now() + seconds
            await self._calls.begin()
            self.check_kept(until)
            await self._calls.record(SLEEP, {"position": position, "until": until})
        await self.pause(position, until)

    def check_kept(self, until: float) -> None:
        """Raise `ConfigError` for a moment at which the run's journal may be gone."""
        if until - self._calls.began > KEPT:
            msg = (
                f"run {self._calls.run} would wait for longer than {KEPT / 86_400:g} days after it began, and "
                "journals are kept for 30: let an event begin a new run then"
            )
            raise ConfigError(msg)

    def check(self, type: str, where: str | None = None) -> None:
        """Raise unless the run may wait for this, here and now; see `RunContext.wait_for`."""
        self._waits.check(type, where)
        self._calls.check(f"wait for {type!r}")

    def wait_for(
        self, type: str, where: str | None, timeout: float | None, after: int | None
    ) -> Coroutine[Any, Any, Event]:
        """Take a position for a wait, at once; awaiting what is returned waits. See `RunContext.wait_for`."""
        self._waits.check(type, where)
        if timeout is not None and not 0 <= timeout < math.inf:
            msg = f"a run cannot wait for {timeout!r} seconds; give a number that is not negative, or None"
            raise ConfigError(msg)
        position, entry = self._calls.call(WAITING, type)
        return self._wait_for(position, entry, Wait(type, where or "", -1 if after is None else after), timeout)

    async def _wait_for(self, position: str, entry: Entry | None, wait: Wait, timeout: float | None) -> Event:
        if position not in self._calls.waited:
            if entry is None:
                wait, until = await self._begin_wait(position, wait, timeout)
            else:
                wait, until = Wait(wait.type, entry.data["where"], entry.data["after"]), entry.data["until"]
            self._calls.waited[position] = await self._await(position, wait, until)
        found = self._calls.waited[position]
        if found is None:
            raise WaitTimeoutError(self._calls.run, wait.type)
        self._last[wait.type] = max(self._last.get(wait.type, 0), found["sequence"])
        return kept(found)

    async def _begin_wait(self, position: str, wait: Wait, timeout: float | None) -> tuple[Wait, float]:
        await self._calls.begin()
        after = wait.after
        if after < 0:
            after = max(self._since or self._calls.emitted or await self._waits.last(), self._last.get(wait.type, 0))
        until = self._calls.began + KEPT if timeout is None else self._clock.now() + timeout
        self.check_kept(until)
        data = {"position": position, "name": wait.type, "where": wait.where, "after": after, "until": until}
        await self._calls.record(WAITING, data)
        return wait._replace(after=after), until

    async def _await(self, position: str, wait: Wait, until: float) -> dict[str, Any] | None:
        """Return the event that is waited for, journaled, or None once it is too late."""
        while until - self._clock.now() > SHORT and self._leaves:
            with self._doing():
                event, after = await self._waits.find(wait)
                if event is not None:
                    return await self._journal(position, event)
            wait = wait._replace(after=after)
            await self.pause(position, until, wait)
        with self._doing():
            return await self._journal(position, await self._listen(wait, until))

    async def _journal(self, position: str, event: Event | None) -> dict[str, Any] | None:
        found = None if event is None else journaled(event)
        await self._calls.record(WAITED, {"position": position, "event": found})
        return found

    async def _listen(self, wait: Wait, until: float) -> Event | None:
        """Wait in this process."""
        async with self._waits.bell(wait.type) as bell:
            while True:
                bell.clear()
                event, after = await self._waits.find(wait)
                left = until - self._clock.now()
                if event is not None or left <= 0:
                    return event
                wait = wait._replace(after=after)
                await first_of(bell.wait(), self._clock.sleep(left))

    async def pause(self, position: str, due: float, wait: Wait | None = None) -> None:
        """Return at a moment, in Unix seconds; if that is far, in another process perhaps."""
        while (left := due - self._clock.now()) > 0:
            if left <= SHORT or not self._leaves:
                with self._doing():
                    await self._clock.sleep(left)
                continue
            self._pauses[position] = _Pause(due, wait, asyncio.current_task())
            try:
                if self._timer is None:
                    self._look()
                await self._clock.sleep(left)
            finally:
                del self._pauses[position]

    @contextmanager
    def _doing(self) -> Iterator[None]:
        """Stay in the process meanwhile."""
        self._active += 1
        try:
            with calling(self._calls.branching):
                yield
        finally:
            self._active -= 1

    def _look(self, made: int = -1) -> None:
        """Leave, if the run does nothing but wait: at once, or if its handler has several tasks, after a while.

        Args:
            made: Calls that had been made when this was looked at before.
        """
        self._timer = None
        if self.ticket is not None or not self._pauses:
            return
        idle = not self._calls.busy and not self._active
        if idle and (made == self._calls.made or all(self._calls.alone(each.task) for each in self._pauses.values())):
            self._leave()
        else:
            self._timer = asyncio.get_running_loop().call_later(GRACE, self._look, self._calls.made)

    def _leave(self) -> None:
        due = min(pause.due for pause in self._pauses.values())
        waits = tuple(pause.wait for pause in self._pauses.values() if pause.wait is not None)
        self.ticket = Ticket(self._calls.run, due, waits, self._sequence or 0)
        self._calls.close()
        self._interrupt()

    async def end(self) -> None:
        """Leave no timer behind, and no task that waits."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [pause.task for pause in self._pauses.values() if pause.task not in (None, asyncio.current_task())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
