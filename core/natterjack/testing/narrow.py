"""A team in which each agent may do exactly what its components say they need, and the server refuses all else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from natterjack.bus import Bus
from natterjack.client import TeamClient, connect
from natterjack.clock import Clock
from natterjack.host import AgentHost
from natterjack.needs import agent_permissions
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.rights import Permissions
from natterjack.runtime import start_agent
from natterjack.server import Server
from natterjack.subjects import OPERATOR
from natterjack.team import Team
from natterjack.testing.servers import NatsServer


@dataclass
class NarrowTeam:
    """A team on a server of its own, where nothing runs yet.

    Attributes:
        client: Acts as the operator.
        server: The server.
    """

    client: TeamClient
    server: NatsServer
    _plugins: Plugins
    _clock: Clock | None
    _stack: AsyncExitStack

    async def start(self, name: str) -> AgentHost:
        """Start an agent with its narrow rights; it is stopped at the end."""
        login = login_of(self.server, name)
        host, context = await start_agent(name, login, plugins=self._plugins, clock=self._clock)
        self._stack.push_async_callback(context.close)
        self._stack.push_async_callback(host.stop, 5.0)
        return host

    def violations(self) -> list[str]:
        """Return what the server refused, as it logged it."""
        return [line for line in self.server.log().splitlines() if "violation" in line.lower()]


@asynccontextmanager
async def narrow_team(team: Team, plugins: Plugins, clock: Clock | None = None) -> AsyncIterator[NarrowTeam]:
    """Provision a team on a server of its own that grants each agent its needs and no more.

    Args:
        team: The team.
        plugins: Where its components come from.
        clock: The time for its triggers.
    """
    with NatsServer(narrow_config(agent_permissions(team, plugins))) as server:
        async with AsyncExitStack() as stack:
            login = login_of(server, OPERATOR)
            bus = await Bus.connect(login, principal=OPERATOR)
            stack.push_async_callback(bus.close)
            await provision(bus, team, plugins)
            client = await stack.enter_async_context(connect(login))
            yield NarrowTeam(client, server, plugins, clock, stack)


def login_of(server: NatsServer, name: str) -> Server:
    """Return how an agent, or the operator, logs in."""
    return Server(server.url, user=name, password=f"{name}-password")


def narrow_config(granted: Mapping[str, Permissions]) -> str:
    """Return a server's configuration with a user for each agent, who may do no more, and the operator, who may all."""
    users = [_user(OPERATOR, None), *(_user(name, rights) for name, rights in granted.items())]
    return "authorization { users = [\n" + ",\n".join(users) + "\n] }\n"


def _user(name: str, granted: Permissions | None) -> str:
    """Return one user of a server's configuration."""
    rights = ""
    if granted is not None:
        publish, subscribe = json.dumps(list(granted.publish)), json.dumps([*granted.subscribe, *granted.serve])
        rights = f", permissions: {{ publish: {{ allow: {publish} }}, subscribe: {{ allow: {subscribe} }} }}"
    return f"{{ user: {name}, password: {name}-password{rights} }}"
