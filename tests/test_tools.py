"""Tools in a team: who starts what serves them, and how a run calls them. A plugin brings what a tool server is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    Bus,
    ConfigError,
    Envelope,
    Event,
    InvalidNameError,
    Message,
    Middleware,
    PluginError,
    RefusedError,
    RunContext,
    Server,
    StartError,
    ToolClient,
    ToolInfo,
    ToolServer,
    ToolServerContext,
    ToolSubjects,
    UnknownAgentError,
)
from natterjack.guards import Guards
from natterjack.needs import agent_permissions
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.runtime import TeamRuntime, start_agent
from natterjack.team import Team
from natterjack.testing import NatsServer
from natterjack.testing.narrow import login_of, narrow_config
from natterjack.toolhost import start_tool_server
from natterjack.tools import Tools

ended: list[str] = []


class Desk(ToolServer):
    """Tells who called what with which arguments, if the team lets it."""

    name: ClassVar = "desk"

    class Config(ToolServer.Config):
        broken: str = ""

    async def serve(self, ctx: ToolServerContext) -> None:
        if self.config.broken:
            raise ConfigError(self.config.broken)
        own = ToolSubjects(ctx.name)

        async def answer(message: Message) -> None:
            tool, caller = own.named(message.subject) or "", json.loads(message.data)["caller"]
            roles = ctx.roles_of(caller)
            admitted = ctx.admits(tool, caller, roles)
            said = {"tool": tool, "roles": sorted(roles), **json.loads(message.data)} if admitted else "refused"
            await ctx.bus.publish(message.reply, json.dumps(said).encode())

        serving = await ctx.bus.subscribe(own.calls, answer, queue=ctx.name)
        ctx.ready()
        try:
            await asyncio.Event().wait()
        finally:
            await serving.drain()
            ended.append(ctx.name)

    @classmethod
    def client(cls, server: str, bus: Bus) -> ToolClient:
        return Caller(server, bus)


class Caller:
    def __init__(self, server: str, bus: Bus, names: Sequence[str] = ("say",)) -> None:
        self.own, self.bus, self.names = ToolSubjects(server), bus, names

    async def start(self) -> None:
        pass

    async def call(self, tool: str, arguments: Mapping[str, Any], *, timeout: float, envelope: Envelope) -> Any:
        sent = {"caller": self.bus.principal, "arguments": arguments, "depth": envelope.depth}
        return json.loads(
            (await self.bus.request(self.own.call(tool), json.dumps(sent).encode(), timeout=timeout)).data
        )

    async def list(self, *, timeout: float) -> Sequence[ToolInfo]:
        del timeout
        return [ToolInfo("", name, "") for name in self.names]

    async def close(self) -> None:
        ended.append(f"client of {self.own.server}")


class Asker(Agent):
    """Calls the tool that it is told."""

    name: ClassVar = "asker"

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        return await ctx.tools.call(event.data["tool"], text="hello")

    async def answer(self, question: str, ctx: RunContext) -> Any:
        if question == "list":
            return [each.name for each in await ctx.tools.list()]
        return await ctx.step("call", ctx.tools.call, question, text="hello")


def installed() -> Plugins:
    plugins = Plugins.load()
    plugins.tool_servers["desk"], plugins.agents["asker"] = Desk, Asker
    return plugins


def team_of(**tools: Any) -> Team:
    agents = {
        "ann": {"kind": "asker", "tools": list(tools)},
        "ben": {"kind": "asker", "tools": list(tools), "roles": ["writer", "editor"]},
    }
    tables = {name.replace("_", "-"): {"kind": "desk", **table} for name, table in tools.items()}
    for agent in agents.values():
        agent["tools"] = list(tables)
    return Team.model_validate({"agents": agents, "tools": tables})


@asynccontextmanager
async def running(server: NatsServer, team: Team, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AgentRuntime]:
    plugins = installed()
    monkeypatch.setattr(Plugins, "load", lambda: plugins)
    ended.clear()
    async with TeamRuntime(team, Server(server.url), plugins) as runtime:
        yield runtime


async def test_a_run_calls_the_tools_of_its_team(own_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    team = team_of(front_desk={"roles": {"say": ["ann", "editor"], "shout": ["ann"]}}, back={})
    async with running(own_server, team, monkeypatch) as runtime:
        said = {"tool": "say", "arguments": {"text": "hello"}, "depth": 1}
        answered = json.loads(await runtime.ask_peer("ann", "front-desk.say"))
        assert answered == {**said, "caller": "ann", "roles": ["ann"]}
        run = await runtime.inject_event("ben", {"type": "go", "tool": "front-desk.say"})
        assert await run.result() == {**said, "caller": "ben", "roles": ["editor", "writer"]}
        assert json.loads(await runtime.ask_peer("ben", "back.shout"))["tool"] == "shout"
        assert json.loads(await runtime.ask_peer("ann", "list")) == ["front-desk_say", "back_say"]
        (step,) = [each async for each in runtime.journal.entries("ann") if each.kind == "step"]
        assert step.data["did"][0]["verb"] == "call"
    clients = ["client of back", "client of front-desk"]
    assert sorted(ended) == sorted(["back", *clients, *clients, "front-desk"])
    assert set(ended[-2:]) == {"back", "front-desk"}, "agents need their tools to the end"


@pytest.mark.open_mode(reason="the broker refuses before the tool server could")
async def test_a_tool_server_refuses_who_has_not_the_role(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(own_server, team_of(front_desk={"roles": {"shout": ["ann"]}}), monkeypatch) as runtime:
        assert json.loads(await runtime.ask_peer("ann", "front-desk.shout"))["tool"] == "shout"
        assert await runtime.ask_peer("ben", "front-desk.shout") == "refused"


async def test_middleware_stands_around_calls(own_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Louder(Middleware):
        name: ClassVar = "louder"

        async def call_tool(self, tool: str, arguments: Mapping[str, Any], ctx: RunContext, call: Any) -> Any:
            found = await call("back.shout", {"text": f"{arguments['text']}, says {ctx.agent}"})
            return {**found, "instead of": tool}

    plugins = installed()
    plugins.middleware["louder"] = Louder
    monkeypatch.setattr(Plugins, "load", lambda: plugins)
    async with TeamRuntime(team_of(front={}, back={}), Server(own_server.url), plugins) as runtime:
        found = json.loads(await runtime.ask_peer("ann", "front.say"))
    assert (found["tool"], found["instead of"]) == ("shout", "front.say")
    assert found["arguments"] == {"text": "hello, says ann"}


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("say", "'say' is no address of a tool; write 'server.tool'"),
        ("dusk.say", "'ann' has no tool server 'dusk'. Did you mean 'desk'?"),
        ("other.say", "Name it in `tools` of the agent"),
    ],
)
async def test_an_address_that_is_none(address: str, problem: str) -> None:
    tools = Tools("ann", {"desk": Caller("desk", None)}, Guards())  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        await tools.call(address, {}, timeout=1, envelope=Envelope())
    assert problem in str(caught.value)


async def test_names_that_clash_have_their_servers_before_them() -> None:
    clients = {"a": Caller("a", None, ["x", "y"]), "b": Caller("b", None, ["y"])}  # type: ignore[arg-type]
    found = await Tools("ann", clients, Guards()).list()
    assert [(each.server, each.tool, each.name) for each in found] == [
        ("a", "x", "x"),
        ("a", "y", "a_y"),
        ("b", "y", "b_y"),
    ]


async def test_a_process_has_servers_of_its_own(own_server: NatsServer) -> None:
    class Source:
        def client(self, server: str, bus: Bus) -> ToolClient:
            return Caller(server, bus, ["one"])

    class Gone(Source):
        def client(self, server: str, bus: Bus) -> ToolClient:
            class Absent(Caller):
                async def start(self) -> None:
                    msg = "nobody is there"
                    raise ConfigError(msg)

            return Absent(server, bus)

    def process(**servers: Any) -> AgentProcess:
        return AgentProcess("ann", agent_config={"kind": "python", "target": "test_tools:Asker", "servers": servers})

    assert process(desk=Source()).spec.options == {"target": "test_tools:Asker"}, "a team that is stored has no secrets"
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("ann", agent=Asker(), servers={"desk": Source()}))
    async with runtime:
        assert json.loads(await runtime.ask_peer("ann", "list")) == ["one"]
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("ann", agent=Asker(), servers={"desk": Gone()}))
    with pytest.raises(
        StartError, match="agent 'ann' cannot start: its tool server 'desk' cannot be reached: nobody is"
    ):
        await runtime.start_all()


async def test_a_server_that_cannot_start_is_named(own_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartError, match="tool server 'desk' failed: the drawer is stuck"):
        async with running(own_server, team_of(desk={"broken": "the drawer is stuck"}), monkeypatch):
            pass  # pragma: no cover - it does not start


async def test_processes_with_narrow_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins, team = installed(), team_of(desk={"roles": {"say": ["ann"]}})
    with NatsServer(narrow_config(agent_permissions(team, plugins))) as server:
        operator = await Bus.connect(login_of(server, "operator"), principal="operator")
        await provision(operator, team, plugins)
        desk = await start_tool_server("desk", login_of(server, "desk"), plugins=plugins)
        ann, of_ann = await start_agent("ann", login_of(server, "ann"), plugins=plugins)
        own = ToolSubjects("desk")
        reply = await ann.bus.request(own.call("say"), b'{"caller": "ann"}', timeout=5)
        assert json.loads(reply.data)["tool"] == "say"
        with pytest.raises(RefusedError):
            await ann.bus.request(own.call("shout"), b"{}", timeout=5)
        with pytest.raises(RefusedError):
            await ann.bus.listen(own.calls, ended.append)  # type: ignore[arg-type]
        failed = asyncio.create_task(desk.failed())
        await ann.stop(1)
        await of_ann.close()
        await desk.bus.close()
        assert "tool server 'desk' cannot go on" in str(await failed)
        await desk.stop(1)
        with pytest.raises(UnknownAgentError, match="Did you mean 'desk'"):
            await start_tool_server("dusk", login_of(server, "operator"), plugins=plugins)
        await operator.close()


def test_a_kind_for_others_says_so() -> None:
    class Quiet(ToolServer):
        """Serves strangers."""

        name: ClassVar = "quiet"

        async def serve(self, ctx: ToolServerContext) -> None:
            ctx.ready()

    with pytest.raises(ConfigError, match="a tool server of the kind 'quiet' is for others"):
        Quiet.client("desk", None)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="no installed plugin brings the tool server 'nothing'"):
        Plugins.load().tool_server("nothing")


# Subjects


@given(st.text(min_size=1, max_size=40))
def test_each_name_has_a_subject_of_its_own(name: str) -> None:
    own = ToolSubjects("desk")
    try:
        subject = own.call(name)
    except InvalidNameError:
        assert len(name.encode(errors="replace")) > 60
        return
    assert subject.startswith("tools.desk.call.")
    assert len(subject.split(".")) == 4
    assert not set(subject) & set(" *>\t\r\n")
    if name < "\ud800" or name.isascii():
        assert own.named(subject) == name.encode(errors="replace").decode()


def test_what_subjects_look_like() -> None:
    own = ToolSubjects("team-tools")
    assert own.call("web_search") == "tools.team-tools.call.web_search"
    assert own.call("Web.Search/2") == "tools.team-tools.call.Web~2eSearch~2f2"
    assert own.method("tools/list") == "tools.team-tools.tools~2flist"
    assert own.named("tools.team-tools.tools~2flist") == "tools/list"
    for bad in ("~7", "a~41", "~ff", "~2F", ""):
        assert own.named(f"tools.team-tools.call.{bad}") is None
    for name in ("", "x" * 300):
        with pytest.raises(InvalidNameError):
            own.call(name)
    with pytest.raises(InvalidNameError):
        ToolSubjects("Team.Tools")
