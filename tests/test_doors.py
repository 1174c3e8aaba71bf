"""Doors that the broker does not guard, HTTP and MCP: revocations, and the team's rules, count there, too."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import INVALID_PARAMS
from typer.testing import CliRunner

from natterjack import Admission, Bus, Envelope, Server, Team, TokenError, Tokens, connect
from natterjack.needs import agent_permissions
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.runtime import start_agent
from natterjack.testing import NatsServer, until
from natterjack_http import HttpTrigger
from natterjack_mcp import AuthMiddleware, JWTAuth, MCPServer, RequireAuth, ToolContext, UnauthenticatedError
from natterjack_mcp.client import NatsTools
from natterjack_mcp.gateway import Gateway
from natterjack_mcp.http import Address, serve_http
from natterjack_mcp.service import NatsService
from natterjack_permissions import credentials
from natterjack_permissions.mint import Mint
from natterjack_permissions.testing import secured_broker

SECRET = "a secret of thirty-two bytes, or more"
TOKENS = Tokens(secret=SECRET)
SCOPES = ("ask", "emit", "read")
KIND = "natterjack.testing.agents:ScriptedAgent"
DOOR = {"http": {"listen": "127.0.0.1:0", "key": "env:DOOR_KEY"}}
TEAM: dict[str, Any] = {
    "external": ["start.it"],
    "context": {"count": 0, "hidden": 1},
    "agents": {
        "alice": {"kind": KIND, "on": [DOOR, "start.*"], "emits": ["alice.*"], "asks": ["bob"], "tools": ["desk"]},
        "bob": {"kind": KIND, "on": "alice.*"},
        "eve": {"kind": KIND},
    },
    "tools": {"desk": {"kind": "mcp", "command": ["true"]}},
    "users": {
        "ci": {"emits": ["start.it"], "asks": ["alice"], "reads": ["count"]},
        "guest": {"asks": ["alice"]},
        "ada": {"operator": True},
    },
}


def team_of(**changed: Any) -> Team:
    return Team.model_validate({**TEAM, **changed})


class Place:
    """A team on a broker in operator mode, with a door of each kind."""

    def __init__(self, folder: Path, login: Server, stack: AsyncExitStack) -> None:
        self.folder, self.login, self._stack = folder, login, stack
        self.http = self.mcp = self.desk = ""
        self.waiting = 0

    async def provision(self, team: Team) -> None:
        bus = await Bus.connect(self.login, principal="operator")
        try:
            await provision(bus, team, Plugins.load())
        finally:
            await bus.close()

    async def start(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "natterjack.tools")
        await self.provision(team_of())
        for name in ("alice", "bob"):
            host, context = await start_agent(name, self.login, plugins=Plugins.load())
            host._agent._answers = self._answer  # type: ignore[attr-defined]
            self._stack.push_async_callback(context.close)
            self._stack.push_async_callback(host.stop, 1.0)
            self.http += "".join(each.url for each in host._triggers if isinstance(each, HttpTrigger))
        server = desk()
        await self._serve(server)
        self.desk = await self._serve_http(server, caplog)
        gateway = Gateway(await self._stack.enter_async_context(connect(self.login)), JWTAuth(SECRET))

        async def there() -> bool:
            await gateway.look(0.3)
            return server.name in gateway._servers

        await until(there)
        self.mcp = await self._serve_http(gateway.server, caplog)

    async def _answer(self, question: str) -> str:
        if question != "wait":
            return ""
        self.waiting += 1
        try:
            return await asyncio.Future[str]()
        finally:
            self.waiting -= 1

    async def _serve_http(self, server: MCPServer, caplog: pytest.LogCaptureFixture) -> str:
        serving = asyncio.create_task(serve_http(server, Address("127.0.0.1", 0)))
        self._stack.push_async_callback(asyncio.wait, [serving])
        self._stack.callback(serving.cancel)
        (said,) = await until(lambda: [each for each in caplog.messages if f"{server.name} is served at" in each])
        return str(said).rpartition(" ")[2]

    async def _serve(self, server: MCPServer) -> None:
        bus = await Bus.connect(self.login, principal=server.name)
        self._stack.push_async_callback(bus.close)
        service = NatsService(server, bus)
        await service.start()
        self._stack.push_async_callback(service.drain, 0.0)

    async def ask(self, token: str, question: str = "x") -> httpx.Response:
        async with httpx.AsyncClient(timeout=20) as client:
            shown = {"Authorization": f"Bearer {token}"}
            return await client.post(f"{self.http}/ask", json={"question": question}, headers=shown)

    @asynccontextmanager
    async def client(self, name: str) -> AsyncIterator[Client]:
        shown = {"Authorization": f"Bearer {TOKENS.mint(name, scopes=SCOPES)}"}
        async with (
            httpx2.AsyncClient(headers=shown, timeout=20) as http,
            Client(streamable_http_client(self.mcp, http_client=http)) as client,
        ):
            yield client

    async def initialize(self, token: str, url: str = "") -> httpx.Response:
        """Return what the gateway, or another server over HTTP, answers to whoever shows this."""
        async with httpx.AsyncClient(timeout=20) as client:
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
            about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
            asked = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about}
            return await client.post(url or self.mcp, json=asked, headers=headers)

    async def call(self, token: str) -> Any:
        """Call a tool over NATS as whom a token names."""
        async with connect(self.login, context=False) as team:
            return await NatsTools("desk", team.bus, token).call("search", {}, timeout=10, envelope=Envelope())

    async def revoke(self, name: str) -> None:
        asked = ["revoke", name, "--out", str(self.folder), "--url", self.login.url]
        done = await asyncio.to_thread(CliRunner().invoke, credentials.app, asked)
        assert done.exit_code == 0, (done.output, done.exception)

    async def refused(self) -> set[tuple[str, str, str]]:
        """Return who was refused what by a door, as the audit has it."""
        async with connect(self.login, context=False) as team:
            found = [json.loads(each.data) async for each in team.bus.read("AUDIT", "audit.*.guard.refuse")]
        return {(each["who"], each["wanted"], each["what"]) for each in found if "who" in each}


def desk() -> MCPServer:
    server = MCPServer("desk")
    server.middleware = [AuthMiddleware(JWTAuth(SECRET))]

    @server.tool(guards=[RequireAuth()])
    def search(ctx: ToolContext) -> str:
        return f"for {ctx.caller}"

    return server


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    folder, granted = tmp_path_factory.mktemp("doors"), agent_permissions(team_of().closed(), attested=True)
    with secured_broker(granted, folder, ["ada"], operator_mode=True, by_token=granted) as (_, login):
        yield folder, login


@pytest.fixture
async def place(
    broker: tuple[Path, Server], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Place]:
    monkeypatch.setenv("DOOR_KEY", SECRET)
    monkeypatch.setattr("natterjack.admission.FRESH", 0.0)
    monkeypatch.setattr("natterjack_mcp.service.TRUST", 0.0)
    monkeypatch.setattr("natterjack_http.callers.AGAIN", 0.1)
    monkeypatch.setattr("natterjack_mcp.http.AGAIN", 0.1)
    async with AsyncExitStack() as stack:
        place = Place(*broker, stack)
        await place.start(caplog)
        yield place


async def test_revoked_tokens_open_no_door_and_later_ones_do(place: Place) -> None:
    old = TOKENS.mint("ci", scopes=SCOPES)
    assert (await place.ask(old)).status_code == (await place.initialize(old)).status_code == 200
    assert (await place.initialize(old, place.desk)).status_code == 200
    assert await place.call(old) == "for ci"
    await place.revoke("ci")
    with pytest.raises(UnauthenticatedError, match="it was revoked"):
        await place.call(old)
    for answer in (await place.ask(old), await place.initialize(old), await place.initialize(old, place.desk)):
        assert answer.status_code == 401
        assert "it was revoked, as were all of its subject" in answer.headers["www-authenticate"]
        assert "it was revoked" in answer.text
    ends = Mint(place.folder).revoked("ci")
    await until(lambda: time.time() > ends + 1)
    new = TOKENS.mint("ci", scopes=SCOPES)
    assert (await place.ask(new)).status_code == (await place.initialize(new)).status_code == 200

    async def written() -> bool:
        return ("ci", "enter", "") in await place.refused()

    await until(written)


async def test_what_is_under_way_ends_when_its_token_is_revoked(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    token = TOKENS.mint("guest", scopes=SCOPES)
    async with place.client("guest") as client, httpx.AsyncClient(timeout=20) as reader:
        shown = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
        async with reader.stream("POST", f"{place.http}/ask", json={"question": "wait"}, headers=shown) as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "event: asked"
            asking = asyncio.create_task(place.ask(token, "wait"))
            calling = asyncio.create_task(client.call_tool("ask_peer", {"agent": "alice", "question": "wait"}))
            await until(lambda: place.waiting == 3)
            await place.revoke("guest")
            read = "".join([line async for line in lines])
        assert "event: problem" in read
        assert "it was revoked" in read
        refused = await asking
        assert refused.status_code == 401
        assert "it was revoked" in refused.text
        with pytest.raises(MCPError, match="error response"):  # the client of MCP tells no more of a 401
            await calling
        await until(lambda: place.waiting == 0)
    assert any("gateway: what guest was answered is cut off" in each for each in caplog.messages)


async def test_the_gateway_lets_callers_do_what_the_team_lets_them(place: Place) -> None:
    refused: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "ci": [
            ("ask_peer", {"agent": "bob", "question": "x"}),
            ("emit", {"type": "alice.forged"}),
            ("get_context", {"key": "hidden"}),
            ("search", {}),
        ],
        "eve": [("ask_peer", {"agent": "bob", "question": "x"}), ("emit", {"type": "start.it"})],
        "nobody": [
            ("ask_peer", {"agent": "alice", "question": "x"}),
            ("emit", {"type": "start.it"}),
            ("get_context", {"key": "count"}),
        ],
    }
    for who, calls in refused.items():
        async with place.client(who) as client:
            for tool, arguments in calls:
                with pytest.raises(MCPError, match=f"'{who}' may not|no tool 'search' that ci may use") as caught:
                    await client.call_tool(tool, arguments)
                assert caught.value.error.code == (INVALID_PARAMS if tool == "search" else 403)

    async def said(client: Client, tool: str, **arguments: Any) -> Any:
        found = await client.call_tool(tool, arguments)
        assert not found.is_error, found
        return (found.structured_content or {}).get("result", found.structured_content)

    async with place.client("ci") as client:
        assert await said(client, "ask_peer", agent="alice", question="x") == ""
        assert await said(client, "emit", type="start.it") > 0
        assert await said(client, "context_keys") == ["count"]
        assert "search" not in {each.name for each in (await client.list_tools()).tools}
    async with place.client("alice") as client:
        assert await said(client, "search") == "for alice"
        assert await said(client, "get_context", key="hidden") == {"key": "hidden", "value": 1}
    async with connect(place.login, context=False) as team:
        assert [each.type async for each in team.event_bus.replay("alice.>")] == []

    async def written() -> bool:
        expected = {("ci", "ask", "bob"), ("ci", "emit", "alice.forged"), ("nobody", "read", "count")}
        return expected <= await place.refused()

    await until(written)


async def test_who_leaves_the_team_gains_nothing(place: Place) -> None:
    token = TOKENS.mint("eve")
    assert (await place.ask(token)).status_code == 403
    await place.provision(team_of(agents={name: TEAM["agents"][name] for name in ("alice", "bob")}))
    for stranger in (token, TOKENS.mint("nobody")):
        answer = await place.ask(stranger)
        assert answer.status_code == 403
        assert "may not ask 'alice': that is for 'ci', 'guest', 'ada', 'operator'" in answer.json()["detail"]

    async def written() -> bool:
        return {("eve", "ask", "alice"), ("nobody", "ask", "alice")} <= await place.refused()

    await until(written)


async def test_the_key_of_tokens_is_no_master_key(place: Place) -> None:
    for operator in ("ada", "operator"):
        token = TOKENS.mint(operator, scopes=SCOPES)
        for answer in (await place.ask(token), await place.initialize(token)):
            assert answer.status_code == 401
            assert "it is an operator's, and none is let in by a token" in answer.text


async def test_a_door_that_cannot_look_lets_nobody_in(place: Place) -> None:
    bus = await Bus.connect(place.login, principal="operator")
    await bus.close()
    with pytest.raises(TokenError, match="whether it was revoked cannot be read"):
        await Admission(bus).admit("ci", {"iat": 2**40})


async def test_a_door_that_cannot_look_does_not_look_for_each_who_waits(
    own_server: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack.admission._PATIENCE", 0.1)
    await provision(bus, team_of(), Plugins.load())
    admission, value, looks = Admission(bus), bus.value, list[str]()

    async def counted(bucket: str, key: str) -> tuple[int, bytes]:
        looks.append(key)
        return await value(bucket, key)

    monkeypatch.setattr(bus, "value", counted)
    own_server.freeze()
    try:
        waiting = [admission.check("ci", "ask", "alice") for _ in range(20)]
        refused = await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        own_server.thaw()
    assert {str(each) for each in refused} == {f"the team cannot be read from {bus.server}: it does not answer"}
    assert len(looks) == 1
    monkeypatch.setattr("natterjack.admission.FRESH", 0.0)
    monkeypatch.setattr("natterjack.admission._PATIENCE", 10.0)
    await admission.check("ci", "ask", "alice")


async def test_a_door_forgets_nothing_where_the_team_cannot_be_found(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.admission.FRESH", 0.0)
    await provision(bus, team_of(), Plugins.load())
    admission = Admission(bus)
    await admission.revoke({"ci": int(time.time())})
    with pytest.raises(TokenError, match="it was revoked"):
        await admission.admit("ci", {"iat": 1})
    await bus.api("STREAM.DELETE.KV_team")
    with pytest.raises(TokenError, match="it was revoked"):
        await admission.admit("ci", {"iat": 1})
