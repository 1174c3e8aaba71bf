"""Over NATS: replicas, who calls, what is refused, and how it ends. Conformance is in test_mcp_transports.py."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.shared.subscriptions import ResourceUpdated

from natterjack import (
    AgentProcess,
    AgentRuntime,
    Bus,
    Envelope,
    InvalidNameError,
    PayloadError,
    RunContext,
    Server,
    StartError,
    ToolSubjects,
)
from natterjack.testing import NatsServer, until
from natterjack_mcp import (
    AuditMiddleware,
    AuthMiddleware,
    CallError,
    HasRole,
    JWTAuth,
    MCPServer,
    NatsServerSpec,
    RateLimitMiddleware,
    ToolBusyError,
    ToolContext,
    ToolError,
    ToolRefusedError,
    ToolTimeoutError,
    ToolUnavailableError,
    UnauthenticatedError,
    nats_client,
    wire,
)
from natterjack_mcp.audit import verify_file
from natterjack_mcp.client import NatsTools
from natterjack_mcp.service import NatsService

AUTH = JWTAuth("a secret of thirty-two bytes, or more")


class Desk:
    """A server, and what happened to its calls."""

    def __init__(self) -> None:
        self.server = MCPServer("desk", version="1.2.3")
        self.began: list[str] = []
        self.ended: list[str] = []
        self.go_on = asyncio.Event()
        self.server.tool()(self.echo)
        self.server.tool()(self.whoami)
        self.server.tool(guards=[HasRole("writer")])(self.publish)
        self.server.tool(idempotent=True)(self.wait)
        self.server.tool(name="b.c")(self.wait_once)
        self.server.tool()(self.fill)

    async def echo(self, text: str) -> str:
        return text

    async def whoami(self, ctx: ToolContext) -> list[str]:
        return [str(ctx.caller), ctx.caller.attested, *sorted(ctx.roles)]

    async def publish(self) -> str:
        return "published"

    async def wait(self) -> str:
        """Wait, as often as one likes."""
        self.began.append("wait")
        try:
            await self.go_on.wait()
        finally:
            self.ended.append("wait")
        return "waited"

    async def wait_once(self) -> str:
        return await self.wait()

    async def fill(self, size: int) -> str:
        return "x" * size


class Place:
    """A server of NATS with what stands on it, all of it let go in the end."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url, self.stack, self.name = url, stack, f"desk-{secrets.token_hex(4)}"

    async def bus(self, principal: str) -> Bus:
        bus = await Bus.connect(Server(self.url), principal=principal)
        self.stack.push_async_callback(bus.close)
        return bus

    async def serve(self, desk: Desk, **more: Any) -> NatsService:
        service = NatsService(desk.server, await self.bus(self.name), self.name, **more)
        await service.start()
        self.stack.push_async_callback(service.drain, 0.0)
        return service

    async def caller(self, name: str = "ann", token: str | None = None) -> NatsTools:
        return NatsTools(self.name, await self.bus(name), token)


@pytest.fixture
async def place(nats_server: NatsServer) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        yield Place(nats_server.url, stack)


def call(tools: NatsTools, tool: str, timeout: float = 20.0, **arguments: Any) -> Awaitable[Any]:
    return tools.call(tool, arguments, timeout=timeout, envelope=Envelope())


# Who calls


async def test_a_caller_is_who_it_says_or_whom_its_token_names(place: Place) -> None:
    roles = {"ann": frozenset({"writer", "editor"})}
    await place.serve(Desk(), roles_of=lambda name: roles.get(name, frozenset()))
    ann = await place.caller("ann")
    known = "broker" if (await place.bus("ann")).server.attests else "claim"
    assert await call(ann, "whoami") == ["ann", known, "editor", "writer"]
    assert await call(ann, "publish") == "published"
    ben = await place.caller("ben")
    assert await call(ben, "whoami") == ["ben", known]
    with pytest.raises(ToolRefusedError, match=r"HasRole\('writer'\) refuses"):
        await call(ben, "publish")
    assert "publish" not in {each.tool for each in await ben.list(timeout=5)}


@pytest.mark.open_mode(reason="the broker knows the callers, so no token is wanted")
async def test_a_server_that_knows_its_callers_wants_a_token(place: Place) -> None:
    desk = Desk()
    desk.server.middleware = [AuthMiddleware(AUTH)]
    await place.serve(desk)
    with pytest.raises(UnauthenticatedError, match="show a token"):
        await call(await place.caller("ann"), "publish")
    with pytest.raises(UnauthenticatedError, match="not valid"):
        await call(await place.caller("ann", "nonsense"), "publish")
    assert await call(await place.caller("x", AUTH.token("ann", roles=["writer"])), "publish") == "published"


async def test_the_teams_table_decides_before_the_server(place: Place) -> None:
    await place.serve(Desk(), admits=lambda tool, caller, roles: tool == "echo" and "ann" in roles and caller == "ann")
    ann, ben = await place.caller("ann"), await place.caller("ben")
    assert await call(ann, "echo", text="a") == "a"
    assert [each.tool for each in await ann.list(timeout=5)] == ["echo"]
    assert await ben.list(timeout=5) == []
    for tools, tool in ((ann, "whoami"), (ben, "echo")):
        with pytest.raises(ToolRefusedError, match="the team's `roles` do not name it") as caught:
            await call(tools, tool)
        assert caught.value.data == {"guard": "roles"}


# What is refused


async def ask(place: Place, subject: str, message: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
    bus = await place.bus("stranger")
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    found: dict[str, Any] = json.loads((await bus.request(subject, data, timeout=5, headers=headers)).data)
    return found


def drawer() -> str:
    return "a letter"


async def test_who_reads_what_a_bridge_serves_the_table_decides_too(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk()
    desk.server.resource("desk://drawer")(drawer)
    desk.server.prompt("greet")(drawer)
    desk.server.guards_all = False  # as a bridge is
    admitted = {("resources", "ann"), ("prompts", "ben")}
    await place.serve(desk, admits=lambda what, name, _: (what, name) in admitted)
    wanted = {"resources/read": {"uri": "desk://drawer"}, "prompts/get": {"name": "greet"}}
    for name, method in (("ann", "prompts/get"), ("ben", "resources/read"), ("eve", "prompts/get")):
        with pytest.raises(ToolRefusedError, match=f"{name} may not use the {method.partition('/')[0]} of"):
            await (await place.caller(name)).ask(method, wanted[method], timeout=10)
    for name, method in (("ann", "resources/read"), ("ben", "prompts/get")):
        assert await (await place.caller(name)).ask(method, wanted[method], timeout=10)


async def test_what_the_table_refuses_is_audited(place: Place, tmp_path: Path) -> None:
    desk = Desk()
    desk.server.middleware = [AuditMiddleware(tmp_path)]
    await place.serve(desk, admits=lambda tool, name, _: (tool, name) == ("echo", "ann"))
    ann = await place.caller("ann")
    assert await call(ann, "echo", text="x") == "x"
    with pytest.raises(ToolRefusedError):
        await call(ann, "fill", size=3)
    (file,) = await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
    done, refused = (json.loads(line) for line in (await asyncio.to_thread(file.read_text)).splitlines())
    assert (done["tool"], done["outcome"]) == ("echo", "done")
    assert (refused["tool"], refused["caller"], refused["arguments"]) == ("fill", "ann", {"size": 3})
    assert refused["outcome"].startswith("ToolRefusedError: ann may not use the tool 'fill'")
    assert not verify_file(file).problem


async def test_arguments_may_not_be_larger_than_any_transport_takes() -> None:
    desk = Desk()
    with pytest.raises(CallError, match="the arguments have 50,000,011 bytes of at most 4,194,304"):
        await desk.server.call("echo", {"text": "x" * 50_000_000})


def request(method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


async def test_what_stands_on_another_subject_is_refused(place: Place) -> None:
    await place.serve(Desk())
    own = ToolSubjects(place.name)
    good = await ask(place, own.call("echo"), request("tools/call", name="echo", arguments={"text": "a"}))
    assert good["result"]["structuredContent"] == {"result": "a"}
    wrong = [
        (own.call("echo"), request("tools/call", name="publish")),
        (own.call("echo"), request("tools/call")),
        (own.call("echo"), request("tools/list")),
        (own.call("ECHO"), request("tools/call", name="echo")),
        (own.call("echo").replace("echo", "~65cho"), request("tools/call", name="echo")),
        (own.method("tools/call"), request("tools/call", name="echo")),
        (own.method("tools/list"), request("tools/call", name="echo")),
        (own.method("tools/list"), request("prompts/list")),
        (own.method("tools/list"), {"id": 7}),
    ]
    for subject, message in wrong:
        answer = await ask(place, subject, message)
        assert (answer["id"], answer["error"]["code"]) == (7, -32600), message
        assert answer["error"]["message"].startswith("the subject is for "), message


async def test_what_is_no_request_is_told(place: Place) -> None:
    await place.serve(Desk())
    own = ToolSubjects(place.name)
    for data in (b"", b"{", b"[]", b"\xff", b"7"):
        assert (await ask(place, own.method("tools/list"), data))["error"]["code"] == -32700
    malformed = await ask(place, own.method("tools/list"), request("tools/list"), {"Natterjack": "d=x"})
    assert malformed["error"]["code"] == -32600
    nothing = await ask(place, own.method("no/such"), request("no/such"))
    assert nothing["error"]["code"] == -32601
    other = await ask(place, own.call("echo"), request("tools/call", name="echo", arguments={"text": 1}))
    assert other["result"]["isError"]


async def test_what_is_too_large(place: Place) -> None:
    await place.serve(Desk())
    ann = await place.caller()
    with pytest.raises(PayloadError):
        await call(ann, "echo", text="x" * 50_000_000)
    with pytest.raises(PayloadError, match="cannot be sent as JSON"):
        await call(ann, "echo", text=object())
    with pytest.raises(CallError, match="more than a message may have") as caught:
        await call(ann, "fill", size=2_000_000)
    assert type(caught.value) is CallError
    with pytest.raises(ToolError, match="valid string"):
        await call(ann, "echo", text=1)
    with pytest.raises(InvalidNameError):
        await call(ann, "")
    assert await call(ann, "echo", text="a") == "a"


async def test_nobody_is_there(place: Place) -> None:
    with pytest.raises(ToolUnavailableError, match="cannot be reached: nobody serves it"):
        await call(await place.caller(), "echo", text="a")


# Replicas


async def test_replicas_share_the_work_and_are_seen(place: Place) -> None:
    desks = [Desk(), Desk()]
    for desk in desks:
        await place.serve(desk)
    ann = await place.caller()
    waiting = [asyncio.create_task(asyncio.wait_for(call(ann, "wait"), 20)) for _ in range(20)]
    await until(lambda: sum(len(desk.began) for desk in desks) == 20)
    assert all(desk.began for desk in desks)
    for desk in desks:
        desk.go_on.set()
    assert await asyncio.gather(*waiting) == ["waited"] * 20
    bus = await place.bus("operator")
    found = [json.loads(each.data) for each in await bus.gather(f"$SRV.STATS.{place.name}", window=0.3)]
    assert len(found) == 2
    assert sum(each["endpoints"][0]["num_requests"] for each in found) == 20
    (info, _) = [json.loads(each.data) for each in await bus.gather(f"$SRV.INFO.{place.name}", window=0.3)]
    assert info["version"] == "1.2.3"
    assert info["metadata"]["natterjack"] == "tools"
    assert info["endpoints"][0]["queue_group"] == "tools"


async def test_replicas_count_calls_together(place: Place, own_server: NatsServer) -> None:
    place.url = own_server.url
    async with AgentRuntime(own_server.url):  # provisions
        pass
    counted = []
    for _ in range(2):
        desk = Desk()
        desk.server.middleware = [RateLimitMiddleware(5, per=3600)]
        await place.serve(desk)
        counted.append(desk)
    ann, ben = await place.caller("ann"), await place.caller("ben")
    found = await asyncio.gather(*(call(ann, "echo", text="x") for _ in range(20)), return_exceptions=True)
    assert found.count("x") == 5
    assert all(isinstance(each, ToolBusyError) and each.data["retryAfter"] > 0 for each in found if each != "x")
    assert await call(ben, "echo", text="x") == "x"


async def test_calls_are_counted_by_one_process_where_the_team_has_no_place_for_it(
    place: Place, own_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    place.url = own_server.url  # on the others' somebody may have provisioned
    desk = Desk()
    desk.server.middleware = [RateLimitMiddleware(1, per=3600)]
    await place.serve(desk)
    ann = await place.caller("ann")
    assert await call(ann, "echo", text="x") == "x"
    with pytest.raises(ToolBusyError):
        await call(ann, "echo", text="x")
    assert "calls are counted in this process alone" in caplog.text


async def test_a_change_at_one_replica_is_told_by_the_other(place: Place) -> None:
    desks = [Desk(), Desk()]
    first = await place.serve(desks[0])
    bus = await place.bus("ann")
    async with (
        Client(nats_client(place.name, bus)) as client,
        client.listen(tools_list_changed=True, resource_subscriptions=["desk://rules"]) as changes,
    ):
        await place.serve(desks[1])
        await desks[1].server.resource_updated("desk://rules")
        async with asyncio.timeout(20):
            assert await anext(aiter(changes)) == ResourceUpdated(uri="desk://rules")
        await first.drain(0)
    assert desks[0].server.changes.relays == []


async def test_a_call_that_is_given_up_ends_at_the_server(place: Place) -> None:
    desk = Desk()
    await place.serve(desk)
    ann = await place.caller()
    waiting = asyncio.ensure_future(call(ann, "wait"))
    await until(lambda: desk.began)
    waiting.cancel()
    await until(lambda: desk.ended)
    with pytest.raises(ToolTimeoutError):
        await call(ann, "wait", timeout=0.2)
    await until(lambda: len(desk.ended) == 2)


async def test_more_than_it_can_take_is_told(place: Place) -> None:
    desk = Desk()
    await place.serve(desk, concurrency=1)
    ann = await place.caller()
    waiting = [asyncio.ensure_future(call(ann, "wait")) for _ in range(5)]
    await until(lambda: desk.began)
    with pytest.raises(ToolBusyError, match="at its limit of 5 requests"):
        await call(ann, "wait")
    assert len(desk.began) == 1
    desk.go_on.set()
    assert await asyncio.gather(*waiting) == ["waited"] * 5


async def test_a_replica_that_stops_finishes_and_the_other_takes_over(place: Place) -> None:
    desks = [Desk(), Desk()]
    first = await place.serve(desks[0])
    ann = await place.caller()
    waiting = asyncio.ensure_future(call(ann, "wait"))
    await until(lambda: desks[0].began)
    await place.serve(desks[1])
    stopping = asyncio.create_task(first.drain(20))
    desks[1].go_on.set()
    assert await asyncio.gather(*(call(ann, "wait") for _ in range(10))) == ["waited"] * 10
    assert len(desks[1].began) == 10
    desks[0].go_on.set()
    assert await waiting == "waited"
    await stopping


async def test_a_call_is_made_again_if_its_replica_dies_and_that_does_no_harm(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "PATIENCE", 1.0)
    monkeypatch.setattr("natterjack_mcp.service.KEEP_ALIVE", 0.2)
    desks = [Desk(), Desk()]
    first = await place.serve(desks[0])
    ann = await place.caller()
    again, not_again = (asyncio.ensure_future(call(ann, tool)) for tool in ("wait", "b.c"))
    await until(lambda: len(desks[0].began) == 2)
    await place.serve(desks[1])
    desks[1].go_on.set()
    await first._bus.close()  # as if it was killed
    with pytest.raises(ToolUnavailableError, match="gone silent"):
        await not_again
    assert await again == "waited"
    assert desks[1].began == ["wait"]


# By hand


async def test_the_command_line_lists_inspects_and_calls(place: Place) -> None:
    await place.serve(Desk())

    async def run(*args: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "natterjack", "tools", *args, "--server", place.url]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode == code, output
        return output.decode()

    listed, called, refused, shown, nothing, wrong = await asyncio.gather(
        run("list", "--json"),
        run("call", f"{place.name}.echo", '{"text": "toads"}'),
        run("call", f"{place.name}.publish", code=1),
        run("inspect", f"{place.name}.echo"),
        run("inspect", f"{place.name}.eco", code=2),
        run("call", f"{place.name}.echo", "toads", code=2),
    )
    (row,) = [each for each in json.loads(listed) if each["server"] == place.name]
    assert (row["replicas"], "echo" in row["tools"], "publish" in row["tools"]) == (1, True, False)
    assert called == "toads\n"
    assert "HasRole('writer') refuses" in refused
    assert json.loads(shown)["arguments"]["required"] == ["text"]
    assert "has no tool 'eco'" in nothing
    assert "the arguments are no JSON" in wrong


# Agents


async def test_an_agent_has_a_server_of_its_own(place: Place, own_server: NatsServer) -> None:
    place.url = own_server.url
    desk = Desk()
    await place.serve(desk)

    async def asks(question: str, ctx: RunContext) -> str:
        names = sorted(each.name for each in await ctx.tools.list())
        return f"{names[1]}: {await ctx.tools.call('desk.echo', text=question)}"

    @asynccontextmanager
    async def running(spec: NatsServerSpec) -> AsyncIterator[AgentRuntime]:
        runtime = AgentRuntime(own_server.url)
        runtime.add_process(AgentProcess("ann", agent=_asking(asks), servers={"desk": spec}))
        async with runtime:
            yield runtime

    async with running(NatsServerSpec(place.name)) as runtime:
        assert await runtime.ask_peer("ann", "hello") == "echo: hello"
    with pytest.raises(
        StartError,
        match=r"its tool server 'desk' cannot be reached: .*('dusk' cannot be reached: nobody|refuses 'ann')",
    ):
        async with running(NatsServerSpec("dusk")):
            pass  # pragma: no cover - it does not start
    with pytest.raises(InvalidNameError):
        NatsServerSpec("Dusk")


def _asking(answer: Callable[[str, RunContext], Awaitable[str]]) -> Any:
    from natterjack import Agent

    class Asking(Agent):
        """Answers by a function."""

        async def answer(self, question: str, ctx: RunContext) -> str:
            return await answer(question, ctx)

    return Asking()
