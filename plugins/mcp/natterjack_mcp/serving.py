"""Serving: one server over one transport or several, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final

import anyio
from mcp.server.stdio import stdio_server

from natterjack import Bus, ConfigError, DisconnectedError, ToolSubjects, find_server
from natterjack_mcp.caller import Caller, calling
from natterjack_mcp.server import MCPServer

log = logging.getLogger("natterjack.tools")

TOKEN: Final = "NATTERJACK_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable: who calls over stdio shows it, like `Authorization` over HTTP."""

Way = Callable[[], Coroutine[Any, Any, None]]
"""Serves until it is cancelled."""
DRAIN: Final = 10.0
"""Seconds that calls under way have when a server over NATS stops."""
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


async def serve_nats(server: MCPServer, name: str | None = None, joined: asyncio.Event | None = None) -> None:
    """Serve a team's agents over NATS until cancelled; calls under way then have ten seconds.

    It connects to the server of NATS_URL, or to the broker that runs in this folder.

    Args:
        server: The server.
        name: What it is called there; its own name by default.
        joined: Is set once it serves.

    Raises:
        ConfigError: No NATS server is named, and none runs in this folder.
        InvalidNameError: The name is malformed.
        ConnectError: It cannot be reached.
    """
    from natterjack_mcp.service import NatsService

    called = ToolSubjects(name or server.name).server
    bus = await Bus.connect(find_server(), principal=called)
    service = NatsService(server, bus, called)
    try:
        await service.start()
        if joined is not None:
            joined.set()
        try:
            await bus.closed.wait()
        finally:
            await service.drain(DRAIN)
        raise DisconnectedError(bus.reason)
    finally:
        await bus.close()


def run(server: MCPServer, *, stdio: bool, http: str | None, nats: bool = False, name: str | None = None) -> None:
    """Serve until stopped; see `MCPServer.run`."""
    if not (stdio or http or nats):
        msg = "say how to serve it: over stdio, over HTTP at an address such as 127.0.0.1:8080, or over NATS"
        raise ConfigError(msg)
    ways: list[Way] = [partial(serve_stdio, server)] if stdio else []
    joined = asyncio.Event() if nats else None
    if http:
        ways.append(partial(_serve_http, server, http, joined))
    if nats:
        ways.append(partial(serve_nats, server, name, joined))
    # A server that only serves its parent ends with it, and has no signals of its own.
    serving = ways[0] if stdio and len(ways) == 1 else partial(until_stopped, server, ways)
    anyio.run(serving, backend_options={"use_uvloop": sys.platform != "win32"})


async def _serve_http(server: MCPServer, http: str, joined: asyncio.Event | None) -> None:
    from natterjack_mcp.http import Address, serve_http  # lazy: a server over stdio needs no uvicorn

    if joined is not None:  # before, it hears of no revocation
        await joined.wait()
    await serve_http(server, Address.read(http))


async def until_stopped(server: MCPServer, ways: Sequence[Way]) -> None:
    """Serve until the first SIGINT or SIGTERM, or until one way ends; the second signal ends the process at once."""
    loop = asyncio.get_running_loop()
    tasks = [asyncio.create_task(way()) for way in ways]
    stopped = asyncio.Event()

    def end() -> None:
        for task in tasks:
            if not task.cancelling():  # cancelled twice, one would not finish what it has begun
                task.cancel()

    def stop() -> None:
        if stopped.is_set():
            os._exit(_INTERRUPTED)
        stopped.set()
        end()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))  # on Windows, too
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    end()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
    log.info("%s is served no more", server.name)
