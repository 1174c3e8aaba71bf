"""A guarded call of a tool over NATS, beside the same over Streamable HTTP: both callers show a token."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from natterjack import Bus, Envelope
from natterjack.testing import until

from .ask import CALLERS, QUESTION
from .measure import Row, Sides, Stage, p50, rate

MCP = ("natterjack_mcp",)
Call = Callable[[int], Awaitable[None]]


def _desk() -> tuple[Any, str]:
    """Return a server whose one tool is for writers, and a writer's token."""
    from natterjack_mcp import AuthMiddleware, HasRole, JWTAuth, MCPServer

    logging.getLogger("natterjack.tools").setLevel(logging.WARNING)
    server, auth = MCPServer("desk"), JWTAuth("a secret of thirty-two bytes, or more")
    server.middleware = [AuthMiddleware(auth)]

    @server.tool(guards=[HasRole("writer")])
    async def echo(text: str) -> str:
        return text

    return server, auth.token("ann", roles=["writer"])


@asynccontextmanager
async def _over_http(server: Any) -> AsyncIterator[str]:
    from natterjack_mcp.http import Address, serve_http

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serving = asyncio.create_task(serve_http(server, Address("127.0.0.1", port)))

    async def listens() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    try:
        await until(listens)
        yield f"http://127.0.0.1:{port}"
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def _calls(stage: Stage) -> AsyncIterator[tuple[Call, Call]]:
    """Call the one tool over NATS, and over HTTP."""
    from natterjack_mcp import HttpServerSpec, NatsServerSpec
    from natterjack_mcp.service import NatsService

    server, token = _desk()
    serving = await Bus.connect(stage.server, principal="desk")
    service = NatsService(server, serving)
    await service.start()
    try:
        async with _over_http(server) as url:
            near = NatsServerSpec("desk", token).client("desk", stage.bus)
            far = HttpServerSpec(url, token).client("desk", stage.bus)
            await far.start()
            try:

                async def ours(_: int) -> None:
                    await near.call("echo", {"text": QUESTION}, timeout=30, envelope=Envelope())

                async def http(_: int) -> None:
                    await far.call("echo", {"text": QUESTION}, timeout=30, envelope=Envelope())

                yield ours, http
            finally:
                await far.close()
    finally:
        await service.drain(1)
        await serving.close()


@asynccontextmanager
async def one_caller(stage: Stage) -> AsyncIterator[Sides]:
    """One call after another."""
    count = stage.count(200)
    async with _calls(stage) as (ours, http):
        yield Sides(lambda: p50(count, ours), lambda: p50(count, http))


@asynccontextmanager
async def many_callers(stage: Stage) -> AsyncIterator[Sides]:
    """Many calls at once."""
    count = stage.count(1000)
    async with _calls(stage) as (ours, http):
        yield Sides(lambda: rate(count, ours, callers=CALLERS), lambda: rate(count, http, callers=CALLERS))


ROWS = [
    Row("tool with a guard, 1 caller, p50", "µs", 0.25, one_caller, beside="MCP over HTTP", needs=MCP),
    Row("tool with a guard, 64 callers", "/s", 4.0, many_callers, beside="MCP over HTTP", needs=MCP),
]
