"""The gateway: an ordinary client reaches the tool servers of a team, and the team itself, through one endpoint."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.subscriptions import ResourceUpdated, ToolsListChanged
from typer.testing import CliRunner

from natterjack import (
    AgentContext,
    AgentProcess,
    AgentRuntime,
    Bus,
    ConfigError,
    EventTrigger,
    Message,
    Server,
    connect,
)
from natterjack.testing import NatsServer, ScriptedAgent, until
from natterjack_mcp import (
    AuthMiddleware,
    HasRole,
    JWTAuth,
    MCPServer,
    StdioServerSpec,
    ToolBusyError,
    ToolContext,
    ToolError,
    gateway,
)
from natterjack_mcp.catalog import Item, by_name
from natterjack_mcp.commands import app
from natterjack_mcp.gateway import Gateway
from natterjack_mcp.http import Address, serve_http
from natterjack_mcp.service import NatsService, Served
from natterjack_mcp.teamtools import SCOPES

pytestmark = pytest.mark.full  # real processes for each test: CI has 15 minutes

SECRET = "a secret of thirty-two bytes, or more"
CHILD = """\
from natterjack_mcp import MCPServer

server = MCPServer("child")


@server.resource("child://rules")
def rules() -> str:
    return "be brief"


@server.tool()
async def touch() -> None:
    await server.resource_updated("child://rules")


if __name__ == "__main__":
    server.run(stdio=True)
"""
AUTH, OTHERS = JWTAuth(SECRET), JWTAuth(SECRET[::-1])


def desk() -> MCPServer:
    """A server that knows its callers by their tokens."""
    server = MCPServer("desk")
    server.middleware = [AuthMiddleware(AUTH)]

    @server.tool(guards=[HasRole("researcher")])
    async def search(query: str, ctx: ToolContext) -> list[str]:
        """Search the desk."""
        return [f"{query} for {ctx.caller} by {ctx.caller.attested}"]

    @server.tool(guards=[HasRole("writer")])
    def publish(title: str, ctx: ToolContext) -> str:
        return f"{title} by {ctx.caller}"

    return server


class Shelf:
    """A server that takes a caller's word for who it is, and what happened to its calls."""

    def __init__(self) -> None:
        self.server = MCPServer("shelf")
        self.begun, self.ended, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        for name in ("search", "whoami", "count", "wait", "fail", "refuse"):
            self.server.tool()(getattr(self, name))
        self.server.tool(name="b.c")(self.whoami)
        self.server.tool(name="emit")(self.whoami)
        self.server.resource("shelf://rules")(self.rules)
        self.server.resource("shelf://book/{name}")(self.book)
        self.server.prompt(name="greet.all")(self.greet)

    async def search(self, query: str) -> str:
        return f"{query} on the shelf"

    async def whoami(self, ctx: ToolContext) -> list[str]:
        return [str(ctx.caller), ctx.caller.attested, *sorted(ctx.roles)]

    async def count(self, to: int, ctx: ToolContext) -> int:
        for number in range(to):
            await ctx.progress(number + 1, to, "counting")
        return to

    async def wait(self) -> str:
        self.begun.set()
        try:
            await self.go_on.wait()
        finally:
            self.ended.set()
        return "waited"

    async def fail(self, deliberately: bool) -> None:
        raise ToolError("the shelf is empty") if deliberately else RuntimeError("hunter2")

    async def refuse(self) -> None:
        raise ToolBusyError("not now", {"retryAfter": 3})

    async def rules(self) -> str:
        return "be brief"

    async def book(self, name: str) -> str:
        return f"the book {name}"

    async def greet(self, name: str) -> str:
        return f"Greet {name}."


class Team:
    """A team with an agent, and the gateway in front of it."""

    def __init__(
        self, nats: NatsServer, stack: AsyncExitStack, log: pytest.LogCaptureFixture, patch: pytest.MonkeyPatch
    ) -> None:
        self.nats, self.stack, self._log, self.patch = nats, stack, log, patch.setattr
        self.go_on, self.given_up = asyncio.Event(), asyncio.Event()
        self.agent = ScriptedAgent(results="done", answers=self._answer)
        self.shelf, self.url = Shelf(), ""

    async def _answer(self, question: str) -> str:
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        return f"no idea of {question}"

    async def start(self, auth: JWTAuth | None) -> None:
        context = AgentContext()
        context.set("findings.a", {"title": "Toads"})
        runtime = AgentRuntime(self.nats.url, context=context)
        runtime.add_process(AgentProcess("ben", agent=self.agent, triggers=[EventTrigger("work.due")]))
        self.runtime = await self.stack.enter_async_context(runtime)
        self.known = "broker" if runtime.server.attests else "claim"
        await self.serve(desk())
        await self.serve(self.shelf.server)
        await self.open(auth)

    async def serve(self, server: Served) -> NatsService:
        bus = await Bus.connect(Server(self.nats.url), principal=server.name)
        self.stack.push_async_callback(bus.close)
        service = NatsService(server, bus)
        await service.start()
        self.stack.push_async_callback(service.drain, 0.0)
        return service

    async def open(self, auth: JWTAuth | None) -> None:
        self._log.set_level("INFO", "natterjack.tools")
        made = Gateway(await self.stack.enter_async_context(connect(self.nats.url)), auth)
        await made.look()
        for way in (serve_http(made.server, Address("127.0.0.1", 0)), made.follow()):
            self.stack.push_async_callback(self._shut, asyncio.create_task(way))
        await until(self._lines)
        self.url = self._lines()[-1].rpartition(" ")[2]

    def _lines(self) -> list[str]:
        return [each for each in self._log.messages if each.startswith("gateway is served at")]

    async def _shut(self, serving: asyncio.Task[None]) -> None:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    @asynccontextmanager
    async def client(self, token: str | None = None, mode: Any = "auto") -> AsyncIterator[Client]:
        shown = {"Authorization": f"Bearer {token}"} if token else {}
        async with (
            httpx2.AsyncClient(headers=shown, timeout=30) as http,
            Client(streamable_http_client(self.url, http_client=http), mode=mode) as client,
        ):
            yield client


@pytest.fixture
async def team(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Team]:
    monkeypatch.setattr(gateway, "EVERY", 0.05)
    monkeypatch.setattr(gateway, "WINDOW", 0.2)
    async with AsyncExitStack() as stack:
        yield Team(own_server, stack, caplog, monkeypatch)


def token(name: str, *roles: str, scopes: tuple[str, ...] = ()) -> str:
    return AUTH.token(name, roles=roles, scopes=scopes)


async def names(client: Client) -> set[str]:
    return {each.name for each in (await client.list_tools()).tools}


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    found = await client.call_tool(tool, arguments)
    assert not found.is_error, found.content
    content = found.structured_content or {}
    return content["result"] if content.keys() == {"result"} else content


SHELF = {"whoami", "count", "wait", "fail", "refuse", "b_c", "shelf_emit"}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_two_callers_find_and_call_what_is_theirs(team: Team, mode: str) -> None:
    await team.start(AUTH)
    async with team.client(token("ann", "researcher"), mode) as ann, team.client(token("eve", "writer"), mode) as eve:
        assert await names(ann) == {"desk_search", "shelf_search", *SHELF}
        assert await names(eve) == {"search", "publish", *SHELF}
        assert await call(ann, "desk_search", query="toads") == ["toads for ann by jwt"]
        assert await call(ann, "shelf_search", query="toads") == "toads on the shelf"
        assert await call(eve, "search", query="toads") == "toads on the shelf"
        assert await call(eve, "shelf_search", query="toads") == "toads on the shelf"
        assert await call(eve, "publish", title="Toads") == "Toads by eve"
        assert await call(ann, "whoami") == ["ann", team.known, "ann"]
        assert await call(ann, "b_c") == await call(ann, "shelf_emit") == ["ann", team.known, "ann"]
        with pytest.raises(MCPError, match="'search' is of several servers; say desk_search or shelf_search"):
            await ann.call_tool("search", {"query": "toads"})
        with pytest.raises(MCPError, match="there is no tool 'publish' that ann may use"):
            await ann.call_tool("publish", {"title": "Toads"})


async def test_what_tools_tell_passes_through(team: Team) -> None:
    await team.start(AUTH)
    told: list[tuple[float, float | None, str | None]] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    async with team.client(token("ann")) as ann:
        assert (await ann.call_tool("count", {"to": 2}, progress_callback=report)).structured_content == {"result": 2}
        said = await ann.call_tool("fail", {"deliberately": True})
        crashed = await ann.call_tool("fail", {"deliberately": False})
        wrong = await ann.call_tool("count", {"to": "many"})
        assert [each.is_error for each in (said, crashed, wrong)] == [True] * 3
        assert "the shelf is empty" in str(said.content)
        assert "hunter2" not in str(crashed.content)
        assert "valid integer" in str(wrong.content)
        with pytest.raises(MCPError, match="not now") as caught:
            await ann.call_tool("refuse")
        assert (caught.value.error.code, caught.value.error.data) == (429, {"retryAfter": 3})
        with pytest.raises(MCPError, match="bytes"):
            await ann.call_tool("shelf_search", {"query": "x" * 2_000_000})
    assert told == [(1, 2, "counting"), (2, 2, "counting")]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_call_that_is_given_up_ends_at_its_server(team: Team, mode: str) -> None:
    await team.start(None)
    async with team.client(mode=mode) as client:
        for tool, arguments, begun, ended in (
            ("wait", {}, team.shelf.begun.is_set, team.shelf.ended),
            ("ask_peer", {"agent": "ben", "question": "hm"}, lambda: team.agent.questions, team.given_up),
        ):
            waiting = asyncio.create_task(client.call_tool(tool, arguments))
            await until(begun)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            async with asyncio.timeout(10):
                await ended.wait()
        assert await names(client) >= {"wait", "ask_peer"}  # the connection is of use as before


async def test_resources_and_prompts_are_those_of_all_servers(team: Team) -> None:
    await team.start(AUTH)
    async with team.client(token("ann")) as ann:
        assert [str(each.uri) for each in (await ann.list_resources()).resources] == ["shelf://rules"]
        templates = (await ann.list_resource_templates()).resource_templates
        assert [each.uri_template for each in templates] == ["shelf://book/{name}"]
        assert "be brief" in (await ann.read_resource("shelf://rules")).model_dump_json()
        assert "the book Toads" in (await ann.read_resource("shelf://book/Toads")).model_dump_json()
        assert [each.name for each in (await ann.list_prompts()).prompts] == ["greet_all"]
        assert "Greet Eve" in (await ann.get_prompt("greet_all", {"name": "Eve"})).model_dump_json()
        for wrong in (ann.read_resource("shelf://nothing"), ann.get_prompt("nothing")):
            with pytest.raises(
                MCPError, match=r"there is no (resource|prompt) '.*nothing' that ann may use|Unknown resource"
            ):
                await wrong


# Servers that come and go


async def test_a_server_is_seen_when_it_starts_and_forgotten_when_it_stops(team: Team) -> None:
    await team.start(AUTH)
    late = MCPServer("late")

    @late.tool()
    async def search(query: str) -> str:
        return f"{query}, at last"

    async with team.client(token("eve", "writer")) as eve, eve.listen(tools_list_changed=True) as changes:
        assert await call(eve, "search", query="toads") == "toads on the shelf"
        service = await team.serve(late)
        async with asyncio.timeout(20):
            assert await anext(aiter(changes)) == ToolsListChanged()
        assert await names(eve) == {"late_search", "shelf_search", "publish", *SHELF}
        assert await call(eve, "late_search", query="toads") == "toads, at last"
        await service.drain(1)
        async with asyncio.timeout(20):
            assert await anext(aiter(changes)) == ToolsListChanged()
        assert await names(eve) == {"search", "publish", *SHELF}
        assert await call(eve, "search", query="toads") == "toads on the shelf"
        with pytest.raises(MCPError, match="there is no tool 'late_search' that eve may use"):
            await eve.call_tool("late_search", {"query": "toads"})


async def test_a_server_that_stops_is_missed_by_its_callers_at_once(team: Team) -> None:
    await team.start(None)
    late = MCPServer("late")
    late.tool(name="ping")(team.shelf.rules)
    async with team.client() as client:
        service = await team.serve(late)

        async def seen() -> bool:
            return "ping" in await names(client)

        await until(seen)
        team.patch(gateway, "EVERY", 600.0)  # nobody looks again
        await service.drain(1)
        with pytest.raises(MCPError, match="'late' cannot be reached: nobody serves it") as caught:
            await client.call_tool("ping")
        assert caught.value.error.code == 503
        assert "ping" not in await names(client)


async def test_changes_that_a_server_tells_are_told(team: Team) -> None:
    await team.start(AUTH)
    async with (
        team.client(token("ann")) as ann,
        ann.listen(tools_list_changed=True, resource_subscriptions=["shelf://rules"]) as changes,
    ):
        await team.shelf.server.resource_updated("shelf://rules")
        team.shelf.server.tool(name="more")(team.shelf.rules)
        await team.shelf.server.tools_changed()
        async with asyncio.timeout(20):
            assert await anext(aiter(changes)) == ResourceUpdated(uri="shelf://rules")
            assert await anext(aiter(changes)) == ToolsListChanged()
        assert await call(ann, "more") == "be brief"


async def test_changes_behind_a_bridge_are_told(team: Team, tmp_path: Path) -> None:
    await team.start(AUTH)
    (tmp_path / "child.py").write_text(CHILD)
    bridge = StdioServerSpec("python", ["-m", "child"], cwd=str(tmp_path)).bridge("child")
    await bridge.start()
    team.stack.push_async_callback(bridge.close)
    await team.serve(bridge)
    async with team.client(token("ann")) as ann:

        async def seen() -> bool:
            return "touch" in await names(ann)

        await until(seen)
        async with ann.listen(resource_subscriptions=["child://rules"]) as changes:

            async def touched() -> bool:
                await ann.call_tool("touch")
                return told.done()

            told = asyncio.ensure_future(anext(aiter(changes)))
            await until(touched)
            assert await told == ResourceUpdated(uri="child://rules")


# The team itself


@pytest.mark.open_mode(reason="a stranger hears no other's questions")
async def test_each_scope_lets_do_its_part(team: Team) -> None:
    await team.start(AUTH)
    team.go_on.set()
    bus, askers = await Bus.connect(Server(team.nats.url), principal="ears"), list[str]()

    async def hear(message: Message) -> None:
        askers.append(bus.envelope_of(message).source)

    await bus.subscribe("agents.ask.ben", hear)
    async with team.client(token("ann", scopes=("ask",))) as ann:
        assert await names(ann) & set(SCOPES) == {"ask_peer"}
        assert await call(ann, "ask_peer", agent="ben", question="toads") == "no idea of toads"
        for tool in ("emit", "get_context", "context_keys"):
            with pytest.raises(MCPError, match=rf"ann may not use the tool '{tool}' of gateway: HasScope\('") as caught:
                await ann.call_tool(tool, {"type": "work.due", "key": "findings.a"})
            assert caught.value.error.code == 403
    assert askers == ["ann"]
    await bus.close()
    async with team.client(token("eve", scopes=("emit", "read"))) as eve:
        assert await names(eve) & set(SCOPES) == {"emit", "get_context", "context_keys"}
        await call(eve, "emit", type="work.due", data={"of": "eve"})
        (event,) = await team.agent.handled(1)
        assert (event.type, event.data) == ("work.due", {"of": "eve"})
        assert await call(eve, "get_context", key="findings.a") == {"key": "findings.a", "value": {"title": "Toads"}}
        assert await call(eve, "context_keys", pattern="findings.*") == ["findings.a"]


async def test_without_tokens_the_team_is_open_and_callers_are_nobody(team: Team) -> None:
    await team.start(None)
    team.go_on.set()
    async with team.client() as client:
        assert await names(client) == {"search", *SHELF, *SCOPES}
        assert await call(client, "ask_peer", agent="ben", question="toads") == "no idea of toads"
        assert await call(client, "whoami") == ["nobody", ""]
        with pytest.raises(MCPError, match="there is no tool 'publish' that nobody may use"):
            await client.call_tool("publish", {"title": "Toads"})


@pytest.mark.parametrize(
    ("tool", "arguments", "text"),
    [
        ("ask_peer", {"agent": "bne", "question": "hm"}, "nobody"),
        ("ask_peer", {"agent": "BEN!", "question": "hm"}, "BEN!"),
        ("ask_peer", {"agent": "ben", "question": "hm", "timeout": 0.1}, "no answer within"),
        ("emit", {"type": "..", "data": 1}, "'..'"),
        ("get_context", {"key": "findings.b"}, "no key 'findings.b'; did you mean findings.a?"),
        ("context_keys", {"pattern": "a..b"}, "a..b"),
    ],
)
async def test_what_is_wrong_is_told(team: Team, tool: str, arguments: dict[str, Any], text: str) -> None:
    await team.start(None)
    async with team.client() as client:
        found = await client.call_tool(tool, arguments)
        assert found.is_error
        assert text in str(found.content)


# Who is let in, and how it ends


@pytest.mark.parametrize("key", [SECRET, pytest.param("", marks=pytest.mark.full)])
async def test_the_command_tells_where_it_is_and_how_to_be_known_and_ends_in_order(team: Team, key: str) -> None:
    await team.start(None)
    command = ["-m", "natterjack", "tools", "gateway", "--http", "127.0.0.1:0", *(["--audience", "x"] if key else [])]
    env = {**os.environ, "NATS_URL": team.nats.url, "NATTERJACK_TOKEN_KEY": key}
    process = await asyncio.create_subprocess_exec(sys.executable, *command, env=env, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    try:
        lines = list[str]()
        while not lines or "is served at" not in lines[-1]:
            lines.append((await asyncio.wait_for(process.stderr.readline(), 40)).decode())
            assert lines[-1], lines
        said = "natterjack token mint NAME --scope ask --scope emit --scope read --audience x" if key else "no token"
        assert said in "".join(lines)
        team.url = lines[-1].split()[-1]
        async with team.client(JWTAuth(SECRET, audience="x").token("ann")) as ann:
            assert "wait" in await names(ann)  # or the client asks for it afterwards, when nobody answers any more
            waiting = asyncio.create_task(call(ann, "wait"))
            await team.shelf.begun.wait()
            process.terminate()
            team.shelf.go_on.set()
            assert await asyncio.wait_for(waiting, 20) == "waited"
        assert await asyncio.wait_for(process.wait(), 20) == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--audience", "x"], "there is no key to verify them: set NATTERJACK_TOKEN_KEY"),
        (["--jwks", "http://x", "--public-key", "x.pem"], "--jwks and --public-key are both given"),
        (["--public-key", "nowhere.pem"], "nowhere.pem"),
    ],
)
def test_what_is_no_key_is_told(args: list[str], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATTERJACK_TOKEN_KEY", raising=False)
    done = CliRunner().invoke(app, ["gateway", "--http", "127.0.0.1:0", *args])
    assert isinstance(done.exception, ConfigError)
    assert text in str(done.exception)


async def test_who_shows_no_good_token_is_refused_with_a_challenge(team: Team) -> None:
    await team.start(AUTH)
    async with httpx2.AsyncClient() as http:
        for shown in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": f"Bearer {OTHERS.token('ann')}"}):
            answer = await http.post(team.url, json={}, headers=shown)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="gateway"')


async def test_off_loopback_it_knows_its_callers(team: Team) -> None:
    await team.start(None)
    async with connect(team.nats.url) as client:
        for auth, text in ((None, "does not know its callers"), (JWTAuth("short"), "A good one, made just now")):
            with pytest.raises(ConfigError, match=text):
                await serve_http(Gateway(client, auth).server, Address("0.0.0.0", 0))


# Names


def item(server: str, name: str) -> Item:
    return Item(server, {"name": name})


def test_names_are_unique_and_such_as_clients_take() -> None:
    items = [item("a", "x"), item("a", "b.c"), item("a", "b/c"), item("b", "x"), item("b", "emit"), item("b", "y" * 99)]
    found = by_name(items, taken={"emit"})
    assert list(found) == ["a_x", "a_b_c", "a_b_c_2", "b_x", "b_emit", "y" * 64]
    assert list(found.values()) == items


@given(st.lists(st.tuples(st.sampled_from("ab"), st.text(min_size=1, max_size=80)), max_size=12))
def test_any_names_are(pairs: list[tuple[str, str]]) -> None:
    found = by_name([item(*each) for each in pairs], taken=SCOPES)
    assert len(found) == len(pairs)
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,64}", each) and each not in SCOPES for each in found)
