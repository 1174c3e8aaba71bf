"""Serving: one server over one transport or several, until it is told to stop."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

import anyio
from mcp.server.stdio import stdio_server

from natterjack import ConfigError
from natterjack_mcp.caller import Caller, calling
from natterjack_mcp.server import MCPServer

log = logging.getLogger("natterjack.tools")

TOKEN: Final = "NATTERJACK_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable: who calls over stdio shows it, like `Authorization` over HTTP."""


async def serve_stdio(server: MCPServer) -> None:
    """Serve the process that started this one, over its pipes, until it closes them.

    It is nobody, unless it put a token or a key into the variable NATTERJACK_TOKEN of this process.

    Raises:
        TokenError: The token is not valid.
        ConfigError: There is one, and nothing that knows callers.
    """
    lowlevel = server.lowlevel
    with calling(await _caller_of_process(server)):
        async with stdio_server() as (incoming, outgoing):
            log.info("%s is served over stdio", server.name)
            await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())


async def _caller_of_process(server: MCPServer) -> Caller:
    shown = os.environ.get(TOKEN)
    if not shown:
        return Caller()
    if server.auth is None:
        msg = f"{TOKEN} is set, but {server.name!r} has no AuthMiddleware that could read it; give it one, or unset it"
        raise ConfigError(msg)
    return await server.auth.caller(shown)


def run(server: MCPServer, *, stdio: bool) -> None:
    """Serve until stopped; see `MCPServer.run`."""
    if not stdio:
        msg = "say how to serve it: over stdio"
        raise ConfigError(msg)
    anyio.run(serve_stdio, server, backend_options={"use_uvloop": sys.platform != "win32"})
