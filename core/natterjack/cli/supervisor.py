"""The supervisor: one operating-system process per agent, restarted with backoff, their logs prefixed.

A process is a plain `natterjack agent run NAME`, which may as well be started by hand on another machine; no process
of ours is special. Each child ends when the supervisor does, even by kill -9: its standard input is a pipe from here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NoReturn

from natterjack.errors import StartError
from natterjack.server import Server
from natterjack.team import Team

log = logging.getLogger("natterjack.supervisor")

READY: Final = "ready"
"""Last word of the line that an agent's process prints once it listens."""
PARENT: Final = "NATTERJACK_PARENT_PIPE"
"""Environment variable that tells a process to end when its standard input does."""

FIRST_PAUSE: Final = 0.5
"""Seconds before a restart; twice as many for each further end within `CRASH_WINDOW`."""
CRASHES: Final = 5
CRASH_WINDOW: Final = 60.0
"""A process that ends so often within so many seconds is given up, and with it the whole team."""
WRONG: Final = 2
"""Exit code of a process that finds its team file or its code wrong: starting it again changes nothing."""
START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 15.0

Print = Callable[[str, str], None]
"""Shows one line of a process: its label, and the line."""


@dataclass(slots=True, eq=False)
class Child:
    """One agent's process.

    Attributes:
        agent: Its agent.
        label: Unique, for humans: `researcher`, or `researcher/2` for a second replica.
        ready: Set while it listens.
        started: Whether it ever listened.
        ends: When it ended by itself, monotonic seconds.
        last: The last lines it printed.
        process: It itself, or the last of it.
        task: Keeps it running.
        trial: Whether its first end is final: it has still to show that it comes up.
        leaving: Whether it was told to end.
    """

    agent: str
    label: str
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    started: bool = False
    ends: deque[float] = field(default_factory=lambda: deque(maxlen=CRASHES))
    last: deque[str] = field(default_factory=lambda: deque(maxlen=5))
    process: asyncio.subprocess.Process | None = None
    task: asyncio.Task[None] | None = None
    trial: bool = False
    leaving: bool = False

    @property
    def looping(self) -> bool:
        """Whether it ends again and again."""
        return len(self.ends) == CRASHES and self.ends[-1] - self.ends[0] < CRASH_WINDOW

    @property
    def pause(self) -> float:
        """Seconds to wait before it starts again."""
        recent = sum(self.ends[-1] - end < CRASH_WINDOW for end in self.ends)
        return FIRST_PAUSE * 2.0 ** max(0, recent - 1)

    def give_up(self, why: str) -> NoReturn:
        """Raise the error that says so, with its last lines, each once."""
        last = "".join(f"\n  {line}" for line in dict.fromkeys(self.last))
        msg = f"{self.label} {why}:{last}"
        raise StartError(msg)


class Supervisor:
    """Keeps the processes of a team running.

    Args:
        team: Which agents, and how many replicas of each.
        server: Where they connect; credentials go by the environment, never by arguments.
        show: Shows a line that a process printed.
        servers: The same for agents that have credentials of their own.
        command: What starts an agent; its name is added.
    """

    def __init__(
        self,
        team: Team,
        server: Server,
        show: Print,
        *,
        servers: Mapping[str, Server] | None = None,
        command: Sequence[str] = (),
    ) -> None:
        self._server, self._servers, self._show = server, servers or {}, show
        self._command = list(command) or [sys.executable, "-m", "natterjack", "agent", "run"]
        self.children = [
            Child(name, name if spec.replicas == 1 else f"{name}/{number}")
            for name, spec in team.agents.items()
            for number in range(1, spec.replicas + 1)
        ]
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Start all, and return once all listen.

        Raises:
            StartError: One does not come up; all are stopped then.
        """
        for child in self.children:
            self._launch(child)
        ready = asyncio.create_task(self._all_ready())
        try:
            await asyncio.wait([ready, self._failure], timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                self._raise_failure()
        except BaseException:
            await self.stop()
            raise
        finally:
            ready.cancel()

    def _launch(self, child: Child) -> None:
        child.task = asyncio.create_task(self._keep(child), name=child.label)
        child.task.add_done_callback(partial(self._given_up, child))

    def _given_up(self, child: Child, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not child.trial and not self._failure.done():
            self._failure.set_exception(error)
            self._failure.exception()  # whoever waits gets it; nobody may wait any more

    async def _all_ready(self) -> None:
        for child in self.children:
            await child.ready.wait()

    def _raise_failure(self) -> None:
        if self._failure.done():
            self._failure.result()
        late = ", ".join(child.label for child in self.children if not child.ready.is_set())
        msg = f"not ready after {START_TIMEOUT:.0f} s: {late}"
        raise StartError(msg)

    async def wait(self) -> None:
        """Return never; raise when a process is given up.

        Raises:
            StartError: It ends again and again; with its last lines.
        """
        await asyncio.shield(self._failure)

    async def stop(self) -> None:
        """Have every process drain; what does not end within 15 s is killed."""
        await asyncio.gather(*(self._retire(child) for child in list(self.children)))

    # Changing what runs

    async def renew(self, agent: str) -> None:
        """Start new processes of an agent, and once they listen, have the old ones drain.

        Raises:
            StartError: A new one does not come up; the old ones go on, and nothing is left of the new.
        """
        old = [child for child in self.children if child.agent == agent]
        fresh = [Child(agent, child.label) for child in old]
        await self._try(fresh)
        await self._dismiss(old)

    async def scale(self, agent: str, replicas: int) -> None:
        """Start or drain processes until an agent has so many.

        Raises:
            StartError: A new one does not come up; what ran before goes on.
        """
        old = [child for child in self.children if child.agent == agent]
        first = len(old) + 1
        numbers = range(first, replicas + 1)
        await self._try([Child(agent, agent if replicas == 1 else f"{agent}/{number}") for number in numbers])
        await self._dismiss(old[replicas:])

    async def _dismiss(self, children: Iterable[Child]) -> None:
        gone = list(children)
        await asyncio.gather(*(self._retire(child) for child in gone))
        self.children = [child for child in self.children if child not in gone]

    async def _try(self, fresh: list[Child]) -> None:
        """Start processes on trial: they come up, all of them, or none is left."""
        for child in fresh:
            child.trial = True
            self.children.append(child)
            self._launch(child)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                for child in fresh:
                    await self._come_up(child)
        except BaseException as error:
            await self._dismiss(fresh)
            if isinstance(error, TimeoutError):
                msg = f"{fresh[0].agent} is not ready after {START_TIMEOUT:.0f} s"
                raise StartError(msg) from error
            raise
        for child in fresh:
            child.trial = False

    async def _come_up(self, child: Child) -> None:
        ready = asyncio.create_task(child.ready.wait())
        try:
            if child.task is not None:
                await asyncio.wait([ready, child.task], return_when=asyncio.FIRST_COMPLETED)
                if not child.ready.is_set():
                    child.task.result()
        finally:
            ready.cancel()

    async def _retire(self, child: Child) -> None:
        """Have one process drain, and return once it has ended."""
        if not child.leaving:  # a second signal would end it at once
            child.leaving = True
            self._signal(child, signal.SIGTERM)
        if child.task is not None:
            child.task.cancel()
            await asyncio.gather(child.task, return_exceptions=True)
        await self._end(child)

    async def _end(self, child: Child) -> None:
        process = child.process
        if process is None:
            return
        try:
            async with asyncio.timeout(STOP_TIMEOUT):
                await asyncio.gather(process.wait(), self._read(child, process))
        except TimeoutError:
            self._show(child.label, f"did not end within {STOP_TIMEOUT:.0f} s and is killed")
            self._signal(child, signal.SIGKILL)
            await process.wait()

    def _signal(self, child: Child, number: signal.Signals) -> None:
        if child.process is not None and child.process.returncode is None:
            with suppress(ProcessLookupError):  # it ended at this very moment
                child.process.send_signal(number)

    async def _keep(self, child: Child) -> None:
        """Run one process, again and again."""
        while True:
            code = await self._run(child)
            child.ends.append(time.monotonic())
            if child.trial:
                child.give_up("does not come up")
            if code == WRONG and not child.started:
                child.give_up("cannot start")
            if child.looping:
                child.give_up(f"ended {CRASHES} times within {CRASH_WINDOW:.0f} s and is given up")
            self._show(child.label, f"ended with {_described(code)}; it starts again in {child.pause:g} s")
            await asyncio.sleep(child.pause)

    async def _run(self, child: Child) -> int:
        process = child.process = await self._spawn(child)
        try:
            await self._read(child, process)
            return await process.wait()
        finally:
            child.ready.clear()

    async def _spawn(self, child: Child) -> asyncio.subprocess.Process:
        server = self._servers.get(child.agent, self._server)
        try:
            return await asyncio.create_subprocess_exec(
                *self._command,
                child.agent,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **server.environment(), PARENT: "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which then drains in order
            )
        except OSError as error:
            msg = f"{child.label} cannot be started with {self._command[0]!r}: {error}"
            raise StartError(msg) from error

    async def _read(self, child: Child, process: asyncio.subprocess.Process) -> None:
        if process.stdout is None:
            return
        while line := await _line(process.stdout):
            text = line.decode(errors="replace").rstrip()
            if text == f"agent {child.agent} {READY}":
                child.started = True
                child.ready.set()
            child.last.append(text)
            self._show(child.label, text)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line; one beyond the reader's limit comes in parts."""
    try:
        return await stream.readuntil()
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.read(error.consumed or 1)


def _described(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
