"""Serving: one server over one transport or several, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from functools import partial
from typing import Final

import anyio
from mcp.server.stdio import stdio_server

from natterjack import ConfigError
from natterjack_mcp.caller import Caller, calling
from natterjack_mcp.server import MCPServer

log = logging.getLogger("natterjack.tools")

TOKEN: Final = "NATTERJACK_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable: who calls over stdio shows it, like `Authorization` over HTTP."""

_INTERRUPTED: Final = 130
"""What a process exits with that is told twice to stop."""


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


def run(server: MCPServer, *, stdio: bool, http: str | None) -> None:
    """Serve until stopped; see `MCPServer.run`."""
    if stdio == bool(http):
        msg = "say how to serve it: either over stdio, or over HTTP at an address such as 127.0.0.1:8080"
        raise ConfigError(msg)
    serving = partial(_until_stopped, server, http) if http else partial(serve_stdio, server)
    anyio.run(serving, backend_options={"use_uvloop": sys.platform != "win32"})


async def _until_stopped(server: MCPServer, http: str) -> None:
    """Serve over HTTP until the first SIGINT or SIGTERM; the second ends the process at once."""
    from natterjack_mcp.http import Address, serve_http  # lazy: a server over stdio needs no uvicorn

    loop = asyncio.get_running_loop()
    serving = asyncio.ensure_future(serve_http(server, Address.read(http)))

    def stop() -> None:
        if serving.cancelling():
            os._exit(_INTERRUPTED)
        serving.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))  # on Windows, too
    try:
        await serving
    except asyncio.CancelledError:
        log.info("%s is served no more", server.name)
