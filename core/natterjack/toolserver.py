"""Tool servers: what a kind of them brings, and what it is given."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from natterjack.components import Component
from natterjack.errors import ConfigError
from natterjack.messages import Envelope

if TYPE_CHECKING:
    from natterjack.bus import Bus


@dataclass(frozen=True, slots=True)
class ToolInfo:
    """One tool that an agent may call.

    Attributes:
        server: What the agent calls its server.
        tool: Its name there.
        name: Unique among all tools of the agent: the tool's, with the server's before it where two have one.
        description: What it does, for models.
        schema: JSON Schema of its arguments.
    """

    server: str
    tool: str
    name: str
    description: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)


class ToolClient(Protocol):
    """How an agent reaches one tool server."""

    async def start(self) -> None:
        """Connect, before the agent begins; raise an error that names the server if it is not there."""

    async def call(self, tool: str, arguments: Mapping[str, Any], *, timeout: float, envelope: Envelope) -> Any:
        """Call a tool and return its result as JSON; cancel this call to cancel the tool.

        Args:
            tool: Its name.
            arguments: JSON.
            timeout: Seconds.
            envelope: Causation to carry along, where that is possible.
        """

    async def list(self, *, timeout: float) -> Sequence[ToolInfo]:
        """Return the tools that this agent may call, within `timeout` seconds; who asks sets `server` and `name`."""

    async def close(self) -> None:
        """Let go of connections."""


class ToolSource(Protocol):
    """Says where a tool server is, in `AgentProcess(servers={…})`."""

    def client(self, server: str, bus: Bus) -> ToolClient:
        """Return what reaches it.

        Args:
            server: What the agent calls it.
            bus: The agent's connection.
        """


class ToolServerContext(Protocol):
    """What a tool server that runs is given.

    Attributes:
        name: Its name in the team.
        bus: Its own connection.
        log: Its logger.
        drain_timeout: Seconds that calls under way have when `serve` is cancelled.
    """

    name: str
    bus: Bus
    log: logging.Logger
    drain_timeout: float

    def ready(self) -> None:
        """Tell that it can be called from now on."""

    def roles_of(self, agent: str) -> frozenset[str]:
        """Return an agent's roles as the team has them; its own name is one, where it declares none."""

    def admits(self, tool: str, caller: str, roles: frozenset[str]) -> bool:
        """Tell whether the team's table lets a caller of this name and these roles call a tool."""


class ToolServer(Component):
    """Serves tools to the team's agents: a table `[tools.<name>]` of the team file.

    Example::

        class Clock(ToolServer):
            name: ClassVar = "clock"

            async def serve(self, ctx: ToolServerContext) -> None:
                calls = ToolSubjects(ctx.name).calls
                subscription = await ctx.bus.subscribe(calls, self._tell_time, queue="tools")
                ctx.ready()
                try:
                    await asyncio.Event().wait()
                finally:
                    await subscription.drain()

            @classmethod
            def client(cls, server: str, bus: Bus) -> ToolClient:
                return ClockClient(server, bus)
    """

    @abstractmethod
    async def serve(self, ctx: ToolServerContext) -> None:
        """Serve until cancelled; then finish what runs within `ctx.drain_timeout` seconds.

        Returning or raising ends its process with an error.
        """

    @classmethod
    def client(cls, server: str, bus: Bus) -> ToolClient:
        """Return what reaches the server of this name in the team, over the broker.

        Raises:
            ConfigError: This kind is for other callers than agents.
        """
        del bus
        msg = f"agents cannot call {server!r}: a tool server of the kind {cls.name!r} is for others"
        raise ConfigError(msg)
