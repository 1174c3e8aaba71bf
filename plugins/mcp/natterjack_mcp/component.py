"""Tool servers of a team file: the kind `mcp`."""

from __future__ import annotations

import asyncio
import os
from typing import ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from natterjack import Bus, Settings, ToolClient, ToolServer, ToolServerContext
from natterjack_mcp.client import NatsTools

TOKEN = "NATTERJACK_TOKEN"  # noqa: S105 - the name of a variable


class MCPTools(ToolServer):
    """Serves an `MCPServer` of your own to the team.

    Example in a team file::

        [tools.team-tools]
        server = "team_tools:server"
        replicas = 2
        roles = { web_search = ["researcher"], publish = ["writer"] }
    """

    name: ClassVar[str] = "mcp"

    class Config(Settings):
        """Settings of a table `[tools.<name>]`.

        Attributes:
            server: `module:name` of an MCPServer.
            concurrency: Requests that one process works on at once; four times as many may wait.
        """

        model_config = ConfigDict(hide_input_in_errors=True)

        server: str | None = None
        concurrency: int = Field(64, ge=1, le=10_000)

        @model_validator(mode="after")
        def _check_one(self) -> Self:
            if self.server is None:
                msg = 'say what it serves: server = "module:server"'
                raise ValueError(msg)
            return self

    config: Config

    async def serve(self, ctx: ToolServerContext) -> None:
        """Serve until cancelled."""
        # Lazy: the SDK takes 30 MB, and the processes of agents need none of it.
        from natterjack_mcp.commands import load
        from natterjack_mcp.service import NatsService

        served = load(str(self.config.server))
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

    @classmethod
    def client(cls, server: str, bus: Bus) -> ToolClient:
        """Return what calls it; the token in NATTERJACK_TOKEN of the agent's process is shown, if there is one."""
        return NatsTools(server, bus, os.environ.get(TOKEN))
