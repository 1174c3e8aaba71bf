"""The tools of an agent: those of its servers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Self

from natterjack.bus import Bus
from natterjack.errors import ConfigError, StartError, described, nearest
from natterjack.guards import Guards
from natterjack.messages import Envelope
from natterjack.plugins import Plugins
from natterjack.team import Team
from natterjack.toolserver import ToolClient, ToolInfo, ToolSource

CALL_TIMEOUT: Final = 60.0
"""Seconds for one call that names no other time."""


class Tools:
    """Calls tools as one agent.

    Args:
        agent: Its name.
        clients: What reaches its servers, by the names it calls them.
        guards: Asked before anything is called.
    """

    __slots__ = ("_agent", "_clients", "_guards")

    def __init__(self, agent: str, clients: Mapping[str, ToolClient], guards: Guards) -> None:
        self._agent, self._clients, self._guards = agent, dict(clients), guards

    @classmethod
    def of(
        cls, agent: str, team: Team, plugins: Plugins, bus: Bus, guards: Guards, beside: Mapping[str, ToolSource]
    ) -> Self:
        """Return an agent's: those of the team's servers that it has, and of servers beside them.

        Raises:
            PluginError: No plugin brings a server's kind.
        """
        kinds = {name: plugins.tool_server(team.tools[name].kind) for name in team.agents[agent].tools}
        own = {name: kind.client(name, bus) for name, kind in kinds.items()}
        return cls(agent, own | {name: source.client(name, bus) for name, source in beside.items()}, guards)

    async def start(self) -> None:
        """Connect to all.

        Raises:
            StartError: One is not there.
        """
        for name, client in self._clients.items():
            try:
                await client.start()
            except Exception as error:
                msg = f"its tool server {name!r} cannot be reached: {described(error)}"
                raise StartError(msg) from error

    async def close(self) -> None:
        """Let go of all."""
        for client in self._clients.values():
            await client.close()

    async def call(self, address: str, arguments: Mapping[str, Any], *, timeout: float, envelope: Envelope) -> Any:
        """Call a tool by its address, `server.tool`, and return its result as JSON.

        Raises:
            ConfigError: The agent has no such server, or the address is none.
            RefusedError: A guard refuses. What else is raised, the kind of server says.
        """
        server, dot, tool = address.partition(".")
        if not dot or not tool:
            msg = f"{address!r} is no address of a tool; write 'server.tool', e.g. 'team-tools.web_search'"
            raise ConfigError(msg)
        if server not in self._clients:
            hint = nearest(server, self._clients) or " Name it in `tools` of the agent, or in `servers` of its process."
            msg = f"{self._agent!r} has no tool server {server!r}.{hint}"
            raise ConfigError(msg)
        self._guards.check(self._agent, "call", f"{server}/{tool}")
        return await self._clients[server].call(tool, arguments, timeout=timeout, envelope=envelope)

    async def list(self, *, timeout: float = CALL_TIMEOUT) -> Sequence[ToolInfo]:
        """Return all tools that the agent may call, by server; each name is unique."""
        lists = await asyncio.gather(*(client.list(timeout=timeout) for client in self._clients.values()))
        found = [replace(tool, server=name) for name, tools in zip(self._clients, lists, strict=True) for tool in tools]
        counts = Counter(each.tool for each in found)
        return [
            replace(each, name=each.tool if counts[each.tool] == 1 else f"{each.server}_{each.tool}") for each in found
        ]
