"""Tool servers of a team file: the kind `mcp`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from natterjack import Bus, Settings, ToolClient, ToolServer, ToolServerContext
from natterjack_mcp.client import NatsTools
from natterjack_mcp.specs import HttpServerSpec, StdioServerSpec

if TYPE_CHECKING:
    from natterjack_mcp.service import Served

TOKEN = "NATTERJACK_TOKEN"  # noqa: S105 - the name of a variable


class MCPTools(ToolServer):
    """Serves an `MCPServer` of your own to the team, or any MCP server elsewhere.

    Example in a team file::

        [tools.team-tools]
        server = "team_tools:server"
        replicas = 2
        roles = { web_search = ["researcher"], publish = ["writer"] }

        [tools.files]
        command = ["npx", "-y", "@modelcontextprotocol/server-filesystem", "."]

        [tools.weather]
        url = "https://weather.example/mcp"
    """

    name: ClassVar[str] = "mcp"

    class Config(Settings):
        """Settings of a table `[tools.<name>]`.

        Attributes:
            server: `module:name` of an MCPServer.
            command: Or what starts a server that speaks over its pipes; it sees no caller: the table's `roles` decide.
            env: Variables for it, beside `PATH`, `HOME` and their like.
            url: Or where a server is behind Streamable HTTP; the same holds for it.
            bearer_token: What it is shown there.
            concurrency: Requests that one process works on at once; four times as many may wait.
        """

        model_config = ConfigDict(hide_input_in_errors=True)

        server: str | None = None
        command: tuple[str, ...] = ()
        env: dict[str, str] = Field(default_factory=dict)
        url: str | None = None
        bearer_token: str | None = None
        concurrency: int = Field(64, ge=1, le=10_000)

        @model_validator(mode="after")
        def _check_one(self) -> Self:
            if sum(map(bool, (self.server, self.command, self.url))) != 1:
                msg = 'say what it serves, in one way: server = "module:server", command = [...] or url = "https://…"'
                raise ValueError(msg)
            return self

    config: Config

    async def serve(self, ctx: ToolServerContext) -> None:
        """Serve until cancelled.

        Raises:
            ConfigError: There is no such server in this module.
            ToolUnavailableError: What is elsewhere is not there.
        """
        from natterjack_mcp.service import NatsService  # lazy: the processes of agents need nothing of the SDK

        async with self._served(ctx.name) as served:
            service = NatsService(
                served,
                ctx.bus,
                ctx.name,
                roles_of=ctx.roles_of,
                admits=ctx.admits,
                concurrency=self.config.concurrency,
            )
            try:
                await service.start()
                ctx.ready()
                await asyncio.Event().wait()
            finally:
                await service.drain(ctx.drain_timeout)

    @asynccontextmanager
    async def _served(self, name: str) -> AsyncIterator[Served]:
        if self.config.server is not None:
            from natterjack_mcp.commands import load

            yield load(self.config.server)
            return
        spec: HttpServerSpec | StdioServerSpec
        if self.config.url is not None:
            spec = HttpServerSpec(self.config.url, self.config.bearer_token)
        else:
            command, *args = self.config.command
            spec = StdioServerSpec(command, args, self.config.env)
        bridge = spec.bridge(name)
        await bridge.start()
        try:
            yield bridge
        finally:
            await bridge.close()

    @classmethod
    def client(cls, server: str, bus: Bus) -> ToolClient:
        """Return what calls it; the token in NATTERJACK_TOKEN of the agent's process is shown, if there is one."""
        return NatsTools(server, bus, os.environ.get(TOKEN))
