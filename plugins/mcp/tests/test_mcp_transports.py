"""A tool server in a process of its own, used by the official client over each transport."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from natterjack import Bus, ConfigError, Server
from natterjack.testing import NatsServer, until
from natterjack_mcp import JWTAuth, nats_client
from natterjack_mcp.commands import load

pytestmark = pytest.mark.full  # real processes for each test: CI has 15 minutes

SECRET = "a secret of thirty-two bytes, or more"
AUTH = JWTAuth(SECRET)

DESK = '''\
"""A desk that several agents share."""

import asyncio
import os
import time

from natterjack_mcp import AuthMiddleware, HasRole, JWTAuth, MCPServer, ToolContext, ToolError

server = MCPServer("desk", version="1.2", instructions="Writes and reads.")
server.middleware = [AuthMiddleware(JWTAuth(secret=os.environ["DESK_SECRET"]))]
ended = []


@server.tool(guards=[HasRole("researcher")])
async def web_search(query: str, ctx=None) -> list[str]:
    """Search the web."""
    print("this is not for the wire")
    return [f"{query} for {ctx.caller.name}"]


@server.tool(guards=[HasRole("writer")])
def publish(title: str, content: str, ctx=None) -> str:
    """Publish content."""
    return f"{title}: {len(content)} by {ctx.caller}"


@server.tool(public=True)
async def count(to: int, ctx: ToolContext) -> int:
    """Count, and tell how far it is."""
    for number in range(to):
        await ctx.progress(number + 1, to)
    return to


@server.tool(public=True)
async def wait() -> None:
    """Wait until it is cancelled."""
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("wait")


@server.tool(public=True)
def ends() -> list[str]:
    """Tell what was cancelled."""
    return ended


@server.tool(public=True)
def fail(deliberately: bool) -> None:
    """Fail."""
    if deliberately:
        raise ToolError("the desk is full")
    raise RuntimeError("hunter2")


@server.tool(public=True)
async def grow() -> None:
    """Have one more tool."""
    server.tool(name="more", public=True)(lambda: "more")
    await server.tools_changed()


@server.resource("desk://rules", public=True)
def rules() -> str:
    """What holds here."""
    return "be brief"


if __name__ == "__main__":
    server.run(stdio=True)
'''

Connect = Callable[..., AbstractAsyncContextManager[Client]]


def token(name: str, *roles: str, **more: Any) -> str:
    return AUTH.token(name, roles=roles, **more)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    (tmp_path / "desk.py").write_text(DESK)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "DESK_SECRET": SECRET, **more}


@asynccontextmanager
async def over_stdio(desk: Path, shown: str | None, mode: Any) -> AsyncIterator[Client]:
    command = ["-m", "natterjack", "tools", "serve", "desk:server", "--stdio"]
    env = environment(**({"NATTERJACK_TOKEN": shown} if shown else {}))
    async with Client(
        StdioServerParameters(command=sys.executable, args=command, env=env, cwd=desk), mode=mode
    ) as client:
        yield client


@contextmanager
def served(desk: Path, *args: str, **more: str) -> Iterator[str]:
    """Within the context, the desk is served over HTTP or NATS, in a process that then ends as it should."""
    command = [sys.executable, "-m", "natterjack", "tools", "serve", "desk:server", *args]
    process = subprocess.Popen(command, cwd=desk, env=environment(**more), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        found = next(filter(None, (re.search(r"is served (?:over NATS )?at (\S+)", line) for line in lines)))
        yield found[1]
        process.terminate()
        assert process.wait(30) == 0
        assert "desk is served no more" in process.stderr.read().splitlines()[-1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@asynccontextmanager
async def over_http(url: str, shown: str, mode: Any = "auto") -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {shown}"}) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        yield client


@asynccontextmanager
async def over_nats(url: str, name: str, shown: str) -> AsyncIterator[Client]:
    bus = await Bus.connect(Server(url), principal="client")
    try:
        async with Client(nats_client(name, bus, token=shown)) as client:
            yield client
    finally:
        await bus.close()


@contextmanager
def dialled(desk: Path, transport: str, nats: NatsServer, mode: str = "auto") -> Iterator[Connect]:
    if transport == "stdio":
        yield lambda shown: over_stdio(desk, shown, mode)
    elif transport == "http":
        with served(desk, "--http", "127.0.0.1:0") as url:
            yield lambda shown: over_http(url, shown, mode)
    else:
        name = f"desk-{secrets.token_hex(4)}"
        with served(desk, "--nats", "--name", name, NATS_URL=nats.url):
            yield lambda shown: over_nats(nats.url, name, shown)


@pytest.fixture(params=["stdio", "http", "nats"])
def connect(desk: Path, request: pytest.FixtureRequest, nats_server: NatsServer) -> Iterator[Connect]:
    """Connects a client that shows a token."""
    with dialled(desk, request.param, nats_server) as connect:
        yield connect


@pytest.fixture(params=["stdio", "stdio-legacy", "http", "http-legacy", "nats"])
def any_era(desk: Path, request: pytest.FixtureRequest, nats_server: NatsServer) -> Iterator[Connect]:
    """The same, also with the handshake of older protocols, where a transport has sessions."""
    transport, _, mode = request.param.partition("-")
    with dialled(desk, transport, nats_server, mode or "auto") as connect:
        yield connect


async def names(client: Client) -> set[str]:
    return {each.name for each in (await client.list_tools()).tools}


PUBLIC = {"count", "wait", "ends", "fail", "grow"}


async def test_each_caller_uses_what_is_its_own_and_sees_nothing_else(any_era: Connect) -> None:
    async with any_era(token("ann", "researcher")) as client:
        assert await names(client) == {"web_search", *PUBLIC}
        found = await client.call_tool("web_search", {"query": "toads"})
        assert found.structured_content == {"result": ["toads for ann"]}
        with pytest.raises(MCPError, match=r"HasRole\('writer'\) refuses") as caught:
            await client.call_tool("publish", {"title": "t", "content": "c"})
        assert (caught.value.error.code, caught.value.error.data) == (403, {"guard": "HasRole('writer')"})
    async with any_era(token("ben", "writer")) as client:
        assert await names(client) == {"publish", *PUBLIC}
        found = await client.call_tool("publish", {"title": "t", "content": "c"})
        assert found.structured_content == {"result": "t: 1 by ben"}
        with pytest.raises(MCPError, match=r"HasRole\('researcher'\) refuses"):
            await client.call_tool("web_search", {"query": "toads"})


async def test_what_goes_wrong_is_told_without_internals(any_era: Connect) -> None:
    async with any_era(token("ann")) as client:
        said = await client.call_tool("fail", {"deliberately": True})
        crashed = await client.call_tool("fail", {"deliberately": False})
        wrong = await client.call_tool("count", {"to": "many"})
        assert [each.is_error for each in (said, crashed, wrong)] == [True] * 3
        texts = [str(each.content[0]) for each in (said, crashed, wrong)]
        assert "the desk is full" in texts[0]
        assert "hunter2" not in texts[1]
        assert "valid integer" in texts[2]
        assert (await client.call_tool("count", {"to": 1})).structured_content == {"result": 1}


async def test_progress_is_told(any_era: Connect) -> None:
    told: list[tuple[float, float | None]] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        del message
        told.append((progress, total))

    async with any_era(token("ann")) as client:
        await client.call_tool("count", {"to": 3}, progress_callback=report)
        await client.call_tool("ends")  # notifications of the call before are read by now
    assert told == [(1, 3), (2, 3), (3, 3)]


async def test_a_call_that_is_cancelled_ends_at_the_server(any_era: Connect) -> None:
    async with any_era(token("ann")) as client:
        waiting = asyncio.create_task(client.call_tool("wait"))
        await client.call_tool("ends")  # the one before has been sent
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

        async def ended() -> bool:
            return bool((await client.call_tool("ends")).structured_content == {"result": ["wait"]})

        assert await until(ended, timeout=30)


async def test_a_changed_list_is_told(connect: Connect) -> None:
    async with connect(token("ann")) as client, client.listen(tools_list_changed=True) as changes:
        await client.call_tool("grow")
        async with asyncio.timeout(30):
            await anext(aiter(changes))
        assert await names(client) == {"more", *PUBLIC}


async def test_resources_are_read(connect: Connect) -> None:
    async with connect(token("ann")) as client:
        assert [each.name for each in (await client.list_resources()).resources] == ["rules"]
        assert '"be brief"' in (await client.read_resource("desk://rules")).model_dump_json()


# stdio


async def test_who_shows_no_token_over_stdio_may_call_nothing(desk: Path) -> None:
    async with over_stdio(desk, None, "auto") as client:
        assert await names(client) == set()
        with pytest.raises(MCPError, match=r"show a token \(JWT\)") as caught:
            await client.call_tool("count", {"to": 1})
        assert caught.value.error.code == 401


def serve(desk: Path, *args: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "natterjack", "tools", "serve", *args]
    return subprocess.run(
        command, cwd=desk, env=environment(**more), input="", capture_output=True, text=True, timeout=60, check=False
    )


def test_a_server_over_stdio_ends_with_its_client(desk: Path) -> None:
    done = serve(desk, "desk:server", "--stdio")
    assert (done.returncode, done.stdout) == (0, "")
    assert "desk is served over stdio" in done.stderr


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("desk:serve", "did you mean 'desk:server'?"),
        ("desk:JWTAuth", "did you mean 'desk:server'?"),
        ("dusk:server", "'dusk' cannot be imported"),
        ("json:server", "has no server at all"),
    ],
)
def test_what_is_no_server_is_told(desk: Path, target: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("DESK_SECRET", SECRET)
    with pytest.raises(ConfigError) as caught:
        load(target)
    assert text in str(caught.value)
    sys.modules.pop("desk", None)


def test_how_to_serve_must_be_said(desk: Path) -> None:
    done = serve(desk, "desk:server")
    assert done.returncode == 2
    assert "error: say how to serve it: over stdio" in done.stderr


def test_a_token_that_is_not_valid_ends_a_server_over_stdio(desk: Path) -> None:
    done = serve(desk, "desk:server", "--stdio", NATTERJACK_TOKEN="nonsense")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "error: the token is not valid: it is malformed")
