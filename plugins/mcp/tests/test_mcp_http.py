"""Over HTTP: who is let in, what is too much, and how it ends. Conformance is in test_mcp_transports.py."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CLIENT_CAPABILITIES_META_KEY, PROTOCOL_VERSION_META_KEY
from mcp_types.version import LATEST_MODERN_VERSION

from natterjack import ConfigError
from natterjack.testing import until
from natterjack_mcp import ApiKeyAuth, AuthMiddleware, Caller, HasRole, JWTAuth, MCPServer, ToolContext
from natterjack_mcp.http import Address, serve_http

SECRET = "a secret of thirty-two bytes, or more"
LOOPBACK = Address("127.0.0.1", 0)
OLD = "2025-06-18"


def server_of(auth: JWTAuth | ApiKeyAuth | None) -> MCPServer:
    server = MCPServer("desk")
    server.middleware = [AuthMiddleware(auth)] if auth else []

    @server.tool(guards=[HasRole("writer")])
    async def whoami(ctx: ToolContext) -> str:
        return f"{ctx.caller} by {ctx.caller.attested}"

    return server


@asynccontextmanager
async def served(server: MCPServer, caplog: pytest.LogCaptureFixture) -> AsyncIterator[str]:
    caplog.set_level("INFO", "natterjack.tools")
    serving = asyncio.create_task(serve_http(server, LOOPBACK))
    try:
        await until(lambda: [each for each in caplog.messages if "is served at" in each])
        yield next(each for each in reversed(caplog.messages) if "is served at" in each).rpartition(" ")[2]
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


@pytest.fixture
async def url(caplog: pytest.LogCaptureFixture) -> AsyncIterator[str]:
    async with served(server_of(JWTAuth(SECRET, audience="desk", issuer="office")), caplog) as url:
        yield url


async def post(url: str, body: bytes = b"{}", /, **headers: str) -> httpx2.Response:
    accepted = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    async with httpx2.AsyncClient(timeout=30) as http:
        return await http.post(url, content=body, headers={**accepted, **headers})


async def post_call(url: str, tool: str, **headers: str) -> httpx2.Response:
    """Call a tool, as plain HTTP."""
    meta = {PROTOCOL_VERSION_META_KEY: LATEST_MODERN_VERSION, CLIENT_CAPABILITIES_META_KEY: {}, "progressToken": 1}
    params = {"name": tool, "arguments": {}, "_meta": meta}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    said = {"MCP-Protocol-Version": LATEST_MODERN_VERSION, "Mcp-Method": "tools/call", "Mcp-Name": tool}
    return await post(url, body, **said, **headers)


def payload(**changed: Any) -> dict[str, Any]:
    whole = {"sub": "ann", "roles": ["writer"], "exp": int(time.time()) + 60, "aud": "desk", "iss": "office", **changed}
    return {name: value for name, value in whole.items() if value is not None}


def token(key: Any = SECRET, algorithm: str = "HS256", **changed: Any) -> str:
    return jwt.encode(payload(**changed), key, algorithm)


def public_pem() -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return rsa.generate_private_key(65537, 2048).public_key().public_bytes(serialization.Encoding.PEM, form)


def tampered() -> str:
    head, _, mark = token().split(".")
    return ".".join((head, token(roles=["root"]).split(".")[1], mark))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: token(exp=int(time.time()) - 100),
        lambda: token(exp=None),
        lambda: token(nbf=int(time.time()) + 100),
        lambda: token(None, "none"),
        lambda: token(SECRET * 2, "HS512"),
        lambda: token(rsa.generate_private_key(65537, 2048), "RS256"),
        lambda: token(aud="others"),
        lambda: token(aud=None),
        lambda: token(iss="others"),
        lambda: token(SECRET[::-1]),
        tampered,
        lambda: "nonsense",
        lambda: "x" * 1_000_000,
    ],
)
async def test_a_bad_token_is_refused_with_a_challenge(url: str, bad: Callable[[], str]) -> None:
    answer = await post(url, Authorization=f"Bearer {bad()}")
    assert answer.status_code == 401
    challenge = answer.headers["WWW-Authenticate"]
    assert challenge.startswith('Bearer realm="desk", error="invalid_token", error_description="it')
    assert answer.json()["error"] == "invalid_token"


@pytest.mark.parametrize("shown", [{}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}])
async def test_no_token_is_refused_with_a_challenge(url: str, shown: dict[str, str]) -> None:
    answer = await post(url, **shown)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="desk"')


def test_a_public_key_is_no_secret_of_its_tokens() -> None:
    with pytest.raises(ConfigError, match="a PEM goes to"):
        JWTAuth(secret=public_pem())


async def call(url: str, headers: dict[str, str], mode: str = "auto") -> str:
    async with (
        httpx2.AsyncClient(headers=headers) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        return str((await client.call_tool("whoami")).structured_content)


async def test_callers_at_once_are_told_apart(url: str) -> None:
    names = [f"agent{number}" for number in range(8)]
    modes = ["auto", "legacy"] * 4
    shown = [{"Authorization": f"Bearer {token(sub=name)}"} for name in names]
    found = await asyncio.gather(*(call(url, *each) for each in zip(shown, modes, strict=True)))
    assert found == [f"{{'result': '{name} by jwt'}}" for name in names]


async def test_a_session_is_only_for_who_began_it(url: str) -> None:
    info = {"protocolVersion": OLD, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    begin = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": info}
    begun = await post(url, json.dumps(begin).encode(), Authorization=f"Bearer {token()}")
    session = {"Mcp-Session-Id": begun.headers["Mcp-Session-Id"], "MCP-Protocol-Version": OLD}
    ping = json.dumps({"jsonrpc": "2.0", "id": 2, "method": "ping"}).encode()
    assert (await post(url, ping, Authorization=f"Bearer {token(sub='eve')}", **session)).status_code == 404
    assert (await post(url, ping, Authorization=f"Bearer {token()}", **session)).status_code == 200


async def test_keys_are_shown_in_either_header(caplog: pytest.LogCaptureFixture) -> None:
    key = "k" * 32
    auth = ApiKeyAuth({key: Caller("ann", frozenset({"writer"}))})
    async with served(server_of(auth), caplog) as url:
        for shown in ({"X-API-Key": key}, {"Authorization": f"bearer {key}"}):
            assert await call(url, shown) == "{'result': 'ann by key'}"
        assert (await post(url, **{"X-API-Key": "x" * 32})).status_code == 401


async def test_requests_are_not_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert await call(url, {"Authorization": f"Bearer {token()}"}) == "{'result': 'ann by jwt'}"
    assert [each for each in caplog.records if each.name == "uvicorn.access"] == []


async def test_arguments_of_50_megabytes_are_refused(url: str) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"x": "x" * 50_000_000}}).encode()
    try:
        answer = await post(url, body, Authorization=f"Bearer {token()}")
    except httpx2.TransportError:  # the server may answer and close before all of it is sent
        answer = httpx2.Response(413)
    assert answer.status_code == 413
    assert await call(url, {"Authorization": f"Bearer {token()}"}) == "{'result': 'ann by jwt'}"


async def test_nothing_is_served_to_others_without_a_good_secret(caplog: pytest.LogCaptureFixture) -> None:
    everywhere = Address.read("0.0.0.0:0")
    with pytest.raises(ConfigError, match="does not know its callers"):
        await serve_http(server_of(None), everywhere)
    with pytest.raises(ConfigError, match="A good one, made just now"):
        await serve_http(server_of(JWTAuth("short")), everywhere)
    async with served(server_of(JWTAuth("short")), caplog) as url:  # loopback
        shown = {"Authorization": f"Bearer {JWTAuth('short').token('ann', roles=['writer'])}"}
        assert await call(url, shown) == "{'result': 'ann by jwt'}"


async def test_a_port_that_is_taken_is_told(url: str) -> None:
    taken = Address.read(url.removeprefix("http://").partition("/")[0])
    with pytest.raises(ConfigError, match="cannot listen"):
        await serve_http(server_of(None), taken)


@pytest.mark.parametrize("text", ["8080", "example.com:80", "127.0.0.1:65536", "127.0.0.1:", "127.0.0.1:-1", ""])
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="is no address"):
        Address.read(text)


async def test_calls_under_way_are_answered_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    server, begun, go_on = server_of(None), asyncio.Event(), asyncio.Event()

    @server.tool()
    async def slow() -> str:
        begun.set()
        await go_on.wait()
        return "done"

    async with served(server, caplog) as url:
        calling = asyncio.create_task(post_call(url, "slow"))
        await begun.wait()
        (serving,) = [each for each in asyncio.all_tasks() if getattr(each.get_coro(), "__name__", "") == "serve_http"]
        serving.cancel()
        go_on.set()
        assert (await calling).json()["result"]["structuredContent"] == {"result": "done"}
        assert await asyncio.gather(serving, return_exceptions=True)
        with pytest.raises(httpx2.ConnectError):
            await post_call(url, "slow")


@pytest.mark.parametrize("tells", [False, True], ids=["silent", "streamed"])
async def test_a_call_under_way_ends_with_its_token(
    tells: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack_mcp.http.AGAIN", 0.05)
    server, cancelled = server_of(JWTAuth(SECRET, audience="desk", leeway=0.0)), asyncio.Event()

    @server.tool(guards=[HasRole("writer")])
    async def slow(ctx: ToolContext) -> str:
        try:
            if tells:
                await ctx.progress(1, 3)
            return await asyncio.Future[str]()
        finally:
            cancelled.set()

    async with served(server, caplog) as url:
        shown = token(exp=int(time.time()) + 2)
        answer = await post_call(url, "slow", Authorization=f"Bearer {shown}")
        await asyncio.wait_for(cancelled.wait(), 5)
    if tells:
        assert answer.status_code == 200
        assert "notifications/progress" in answer.text
        assert '"result"' not in answer.text
    else:
        assert answer.status_code == 401
        assert "expired" in answer.json()["error_description"]
    assert any("what ann was answered is cut off: the token is not valid: it has expired" in e for e in caplog.messages)
    assert [each for each in caplog.records if each.levelname == "ERROR"] == []
