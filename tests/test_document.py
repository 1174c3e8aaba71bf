"""The document's samples, in its order, as they stand in `document.md`: only their import lines are changed.

Each runs with what its text takes for granted: real peers, tool servers and processes; and models that are asked over
real HTTP, by OpenAI's own client, of a server that does what the test wrote down.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import CodeType
from typing import Any

import psutil
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from natterjack import (
    AgentContext,
    AgentProcess,
    AgentRuntime,
    Bus,
    PeerError,
    PeerUnavailableError,
    RefusedError,
    Server,
    connect,
)
from natterjack.testing import NatsServer, until
from natterjack.testing.command import Cli
from natterjack_http import HttpTrigger
from natterjack_llm import build_agent
from natterjack_mcp import HttpServerSpec, MCPServer, NatsServerSpec, ToolRefusedError
from natterjack_mcp.http import Address, serve_http
from natterjack_mcp.service import NatsService

from .model_server import ModelServer, call, offered, problem, results

DOCUMENT = (Path(__file__).parent / "document.md").read_text()
SAMPLES = dict(re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))
IMPORTS = {
    **dict.fromkeys(("AgentRuntime", "AgentProcess", "AgentContext", "FileJournal"), "natterjack"),
    **dict.fromkeys(("EventTrigger", "MessageTrigger"), "natterjack"),
    "build_agent": "natterjack_llm",
    **dict.fromkeys(("MCPServer", "JWTAuth", "AuthMiddleware", "HasRole"), "natterjack_mcp"),
    **dict.fromkeys(("HttpServerSpec", "StdioServerSpec"), "natterjack_mcp"),
}
MODEL: dict[str, Any] = {"model": "openai:gpt-5-mini"}


def translated(sample: str) -> str:
    """Return a sample with its import lines, and nothing else, replaced."""
    lines = []
    for line in SAMPLES[sample].splitlines():
        found = re.fullmatch(r"from promptise[\w.]* import (.+)", line)
        names = found[1].split(", ") if found else []
        lines.append("; ".join(f"from {IMPORTS[name]} import {name}" for name in names) or line)
    return "\n".join(lines)


def compiled(sample: str) -> CodeType:
    code: CodeType = compile(translated(sample), f"<{sample}>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return code


async def run(sample: str, **given: Any) -> dict[str, Any]:
    """Run a sample with what its text takes for granted, and return its names."""
    scope: dict[str, Any] = {"__name__": "sample", **given}
    if inspect.isawaitable(done := eval(compiled(sample), scope)):
        await done
    return scope


def by_instructions(**scripts: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """Return a script that has one for each agent, whose instructions begin with its name."""

    def script(body: dict[str, Any]) -> Any:
        (found,) = [each for name, each in scripts.items() if body["instructions"].startswith(name)]
        return found(body)

    return script


def prompt(body: dict[str, Any]) -> str:
    """Return the question or event that a model was told last by its agent."""
    return str([item["content"] for item in body["input"] if item.get("role") == "user"][-1])


def says(body: dict[str, Any]) -> str:
    """The model of an agent whose instructions are its name: repeats what it is asked."""
    return f"{body['instructions'].splitlines()[0]} on: {prompt(body)}"


@pytest.fixture(autouse=True)
def server(own_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    monkeypatch.setenv("NATS_URL", own_server.url)
    return own_server


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Where the ports that samples name are: at free ones, so that tests run beside each other."""
    found: dict[int, int] = {}
    connection = asyncio.BaseEventLoop.create_connection

    def connected(loop: Any, protocol: Any, host: Any = None, port: Any = None, **more: Any) -> Any:
        return connection(loop, protocol, host, found.get(port, port), **more)

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", connected)
    return found


def model_agents(*names: str, **served_at: HttpTrigger) -> AgentRuntime:
    """Return a runtime of agents whose models are told their names; some are asked over HTTP."""
    runtime = AgentRuntime()
    for name in names:
        triggers = [served_at[name]] if name in served_at else []
        runtime.add_process(AgentProcess(name, agent_config={**MODEL, "instructions": name}, triggers=triggers))
    return runtime


@asynccontextmanager
async def peers_over_http(ports: dict[int, int], **at: int) -> AsyncIterator[None]:
    """Within the context, model agents of these names are asked at these ports."""
    doors = {name: HttpTrigger.create({"listen": "127.0.0.1:0"}) for name in at}
    async with model_agents(*at, **doors):
        ports.update({at[name]: int(door.url.rpartition(":")[2]) for name, door in doors.items()})
        yield


@asynccontextmanager
async def tools_over_nats(server: NatsServer, tools: MCPServer) -> AsyncIterator[NatsServerSpec]:
    bus = await Bus.connect(Server(server.url), principal=tools.name)
    service = NatsService(tools, bus)
    await service.start()
    try:
        yield NatsServerSpec(tools.name)
    finally:
        await service.drain(1.0)
        await bus.close()


# 1. Shared tool servers


class Work:
    """What the sample's tools use."""

    async def query(self, query: str) -> str:
        return f"found {query}"

    async def publish(self, title: str, content: str) -> str:
        return f"published {title}: {content}"


@asynccontextmanager
async def tools_over_http(tools: MCPServer, caplog: pytest.LogCaptureFixture) -> AsyncIterator[int]:
    """Within the context, a tool server is asked at a port."""
    with caplog.at_level("INFO", "natterjack"):
        serving = asyncio.create_task(serve_http(tools, Address("127.0.0.1", 0)))
        await until(lambda: [each for each in caplog.messages if "is served at" in each])
    (line,) = [each for each in caplog.messages if "is served at" in each]
    try:
        yield int(line.rpartition(":")[2].removesuffix("/mcp"))
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_agents_with_roles_share_a_tool_server(
    model_server: ModelServer, ports: dict[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """Their models choose the tools: each has its own, and is refused the other's."""

    def script(body: dict[str, Any]) -> Any:
        if results(body):
            return " ".join(results(body))
        return [call("web_search", query="toads"), call("publish", title="Toads", content="…")]

    model_server.script = script
    shared = await run("Shared tool server", search_engine=Work(), cms=Work())

    def jwt_for_role(role: str) -> str:
        return str(shared["auth"].token(role, roles=[role], expires=3600))

    async with tools_over_http(shared["server"], caplog) as ports[8080]:
        built = await run("Agents with roles", jwt_for_role=jwt_for_role)
        for name, own, other in (("researcher", "web_search", "publish"), ("writer", "publish", "web_search")):
            async with built[name] as agent:
                told = await agent.ainvoke({"messages": [{"role": "user", "content": "Search, then publish."}]})
            assert offered(model_server.asked[-1]) == {own}
            assert {"web_search": "found toads", "publish": "published Toads: …"}[own] in told
            assert f"Unknown tool name: '{other}'" in told
            spec = HttpServerSpec(url="http://localhost:8080", bearer_token=jwt_for_role(name))
            async with connect(context=False, servers={"tools": spec}) as client:
                with pytest.raises(ToolRefusedError, match="HasRole"):  # and it is no matter of what is offered
                    await client.call_tool(f"tools.{other}", {"query": "", "title": "", "content": ""})


# 2. Cross-agent delegation


async def test_a_model_delegates_to_a_peer(model_server: ModelServer, ports: dict[int, int]) -> None:
    def analyst(body: dict[str, Any]) -> Any:
        if not results(body):
            return call("ask_peer", name="researcher", question="Find recent papers on quantum computing")
        return f"My researcher says: {json.loads(results(body)[0])['answer']}"

    def script(body: dict[str, Any]) -> Any:
        return says(body) if body["instructions"].startswith("researcher") else analyst(body)

    model_server.script = script
    asked = "Ask the researcher to find recent papers on quantum computing"
    async with (
        peers_over_http(ports, researcher=9001, fact_checker=9002),
        (await run("Cross-agent delegation", my_servers={}))["analyst"] as agent,
    ):
        answer = await agent.ainvoke({"messages": [{"role": "user", "content": asked}]})
    assert answer == "My researcher says: researcher on: Find recent papers on quantum computing"
    assert answer.usage["tool_calls"] == 1
    first, of_the_peer, second = model_server.asked
    (ask_peer,) = [tool for tool in first["tools"] if tool["name"] == "ask_peer"]
    assert ask_peer["parameters"]["properties"]["name"]["enum"] == ["researcher", "fact_checker"]
    assert prompt(of_the_peer) == "Find recent papers on quantum computing"
    assert prompt(second) == asked


async def test_a_program_delegates_to_peers(model_server: ModelServer, ports: dict[int, int]) -> None:
    model_server.script = says
    async with (
        peers_over_http(ports, researcher=9001, fact_checker=9002),
        (await run("Cross-agent delegation", my_servers={}))["analyst"] as analyst,
    ):
        found = await run("Programmatic delegation", analyst=analyst)
    question = "Find the top 3 papers on transformer architectures from 2025"
    assert found["answer"] == f"researcher on: {question}"
    claim = "Verify this claim: GPT-5 has 1 trillion parameters"
    assert found["answers"] == {"researcher": f"researcher on: {claim}", "fact_checker": f"fact_checker on: {claim}"}


# 3. EventBus messaging


async def test_event_bus_messaging(model_server: ModelServer, server: NatsServer) -> None:
    desk, printed = MCPServer("desk"), list[str]()

    @desk.tool(public=True)
    def look_up(text: str) -> str:
        return f"all on {text}"

    @desk.tool(public=True, name="print")
    def print_(text: str) -> str:
        printed.append(text)
        return "printed"

    def research(body: dict[str, Any]) -> Any:
        return [
            call("look_up", text="AI safety"),
            call("emit", type="research.complete", data={"findings": results(body)[-1:]}),
            "I found it.",
        ][len(results(body))]

    def analyze(body: dict[str, Any]) -> Any:
        assert "all on AI safety" in prompt(body)
        return "Done." if results(body) else call("publish", topic="reports.safety", data={"report": "It grows."})

    def write(body: dict[str, Any]) -> Any:
        assert "It grows." in prompt(body)
        return "Done." if results(body) else call("print", text="# It grows")

    model_server.script = by_instructions(Research=research, Analyze=analyze, Write=write)
    async with tools_over_nats(server, desk) as spec:
        servers = {f"{work}_servers": {"desk": spec} for work in ("research", "analysis", "writing")}
        runtime: AgentRuntime = (await run("EventBus messaging", **servers))["runtime"]
        try:
            assert model_server.asked == []  # nobody in the sample waits for "research.start"
            await runtime.inject_event("researcher", {"type": "research.start", "topic": "AI safety trends 2025"})
            await until(lambda: printed)
        finally:
            await runtime.stop_all()
    assert printed == ["# It grows"]
    (publish,) = [tool for tool in model_server.asked[0]["tools"] if tool["name"] == "publish"]
    assert "reports.*" in publish["description"]


# 4. Shared context & state


@pytest.mark.parametrize("attached", [False, True])
async def test_shared_context(attached: bool) -> None:
    given = {"research_data": ["a"], "analysis_data": {"b": 1}, "final_draft": "text"}
    shared = (await run("Shared context", **given))["shared_ctx"]
    assert isinstance(shared, AgentContext)
    runtime = AgentRuntime(context=shared)
    if attached:
        await runtime.start_all()
    try:
        values = {key: shared.get(key) for key in shared.keys()}  # noqa: SIM118 - no mapping
        assert values == {
            **{"project": "quarterly-report", "status": "complete", "draft": "text"},
            **{"findings": ["a"], "analysis": {"b": 1}},
        }
        with pytest.raises(PermissionError, match="'researcher' may not write 'draft'") as caught:
            shared.set("draft", "...", writer="researcher")
        assert isinstance(caught.value, RefusedError)
        await shared.set("draft", "better", writer="writer")
        assert shared.get("draft") == "better"
    finally:
        await runtime.stop_all()


async def test_shared_context_of_a_team_that_runs() -> None:
    given = {"research_data": ["a"], "analysis_data": {"b": 1}, "final_draft": "text"}
    shared = AgentContext(write_permissions={"researcher": ["findings"], "analyst": ["analysis"], "writer": [">"]})
    writes = translated("Shared context").partition("# Researcher writes findings (allowed)")[2]
    async with AgentRuntime(context=shared):
        exec(writes, {"shared_ctx": shared, **given})
        assert shared.get("draft") == "text"  # at once, though nobody awaits the writes
        await shared.flush()
        assert [version.writer for version in await shared.history("status")] == ["writer"]


async def test_models_share_a_context(model_server: ModelServer) -> None:
    """A model writes the keys of its agent, and is refused those of others."""

    def researcher(body: dict[str, Any]) -> Any:
        writes = [call("set_context", key="findings", value=["two"]), call("set_context", key="draft", value="mine")]
        return json.dumps(results(body)) if results(body) else writes

    def analyst(body: dict[str, Any]) -> Any:
        done = results(body)
        if not done:
            return call("get_context", key="findings")
        return "so" if len(done) == 2 else call("set_context", key="analysis", value=json.loads(done[0])["value"])

    model_server.script = by_instructions(researcher=researcher, analyst=analyst)
    given = {"research_data": ["a"], "analysis_data": {"b": 1}, "final_draft": "text"}
    shared: AgentContext = (await run("Shared context", **given))["shared_ctx"]
    runtime = AgentRuntime(context=shared)
    for name in ("researcher", "analyst", "writer"):
        runtime.add_process(AgentProcess(name, agent_config={**MODEL, "instructions": name}))
    async with runtime:
        told = await runtime.ask_peer("researcher", "What is new?")
        assert await runtime.ask_peer("analyst", "What of it?") == "so"
        assert {key: shared.get(key) for key in ("findings", "draft", "analysis")} == {
            **{"findings": ["two"], "draft": "text", "analysis": ["two"]},
        }
        assert (await shared.history("findings"))[-1].writer == "researcher"
    assert "'researcher' may not write 'draft'" in told


# 5. Complete example: research pipeline


def pipeline() -> Callable[[dict[str, Any]], Any]:
    """Return the models of the sample's three agents, whom their instructions tell apart."""

    def research(body: dict[str, Any]) -> Any:
        found = [hit["passage"]["text"] for output in results(body)[:2] for hit in json.loads(output)]
        steps = [[call("web_search", query="how do generators work"), call("document_search", query="productivity")]]
        steps += [[], [call("emit", type="research.complete", data={"findings": found})], ["I found both."]]
        return steps[len(results(body))]

    def evaluate(body: dict[str, Any]) -> Any:
        assert "generator" in prompt(body)
        approved = call("emit", type="analysis.approved", data={"quality": 4, "of": prompt(body)})
        return "Good." if results(body) else approved

    def write(body: dict[str, Any]) -> Any:
        assert "AI changes the productivity" in prompt(body)
        return results(body) or call("publish", title="AI and productivity", content="It changes [ai.md].")

    return by_instructions(Research=research, Evaluate=evaluate, Write=write)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with documents, in which `python -m team_tools` works."""
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "ai.md").write_text("# AI\n\nAI changes the productivity of software development.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def team_tools_children() -> list[int]:
    children = psutil.Process().children(recursive=True)
    return [each.pid for each in children if each.is_running() and each.cmdline()[-2:] == ["-m", "team_tools"]]


def test_research_pipeline(library: Path, model_server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    done, pause, served = library / "journals" / "writer" / "writer.jsonl", asyncio.sleep, list[int]()

    async def until_done(delay: float, *result: Any) -> Any:
        """Where the sample waits two minutes, wait for what it waits for."""
        if delay != 120:
            return await pause(delay, *result)
        await until(lambda: done.exists() and '"kind":"done"' in done.read_text(), timeout=50)
        return served.extend(team_tools_children())

    monkeypatch.setattr(asyncio, "sleep", until_done)
    model_server.script = pipeline()
    exec(compiled("Research pipeline"), {"__name__": "sample"})
    assert len(served) == 1  # for all three
    assert team_tools_children() == []
    assert (library / "published" / "ai-and-productivity.md").read_text().endswith("It changes [ai.md].\n")
    ends = {
        name: json.loads((library / "journals" / name / f"{name}.jsonl").read_text().splitlines()[-1])["data"]["result"]
        for name in ("researcher", "analyst", "writer")
    }
    assert ends == {"researcher": "I found both.", "analyst": "Good.", "writer": "ai-and-productivity.md"}


TEAM = """\
[team]
name = "library"
external = ["research.start"]

[agents.researcher]
kind = "llm"
model = "openai:gpt-5-mini"
instructions = "Research the given topic thoroughly."
tools = ["tools"]
on = ["research.start"]

[agents.analyst]
kind = "llm"
model = "openai:gpt-5-mini"
instructions = "Evaluate the research findings for accuracy and completeness."
tools = ["tools"]
on = ["research.complete"]

[agents.writer]
kind = "llm"
model = "openai:gpt-5-mini"
instructions = "Write a clear, well-structured report."
tools = ["tools"]
on = ["analysis.approved"]

[tools.tools]
command = ["python", "-m", "team_tools"]
roles = { web_search = ["researcher"], document_search = ["researcher", "analyst"], publish = ["writer"] }
"""


@pytest.mark.full  # each of four processes imports its libraries
@pytest.mark.timeout(180)
def test_research_pipeline_as_separate_processes(
    library: Path, model_server: ModelServer, server: NatsServer, cli: Cli
) -> None:
    model_server.script = pipeline()
    cli.env["NATS_URL"] = server.url
    cli.write(team_toml=TEAM)
    with cli.start("up") as up:
        up.wait_line("^ready +3 agents")
        cli.run("emit", "research.start", '{"topic": "Impact of AI on software development productivity"}')
        ended = cli.until_json(lambda runs: len([run for run in runs if run["state"] == "done"]) == 3, "runs", "list")
        assert {run["agent"] for run in ended} == {"researcher", "analyst", "writer"}
        assert up.end() == 0, up.output
    assert (library / "published" / "ai-and-productivity.md").read_text().endswith("It changes [ai.md].\n")


# Patterns


async def test_fan_out_and_fan_in(model_server: ModelServer) -> None:
    reviewers = ("legal_reviewer", "technical_reviewer", "business_reviewer")
    model_server.script = says
    async with (
        model_agents(*reviewers),
        await build_agent(**MODEL, cross_agents={name: name for name in reviewers}) as coordinator,
    ):
        found = await run("Fan-out / fan-in", coordinator=coordinator, proposal="toads")
    assert sorted(found["combined"].split("\n\n")) == sorted(
        f"**{name}**: {name} on: Review this proposal: toads" for name in reviewers
    )
    assert found["answers"].failures == {}


async def test_supervisor(model_server: ModelServer, ports: dict[int, int]) -> None:
    """Its model goes from peer to peer, and sends a draft back."""
    steps = ["researcher", "writer", "editor", "writer", "editor"]

    def supervise(body: dict[str, Any]) -> Any:
        done = [json.loads(each) for each in results(body)]
        if len(done) == len(steps):
            return " < ".join(each["agent"] for each in done)
        return call("ask_peer", name=steps[len(done)], question=done[-1]["answer"] if done else "Go.")

    model_server.script = lambda body: (says if body["instructions"].startswith(tuple(steps)) else supervise)(body)
    async with (
        peers_over_http(ports, researcher=9001, writer=9002, editor=9003),
        (await run("Supervisor", my_servers={}, build_agent=build_agent))["supervisor"] as supervisor,
    ):
        answer = await supervisor.ainvoke({"messages": [{"role": "user", "content": "A report on toads."}]})
    assert answer == "researcher < writer < editor < writer < editor"
    assert model_server.asked[0]["instructions"].startswith("You are a project supervisor.")
    assert prompt(model_server.asked[-2]) == "writer on: editor on: writer on: researcher on: Go."


async def test_pipeline_with_quality_gates(model_server: ModelServer) -> None:
    """Each stage waits for an event of its own name, so that the model of the stage before emits it."""
    gates = {"data_collector": "clean.complete", "data_cleaner": "analyze.complete", "analyzer": "report.complete"}

    def stage(body: dict[str, Any]) -> Any:
        name = body["instructions"].splitlines()[0]
        return "Done." if results(body) or name not in gates else call("emit", type=gates[name], data={"by": name})

    model_server.script = stage
    runtime, names = AgentRuntime(), (*gates, "reporter")
    configs = {name: {**MODEL, "instructions": name} for name in names}
    await run("Pipeline with quality gates", runtime=runtime, configs=configs, AgentProcess=AgentProcess)
    async with runtime:
        await runtime.inject_event("data_collector", {"type": "collect.start"})
        await until(partial(all_done, runtime, set(names)))
    told = [prompt(body).partition(" happened")[0] for body in model_server.asked if not results(body)]
    assert told == [f"The event {type}" for type in ("collect.start", *gates.values())]


async def all_done(runtime: AgentRuntime, names: set[str]) -> bool:
    return {entry.agent async for entry in runtime.journal.entries(kind="done")} == names


# Error handling


@pytest_asyncio.fixture
async def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass at once for whoever waits in this event loop."""
    loop, passed = asyncio.get_running_loop(), list[float]()
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: real() + sum(passed))
    return passed.append


async def test_error_handling(model_server: ModelServer, raw: Client, later: Callable[[float], None]) -> None:
    async def silent(message: Msg) -> None:
        later(30.0)

    def script(body: dict[str, Any]) -> Any:
        return problem(401) if body["instructions"].startswith("agent_b") else says(body)

    model_server.script = script
    await raw.subscribe("agents.ask.specialist", cb=silent)
    names = ("specialist", "agent_a", "agent_b", "agent_c")
    cross_agents = {name: name for name in names}
    async with (
        model_agents("agent_a", "agent_b"),
        await build_agent(**MODEL, cross_agents=cross_agents, instructions="alone") as agent,
    ):
        found = await run("Error handling", agent=agent, question="?")
    assert found["answer"] == "alone on: ?"
    assert found["successful"] == {"agent_a": "agent_a on: ?"}
    failures = found["answers"].failures
    assert {name: type(error) for name, error in failures.items()} == {
        "agent_b": PeerError,
        "agent_c": PeerUnavailableError,
    }


# All of them


@pytest.mark.parametrize("sample", SAMPLES)
def test_only_import_lines_are_changed(sample: str) -> None:
    pairs = zip(SAMPLES[sample].splitlines(), translated(sample).splitlines(), strict=True)
    changed = [(before, after) for before, after in pairs if before != after]
    assert all(before.startswith("from promptise") and after.startswith("from natterjack") for before, after in changed)
    assert "promptise" not in translated(sample)
    assert compiled(sample).co_filename == f"<{sample}>"  # and it is valid


def test_every_sample_is_run() -> None:
    """Each sample of the document is run by some test of this file."""
    assert DOCUMENT.count("```python") == len(SAMPLES)
    runs = re.findall(r'(?:await run|exec\(compiled)\("([^"]+)"', Path(__file__).read_text())
    assert list(dict.fromkeys(runs)) == list(SAMPLES)
