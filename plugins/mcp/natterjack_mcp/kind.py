"""Kinds of tool servers that speak MCP: what a plugin derives its own from."""

from __future__ import annotations

import asyncio
import os
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pydantic import Field

from natterjack import Bus, ConfigError, Right, Settings, ToolClient, ToolServer, ToolServerContext
from natterjack_mcp.client import NatsTools

if TYPE_CHECKING:
    from natterjack_mcp.server import MCPServer
    from natterjack_mcp.service import Served

TOKEN = "NATTERJACK_TOKEN"  # noqa: S105 - the name of a variable


class MCPToolServer(ToolServer):
    """A kind of tool server that brings an `MCPServer` of its own: base class for plugins.

    Example::

        class Clock(MCPToolServer):
            \"\"\"Tells the time: `[tools.clock] kind = "clock"`.\"\"\"

            name: ClassVar = "clock"

            def server(self) -> MCPServer:
                server = MCPServer("clock")
                server.tool()(now)
                return server
    """

    class Config(Settings):
        """Settings of a table `[tools.<name>]`; those of a kind derive from it.

        Attributes:
            approve: Tools each call of which a human must allow: `@server.tool(approval=True)`, or any that it names.
            concurrency: Requests that one process works on at once; four times as many may wait.
        """

        approve: frozenset[str] = frozenset()
        concurrency: int = Field(64, ge=1, le=10_000)

    config: Config

    @abstractmethod
    def server(self) -> MCPServer:
        """Return what is served; called once, in the process that serves it."""

    async def serve(self, ctx: ToolServerContext) -> None:
        """Serve until cancelled.

        Raises:
            ConfigError: The table names other tools for a human to allow than the server has.
        """
        from natterjack_mcp.service import NatsService  # lazy: the processes of agents need nothing of the SDK

        async with self._served(ctx.name) as served:
            self._check_approve(ctx.name, await served.tool_names(), served.approves)
            service = NatsService(
                served,
                ctx.bus,
                ctx.name,
                roles_of=ctx.roles_of,
                admits=ctx.admits,
                approve=self.config.approve,
                concurrency=self.config.concurrency,
            )
            try:
                await service.start()
                ctx.ready()
                await asyncio.Event().wait()
            finally:
                await service.drain(ctx.drain_timeout)

    def needs(self, agent: str) -> list[Right]:
        """Return the right to see what humans answered, if it must."""
        del agent
        return [Right("replay", "approval.*")] if self.config.approve else []

    def _check_approve(self, name: str, tools: frozenset[str], approves: frozenset[str]) -> None:
        """Raise `ConfigError` unless the table names all tools that need a human, and only tools that are there."""
        if missing := approves - self.config.approve:
            named = ", ".join(f'"{each}"' for each in sorted(approves | self.config.approve))
            msg = (
                f"a human must allow calls of {', '.join(sorted(missing))}, and [tools.{name}] does not say so; write "
                f"approve = [{named}] there, and provision again: then it may see what humans answer"
            )
            raise ConfigError(msg)
        if unknown := self.config.approve - tools:
            has = ", ".join(sorted(tools)) or "none"
            msg = f"[tools.{name}] names in `approve` what is no tool of it: {', '.join(sorted(unknown))}; it has {has}"
            raise ConfigError(msg)

    @asynccontextmanager
    async def _served(self, name: str) -> AsyncIterator[Served]:
        del name
        yield self.server()

    @classmethod
    def client(cls, server: str, bus: Bus) -> ToolClient:
        """Return what calls it; the token in NATTERJACK_TOKEN of the agent's process is shown, if there is one."""
        return NatsTools(server, bus, os.environ.get(TOKEN))
