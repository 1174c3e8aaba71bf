"""The supervisor: one operating-system process per agent and tool server, restarted with backoff, their logs prefixed.

A process is a plain `natterjack agent run NAME`, which may as well be started by hand on another machine; no process
of ours is special. Each child ends when the supervisor does, even by kill -9, and is replaced when it hangs or uses
too much memory: see `lifeline` and `watch`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from natterjack.cli.child import Child, Show
from natterjack.cli.watch import watch
from natterjack.coroutines import first_of
from natterjack.errors import StartError
from natterjack.server import Server
from natterjack.team import Team

CRASHES: Final = 5
"""A process that ends so often before it ever listened is given up, and with it the start of the team."""
STEADY: Final = 60.0
"""A process that has run for so many seconds is no longer one that ends again and again."""
WRONG: Final = 2
"""Exit code of a process that finds its team file or its code wrong: starting it again changes nothing."""
START_TIMEOUT: Final = 60.0


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
        show: Show,
        *,
        servers: Mapping[str, Server] | None = None,
        command: Sequence[str] = (),
    ) -> None:
        self.team = team
        self._server, self._servers, self._show = server, servers or {}, show
        self._command = list(command) or [sys.executable, "-m", "natterjack", "agent", "run"]
        self.children = [
            self._child(name, name if spec.replicas == 1 else f"{name}/{number}")
            for name, spec in team.processes.items()
            for number in range(1, spec.replicas + 1)
        ]
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _child(self, agent: str, label: str) -> Child:
        return Child(agent, label, self.team.processes[agent], self._show)

    async def start(self) -> None:
        """Start all, and return once all listen.

        Raises:
            StartError: One does not come up; all are stopped then.
        """
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
        tools = [child for child in self.children if child.agent in self.team.tools]
        for some in (tools, [child for child in self.children if child not in tools]):  # agents need the tools
            for child in some:
                self._launch(child)
            for child in some:
                await child.ready.wait()

    def _raise_failure(self) -> None:
        if self._failure.done():
            self._failure.result()
        late = ", ".join(child.label for child in self.children if not child.ready.is_set())
        msg = f"not ready after {START_TIMEOUT:.0f} s: {late}"
        raise StartError(msg)

    async def wait(self) -> None:
        """Return never: what ends is started again, with growing pauses."""
        await asyncio.shield(self._failure)

    async def stop(self) -> None:
        """Have every process drain; what does not end within its `drain_timeout` is killed."""
        tools = [child for child in self.children if child.agent in self.team.tools]
        await asyncio.gather(*(child.retire() for child in self.children if child not in tools))
        await asyncio.gather(*(child.retire() for child in tools))

    # Changing what runs

    async def renew(self, agent: str) -> None:
        """Replace an agent's processes one after another; each new one listens before the old one drains.

        Raises:
            StartError: A new one does not come up, and is gone; all others go on, those that were renewed before, too.
        """
        for old in [child for child in self.children if child.agent == agent]:
            await self._try([self._child(agent, old.label)])
            await self._dismiss([old])

    async def scale(self, agent: str, replicas: int) -> None:
        """Start or drain processes until an agent has so many.

        Raises:
            StartError: A new one does not come up; what ran before goes on.
        """
        old = [child for child in self.children if child.agent == agent]
        first = len(old) + 1
        numbers = range(first, replicas + 1)
        await self._try([self._child(agent, agent if replicas == 1 else f"{agent}/{number}") for number in numbers])
        await self._dismiss(old[replicas:])

    async def _dismiss(self, children: Iterable[Child]) -> None:
        gone = list(children)
        await asyncio.gather(*(child.retire() for child in gone))
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

    # One process

    async def _keep(self, child: Child) -> None:
        await first_of(self._run(child), watch(child))

    async def _run(self, child: Child) -> None:
        """Run one process, again and again."""
        server = self._servers.get(child.agent, self._server)
        while True:
            began = time.monotonic()
            try:
                await child.spawn(self._command, server.environment())
                code = await child.follow()
                how = f"ended with {_described(code)}"
            except StartError as error:
                if child.trial or not child.started:
                    raise
                code, how = 1, str(error)
            child.crashes = 1 if time.monotonic() - began > STEADY else child.crashes + 1
            _check(child, code)
            again = f", {child.crashes} times in a row" if child.crashes > 1 else ""
            child.say(f"{how}{again}; it starts again in {child.pause:g} s")
            await asyncio.sleep(child.pause)


def _check(child: Child, code: int) -> None:
    """Raise if there is no point in starting it again."""
    if child.trial:
        child.give_up("does not come up")
    if not child.started and code == WRONG:
        child.give_up("cannot start")
    if not child.started and child.crashes >= CRASHES:
        child.give_up(f"ended {child.crashes} times before it listened, and is given up")


def _described(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
