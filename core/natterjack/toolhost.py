"""The host of one tool server in one process."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from natterjack import subjects
from natterjack.bus import Bus
from natterjack.coroutines import first_of
from natterjack.errors import ConfigError, NatterjackError, PluginError, StartError, described
from natterjack.plugins import Plugins
from natterjack.record import stored_team
from natterjack.server import Server
from natterjack.team import Team
from natterjack.toolserver import ToolServer

log = logging.getLogger("natterjack.host")

START_WAIT: Final = 30.0
"""Seconds until a tool server can be called: what it stands for may have to be started."""


class ToolHost:
    """Runs one tool server on one connection, and is what it is given (`ToolServerContext`).

    Args:
        name: The server's name.
        team: Its team.
        plugins: What is installed.
        bus: Its own connection.

    Raises:
        PluginError: No plugin brings its kind, or the plugin's own code failed.
        ConfigError: A setting is wrong.
    """

    def __init__(self, name: str, team: Team, plugins: Plugins, bus: Bus) -> None:
        self.name, self.bus, self.spec = name, bus, team.tools[name]
        self.log = logging.getLogger(f"natterjack.tools.{name}")
        self.drain_timeout, self.roles_of, self.admits = self.spec.drain_timeout, team.roles_of, self.spec.admits
        self._server = _made(plugins.tool_server(self.spec.kind), self)
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ready(self) -> None:
        """Tell that it can be called."""
        self._ready.set()

    async def start(self) -> None:
        """Start it, and return once it can be called.

        Raises:
            StartError: It cannot start; nothing is left running.
            ConfigError: The same, because something of it is written wrongly.
        """
        self._task = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(START_WAIT):
                await first_of(self._ready.wait(), asyncio.shield(self._task))
        except BaseException as error:
            await self.stop(0)
            if isinstance(error, TimeoutError):
                msg = f"tool server {self.name!r} is not ready after {START_WAIT:g} s"
                raise StartError(msg) from error
            raise

    async def _run(self) -> None:
        try:
            await self._server.serve(self)
        except Exception as error:
            kind = ConfigError if isinstance(error, ConfigError) else StartError  # that no new start would mend
            msg = f"tool server {self.name!r} failed: {described(error)}"
            raise kind(msg) from error
        msg = f"tool server {self.name!r} ended by itself; `serve` must go on until cancelled"
        raise StartError(msg)

    async def failed(self) -> NatterjackError:
        """Return, once it happens, why it cannot go on."""
        if self._task is not None:
            await first_of(self.bus.closed.wait(), asyncio.wait([self._task]))
            if self._task.done() and isinstance(error := self._task.exception(), NatterjackError):
                return error
        return StartError(f"tool server {self.name!r} cannot go on: {self.bus.reason}")

    async def stop(self, timeout: float) -> None:
        """Take nothing new, finish what runs within `timeout` seconds, and disconnect."""
        self.drain_timeout = min(self.drain_timeout, timeout)
        if self._task is not None:
            self._task.cancel()
            done, _ = await asyncio.wait([self._task], timeout=timeout + 2.0)
            if not done:
                log.error("tool server %r does not end within %g s", self.name, timeout + 2.0)
        await self.bus.close()


def _made(kind: type[ToolServer], host: ToolHost) -> ToolServer:
    try:
        return kind.create(host.spec.options)
    except NatterjackError:
        raise
    except Exception as error:  # a stranger's code may fail in any way
        msg = f"tool server {host.name!r} cannot be made: {type(error).__name__}: {error}"
        raise PluginError(msg) from error


async def start_tool_server(name: str, server: Server, *, plugins: Plugins | None = None) -> ToolHost:
    """Start one tool server of the team that is provisioned on a server, with narrow rights only.

    Raises:
        NotProvisionedError: No team has been provisioned there.
        UnknownAgentError: The team has neither a tool server nor an agent of this name.
        StartError: It cannot start.
    """
    bus = await Bus.connect(server, principal=subjects.check_name(name))
    try:
        team = await stored_team(bus)
        team.tool(name)
        host = ToolHost(name, team, plugins or Plugins.load(), bus)
    except BaseException:
        await bus.close()
        raise
    await host.start()
    return host
