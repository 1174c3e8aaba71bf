"""A tool server without a transport: what is served, injected, returned and refused."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from natterjack import ConfigError
from natterjack.testing import until
from natterjack_mcp import (
    All,
    ApiKeyAuth,
    AuthMiddleware,
    Call,
    Caller,
    CallError,
    HasAllRoles,
    HasAllScopes,
    HasAnyRole,
    HasRole,
    HasScope,
    IsAgent,
    MCPServer,
    Not,
    Proceed,
    RequireAuth,
    Result,
    ToolContext,
    ToolError,
    ToolRefusedError,
    UnauthenticatedError,
)
from natterjack_mcp import Any as AnyOf
from natterjack_mcp.guards import Check, refusing

ANNA = Caller.test("anna", roles=["writer", "editor"], scopes=["read"], team=7)
BEN = Caller.test("ben", roles=["reader"])


@pytest.fixture
def server() -> MCPServer:
    return MCPServer("desk")


def request(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


async def listed(server: MCPServer, caller: Caller, what: str = "tools") -> list[str]:
    found = await server.handle(request(f"{what}/list"), caller)
    assert found is not None
    return [each["name"] for each in found["result"][what]]


def one() -> int:
    return 1


def text() -> str:
    return "x"


# Tools


class Book(BaseModel):
    """A book."""

    title: str
    pages: int = 1


@dataclass
class Shelf:
    """A shelf."""

    name: str
    books: list[Book]


async def test_results_are_structured(server: MCPServer) -> None:
    @server.tool()
    async def find(title: str) -> Book:
        return Book(title=title)

    @server.tool()
    def shelves(books: list[Book]) -> list[Shelf]:
        return [Shelf("a", books)]

    @server.tool()
    def plain():  # type: ignore[no-untyped-def]
        return "text"

    @server.tool(name="number", description="Of books.", title="Number")
    async def count() -> int:
        return 3

    assert await server.call("find", {"title": "Ulysses"}) == {"title": "Ulysses", "pages": 1}
    assert await server.call("shelves", {"books": [{"title": "b"}]}) == [
        {"name": "a", "books": [{"title": "b", "pages": 1}]}
    ]
    assert await server.call("plain") == "text"
    assert await server.call("number") == 3
    found = await server.handle(request("tools/list"), Caller())
    assert found is not None
    (number,) = [each for each in found["result"]["tools"] if each["name"] == "number"]
    assert (number["description"], number["title"]) == ("Of books.", "Number")


async def test_the_context_is_injected_annotated_or_not_and_never_shown(server: MCPServer) -> None:
    seen: list[ToolContext] = []

    @server.tool()
    async def bare(text: str, ctx=None) -> str:  # type: ignore[no-untyped-def]
        seen.append(ctx)
        return text

    @server.tool()
    def named(given: ToolContext | None, text: str = "x") -> str:
        assert given is not None
        seen.append(given)
        return text

    assert await server.call("bare", {"text": "a"}, as_caller=ANNA) == "a"
    assert await server.call("named", as_caller=ANNA) == "x"
    for ctx in seen:
        assert (ctx.caller, ctx.roles, ctx.claims["team"]) == (ANNA, ANNA.roles, 7)
        assert ctx.log.name.startswith("natterjack.tools.desk.")
    assert len({ctx.request_id for ctx in seen}) == 2
    found = await server.handle(request("tools/list"), Caller())
    assert found is not None
    shown = [sorted(each["inputSchema"]["properties"]) for each in found["result"]["tools"]]
    assert shown == [["text"], ["text"]]


async def test_what_a_tool_says_is_read_and_what_it_hides_is_not(
    server: MCPServer, caplog: pytest.LogCaptureFixture
) -> None:
    @server.tool()
    async def wrong(kind: str) -> str:
        if kind == "said":
            msg = "no such shelf; there are a and b"
            raise ToolError(msg)
        msg = "password=hunter2"
        raise RuntimeError(msg)

    with pytest.raises(ToolError, match="no such shelf; there are a and b"):
        await server.call("wrong", {"kind": "said"})
    caplog.set_level(logging.ERROR)
    with pytest.raises(ToolError) as caught:
        await server.call("wrong", {"kind": "other"})
    assert "hunter2" not in str(caught.value)
    assert "hunter2" in caplog.text


async def test_wrong_arguments_are_told(server: MCPServer) -> None:
    @server.tool()
    async def add(a: int, b: int) -> int:
        return a + b

    with pytest.raises(ToolError, match=r"(?s)a\n.*valid integer.*b\n.*required"):
        await server.call("add", {"a": "x"})
    with pytest.raises(ToolError, match="Unknown tool"):
        await server.call("subtract")


async def test_a_tool_in_a_thread_stalls_nobody(server: MCPServer) -> None:
    blocked, loops = threading.Event(), threading.get_ident()

    @server.tool()
    def slow() -> bool:
        assert blocked.wait(30)
        return threading.get_ident() != loops

    @server.tool()
    async def quick() -> str:
        return "quick"

    slowly = [asyncio.create_task(server.call("slow")) for _ in range(3)]
    assert await server.call("quick") == "quick"
    blocked.set()
    assert await asyncio.gather(*slowly) == [True, True, True]


async def test_progress_of_coroutines_and_threads(server: MCPServer) -> None:
    @server.tool()
    async def walk(ctx: ToolContext) -> str:
        await ctx.progress(1, 2, "half")
        return "done"

    @server.tool()
    def run(ctx: ToolContext) -> str:
        ctx.progress(2)
        return "done"

    told: list[dict[str, Any]] = []

    async def notify(message: dict[str, Any]) -> None:
        told.append(message["params"])

    for tool in ("walk", "run"):
        await server.handle(request("tools/call", name=tool, arguments={}, _meta={"progressToken": tool}), ANNA, notify)
        await server.handle(request("tools/call", name=tool, arguments={}), ANNA, notify)  # who did not ask for it
    assert told == [
        {"progressToken": "walk", "progress": 1, "total": 2, "message": "half"},
        {"progressToken": "run", "progress": 2},
    ]


async def test_a_cancelled_call_ends_its_tool(server: MCPServer) -> None:
    begun, ended, go_on = asyncio.Event(), asyncio.Event(), threading.Event()
    seen: list[bool] = []

    @server.tool()
    async def forever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    @server.tool()
    def stubborn(ctx: ToolContext) -> None:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(30)
        ctx.progress(1)  # to nobody
        seen.append(ctx.cancelled)

    loop = asyncio.get_running_loop()
    for tool in ("forever", "stubborn"):
        begun.clear()
        calling = asyncio.create_task(server.call(tool))
        await begun.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
    assert ended.is_set()
    go_on.set()
    await until(lambda: seen == [True])


# Resources, prompts, changes


async def test_resources_and_prompts(server: MCPServer) -> None:
    @server.resource("desk://rules", guards=[HasRole("writer")])
    async def rules() -> str:
        return "be brief"

    @server.resource("desk://notes/{name}", mime_type="text/markdown")
    def notes(name: str, ctx: ToolContext) -> str:
        return f"# {name} for {ctx.caller}"

    @server.prompt(guards=[HasRole("writer")])
    def review(text: str, times: int = 1) -> str:
        return f"review {text}" * times

    async def read(uri: str, caller: Caller) -> dict[str, Any]:
        found = await server.handle(request("resources/read", uri=uri), caller)
        assert found is not None
        return found

    assert (await read("desk://rules", ANNA))["result"]["contents"][0]["text"] == "be brief"
    assert (await read("desk://rules", BEN))["error"]["code"] == 403
    found = (await read("desk://notes/x", BEN))["result"]["contents"][0]
    assert (found["text"], found["mimeType"]) == ("# x for ben", "text/markdown")
    ask = request("prompts/get", name="review", arguments={"text": "it", "times": "2"})
    told = await server.handle(ask, ANNA)
    assert told is not None
    assert told["result"]["messages"][0]["content"]["text"] == "review itreview it"
    told = await server.handle(ask, BEN)
    assert told is not None
    assert told["error"]["data"] == {"guard": "HasRole('writer')"}
    assert (await listed(server, ANNA, "prompts"), await listed(server, BEN, "prompts")) == (["review"], [])
    assert (await listed(server, ANNA, "resources"), await listed(server, BEN, "resources")) == (["rules"], [])


async def test_who_listens_is_told_of_changes(server: MCPServer) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def notify(message: dict[str, Any]) -> None:
        await told.put(message["method"])

    wanted = {"toolsListChanged": True, "resourcesListChanged": True, "resourceSubscriptions": ["desk://rules"]}
    listen = request("subscriptions/listen", notifications=wanted)
    listening = asyncio.create_task(server.handle(listen, ANNA, notify))
    assert await told.get() == "notifications/subscriptions/acknowledged"
    server.tool(name="new")(one)
    await server.tools_changed()
    assert await told.get() == "notifications/tools/list_changed"
    server.remove_tool("new")
    assert await listed(server, ANNA) == []
    await server.resources_changed()
    await server.resource_updated("desk://other")
    await server.resource_updated("desk://rules")
    assert [await told.get(), await told.get()] == [
        "notifications/resources/list_changed",
        "notifications/resources/updated",
    ]
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    assert told.empty()


# Who may


async def test_guards_are_asked_for_calls_and_lists(server: MCPServer) -> None:
    @server.tool(guards=[HasRole("writer")])
    async def publish() -> str:
        return "published"

    @server.tool(guards=[HasRole("reader"), RequireAuth()])
    async def search() -> str:
        return "found"

    assert await server.call("publish", as_caller=ANNA) == "published"
    with pytest.raises(ToolRefusedError) as caught:
        await server.call("publish", as_caller=BEN)
    assert str(caught.value) == "ben may not use the tool 'publish' of desk: HasRole('writer') refuses"
    assert caught.value.data == {"guard": "HasRole('writer')"}
    with pytest.raises(PermissionError, match=r"RequireAuth\(\) refuses"):
        await server.call("search", as_caller=Caller("eve", frozenset({"reader"}), attested="claim"))
    assert await listed(server, ANNA) == ["publish"]
    assert await listed(server, BEN) == ["search"]
    assert await listed(server, Caller()) == []


ROLES = st.frozensets(st.sampled_from("abc"))
NAMES = st.sampled_from(["x", "y", ""])


@settings(deadline=None)
@given(roles=ROLES, scopes=ROLES, name=NAMES, asked=st.frozensets(st.sampled_from("abc"), min_size=1))
def test_guards_are_what_they_are_called(
    roles: frozenset[str], scopes: frozenset[str], name: str, asked: frozenset[str]
) -> None:
    caller = Caller.test(name, roles=roles, scopes=scopes)

    async def report(*_: Any) -> None:
        """Tell nobody."""

    ctx = ToolContext("desk", "tools/call", "t", caller, report)

    async def passes(check: Check) -> bool:
        return await refusing([check], ctx) is None

    async def check() -> None:
        first = min(asked)
        assert await passes(HasAnyRole(*asked)) == bool(roles & asked)
        assert await passes(HasAllRoles(*asked)) == (asked <= roles)
        assert await passes(HasRole(first)) == (first in roles)
        assert await passes(HasAllScopes(*asked)) == (asked <= scopes)
        assert await passes(HasScope(first)) == (first in scopes)
        assert await passes(IsAgent("x", "z")) == (name == "x")
        assert await passes(RequireAuth()) == bool(name)
        assert await passes(Not(HasRole(first))) == (first not in roles)
        assert await passes(All(HasRole(first), IsAgent("x"))) == (first in roles and name == "x")
        assert await passes(AnyOf(HasRole(first), IsAgent("x"))) == (first in roles or name == "x")

    asyncio.run(check())


async def test_any_callable_is_a_guard_and_one_that_fails_lets_nobody_pass(
    server: MCPServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def team_seven(ctx: ToolContext) -> bool:
        return bool(ctx.claims["team"] == 7)

    server.tool(name="open", guards=[team_seven])(one)
    server.tool(name="shut", guards=[Not(AnyOf(team_seven))])(one)
    assert await server.call("open", as_caller=ANNA) == 1
    for tool, guard in (("open", "team_seven"), ("shut", "Not(Any(team_seven))")):
        with pytest.raises(ToolRefusedError) as caught:
            await server.call(tool, as_caller=BEN)  # has no such claim: a KeyError
        assert caught.value.data["guard"] == guard
    assert "KeyError" in caplog.text


async def test_a_server_that_knows_its_callers_lets_none_use_what_is_not_guarded(server: MCPServer) -> None:
    server.tool(name="open", public=True)(one)
    server.tool(name="forgotten")(one)
    server.resource("desk://forgotten")(text)
    assert await server.call("forgotten") == 1
    server.middleware = [AuthMiddleware(ApiKeyAuth({"k" * 16: ANNA}))]
    assert await server.call("open", as_caller=ANNA) == 1
    with pytest.raises(ToolRefusedError, match="finds no guard"):
        await server.call("forgotten", as_caller=ANNA)
    with pytest.raises(UnauthenticatedError, match="show an API key"):
        await server.call("open")
    assert await listed(server, ANNA) == ["open"]
    read = await server.handle(request("resources/read", uri="desk://forgotten"), ANNA)
    assert read is not None
    assert read["error"]["code"] == 403


# Middleware


async def test_middleware_stands_around_calls_in_its_order(server: MCPServer) -> None:
    seen: list[str] = []

    def named(name: str) -> Any:
        async def middleware(call: Call, proceed: Proceed) -> Result:
            seen.append(f"{name} {call.tool} {dict(call.arguments)}")
            try:
                return await proceed(Call(call.tool, {"n": call.arguments["n"] + 1}, call.ctx))
            except CallError as error:
                seen.append(f"{name} {type(error).__name__}")
                raise

        return middleware

    server.middleware = [named("outer"), named("inner")]

    @server.tool(guards=[HasRole("writer")])
    async def double(n: int) -> int:
        return 2 * n

    assert await server.call("double", {"n": 1}, as_caller=ANNA) == 6
    assert seen == ["outer double {'n': 1}", "inner double {'n': 2}"]
    seen.clear()
    with pytest.raises(ToolRefusedError):
        await server.call("double", {"n": 1}, as_caller=BEN)
    assert seen[2:] == ["inner ToolRefusedError", "outer ToolRefusedError"]


async def test_middleware_may_answer_itself(server: MCPServer) -> None:
    async def closed(call: Call, proceed: Proceed) -> Result:
        del proceed
        msg = f"{call.tool} is closed on Sundays"
        raise ToolError(msg)

    server.tool(name="shop")(one)
    server.middleware = [closed]
    with pytest.raises(ToolError, match="closed on Sundays"):
        await server.call("shop")


# What is wrong


def test_what_cannot_be_served_is_told(server: MCPServer) -> None:
    server.tool(name="a")(one)
    with pytest.raises(ConfigError, match="has a tool 'a' already"):
        server.tool(name="a")(one)
    with pytest.raises(ConfigError, match="has no tool 'b'"):
        server.remove_tool("b")
    with pytest.raises(ConfigError, match="guards no tool"):
        server.tool(name="c", guards=[HasRole])(one)  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="asks for nothing"):
        HasAnyRole()
    with pytest.raises(ConfigError, match="asks nothing"):
        All()
    with pytest.raises(ConfigError, match="cannot be served"):
        server.resource("desk://{name}")(text)

    def unreadable(x: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Has an annotation that is not there."""

    with pytest.raises(ConfigError, match="'unreadable' cannot be read"):
        server.tool()(unreadable)
    with pytest.raises(ConfigError, match="less than 16"):
        ApiKeyAuth({"short": ANNA})


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"id": 1}, -32600),
        ({"jsonrpc": "2.0", "id": True, "method": "tools/list"}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": [1]}, -32600),
        ({"jsonrpc": "2.0", "id": 1, "method": "nothing"}, -32601),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": 5}}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a", "arguments": 5}}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": ["a"]}}, -32602),
        ({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": 5}}, -32602),
    ],
)
async def test_what_is_no_request_is_an_error(server: MCPServer, message: dict[str, Any], code: int) -> None:
    found = await server.handle(message, ANNA)
    assert found is not None
    assert found["error"]["code"] == code


async def test_a_notification_has_no_answer(server: MCPServer) -> None:
    assert await server.handle({"jsonrpc": "2.0", "method": "notifications/cancelled"}, ANNA) is None
