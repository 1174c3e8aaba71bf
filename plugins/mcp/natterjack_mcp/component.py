"""Tool servers of a team file: the kind `mcp`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import ConfigDict, Field, model_validator

from natterjack_mcp.kind import MCPToolServer
from natterjack_mcp.specs import HttpServerSpec, StdioServerSpec

if TYPE_CHECKING:
    from natterjack_mcp.server import MCPServer
    from natterjack_mcp.service import Served


class MCPTools(MCPToolServer):
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

    class Config(MCPToolServer.Config):
        """Settings of a table `[tools.<name>]`.

        Attributes:
            server: `module:name` of an MCPServer.
            command: Or what starts a server that speaks over its pipes; it sees no caller: the table's `roles` decide.
            env: Variables for it, beside `PATH`, `HOME` and their like.
            url: Or where a server is behind Streamable HTTP; the same holds for it.
            bearer_token: What it is shown there.
        """

        model_config = ConfigDict(hide_input_in_errors=True)

        server: str | None = None
        command: tuple[str, ...] = ()
        env: dict[str, str] = Field(default_factory=dict)
        url: str | None = None
        bearer_token: str | None = None

        @model_validator(mode="after")
        def _check_one(self) -> Self:
            if sum(map(bool, (self.server, self.command, self.url))) != 1:
                msg = 'say what it serves, in one way: server = "module:server", command = [...] or url = "https://…"'
                raise ValueError(msg)
            return self

    config: Config

    def server(self) -> MCPServer:
        """Return that of a module.

        Raises:
            ConfigError: There is no such server in this module.
        """
        from natterjack_mcp.commands import load  # lazy: it is the command line's

        return load(self.config.server or "")

    @asynccontextmanager
    async def _served(self, name: str) -> AsyncIterator[Served]:
        if self.config.server is not None:
            yield self.server()
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
