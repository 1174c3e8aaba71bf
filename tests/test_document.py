"""The document's samples, from `document.md` as they stand there: only their import lines are changed.

Agents with a model run by a stand-in that a plugin brings under the name `llm`: it does what a script says, so the
samples run as they are, and the real plugin takes its place without a change to them.
"""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest
import pytest_asyncio

from natterjack import AgentContext, AgentProcess, AgentRuntime, PeerTimeoutError, RefusedError
from natterjack.plugins import DISABLED
from natterjack.testing import NatsServer, until

DOCUMENT = (Path(__file__).parent / "document.md").read_text()
SAMPLES = dict(re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))

IMPORTS = {
    **dict.fromkeys(("AgentRuntime", "AgentProcess", "AgentContext", "FileJournal"), "natterjack"),
    **dict.fromkeys(("EventTrigger", "MessageTrigger"), "natterjack"),
    "build_agent": "natterjack_llm",
    **dict.fromkeys(("MCPServer", "JWTAuth", "AuthMiddleware", "HasRole"), "natterjack_mcp"),
    **dict.fromkeys(("HttpServerSpec", "StdioServerSpec"), "natterjack_mcp"),
}

RUN_HERE = {
    *("Programmatic delegation", "EventBus messaging", "Shared context", "Research pipeline"),
    *("Fan-out / fan-in", "Pipeline with quality gates", "Error handling"),
}
RUN_BY_A_PLUGIN = {  # they are nothing but a tool server or a model, so the tests of its plugin run them
    "Shared tool server": "mcp",
    "Agents with roles": "mcp",
    "Cross-agent delegation": "llm",
    "Supervisor": "llm",
}

SCRIPTED_LLM = '''
"""Stands in for a model: handles an event by a script, and answers by repeating."""

from typing import Any, ClassVar

from natterjack import Agent, Settings, hookimpl

NEXT = {
    "researcher": [("emit", "research.complete")],
    "analyst": [("emit", "analysis.approved"), ("publish", "reports.safety")],
    "data_collector": [("emit", "clean.complete")],
    "data_cleaner": [("emit", "analyze.complete")],
    "analyzer": [("emit", "report.complete")],
}
seen = []


class Scripted(Agent):
    """Does what the script says."""

    name: ClassVar = "llm"

    class Config(Settings):
        model: str
        instructions: str = ""
        servers: dict[str, Any] = {}

    async def handle(self, event, ctx):
        seen.append((ctx.agent, event.type, event.data))
        for verb, what in NEXT.get(ctx.agent, ()):
            await getattr(ctx, verb)(what, {"by": ctx.agent})
        return f"{ctx.agent} is done"

    async def answer(self, question, ctx):
        return f"{ctx.agent} on: {question}"


async def build_agent(**config):
    """Only imported here."""


@hookimpl
def natterjack_agents():
    return [Scripted]
'''

MCP = """
from pydantic import BaseModel

class StdioServerSpec(BaseModel):
    command: str
    args: list[str] = []
"""


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


@pytest.fixture(autouse=True)
def server(own_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    monkeypatch.setenv("NATS_URL", own_server.url)
    return own_server


@pytest.fixture
def llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Install the stand-in as a distribution with an entry point, as any plugin is."""
    (tmp_path / "natterjack_llm.py").write_text(SCRIPTED_LLM)
    (tmp_path / "natterjack_mcp.py").write_text(MCP)
    metadata = tmp_path / "natterjack_scripted-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: natterjack-scripted\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[natterjack]\nscripted = natterjack_llm\n")
    monkeypatch.setenv(DISABLED, "llm")
    monkeypatch.syspath_prepend(tmp_path)
    before = {name: sys.modules.pop(name, None) for name in ("natterjack_llm", "natterjack_mcp")}
    yield importlib.import_module("natterjack_llm")
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def model_agents(*names: str) -> AgentRuntime:
    runtime = AgentRuntime()
    for name in names:
        runtime.add_process(AgentProcess(name, agent_config={"model": "openai:gpt-5-mini"}))
    return runtime


def test_every_sample_is_run() -> None:
    assert set(SAMPLES) == RUN_HERE | set(RUN_BY_A_PLUGIN)
    assert DOCUMENT.count("```python") == len(SAMPLES)


COMPLETE = {"mcp": "HttpServerSpec", "llm": "build_agent"}
"""What a plugin brings when it has all that the samples need."""


@pytest.mark.parametrize("sample", RUN_BY_A_PLUGIN)
def test_a_plugin_runs_its_samples_once_it_is_there(sample: str) -> None:
    plugin = Path(__file__).parents[1] / "plugins" / RUN_BY_A_PLUGIN[sample]
    tests = [path.read_text() for path in plugin.glob("tests/test_*.py")]
    brings = "".join(path.read_text() for path in plugin.glob("*/__init__.py"))
    there = COMPLETE[plugin.name] in brings  # its clients come after its server
    assert not there or any("document.md" in text and sample in text for text in tests)


@pytest.mark.parametrize("sample", SAMPLES)
def test_only_import_lines_are_changed(sample: str) -> None:
    pairs = zip(SAMPLES[sample].splitlines(), translated(sample).splitlines(), strict=True)
    changed = [(before, after) for before, after in pairs if before != after]
    assert all(before.startswith("from promptise") and after.startswith("from natterjack") for before, after in changed)
    assert "promptise" not in translated(sample)
    assert compiled(sample).co_filename == f"<{sample}>"  # and it is valid


@pytest.mark.usefixtures("llm")
async def test_programmatic_delegation() -> None:
    async with model_agents("researcher", "fact_checker") as runtime:
        found = await run("Programmatic delegation", analyst=runtime)
    question = "Find the top 3 papers on transformer architectures from 2025"
    assert found["answer"] == f"researcher on: {question}"
    claim = "Verify this claim: GPT-5 has 1 trillion parameters"
    assert found["answers"] == {"researcher": f"researcher on: {claim}", "fact_checker": f"fact_checker on: {claim}"}


@pytest_asyncio.fixture
async def messaging(llm: ModuleType) -> AsyncIterator[AgentRuntime]:
    """The runtime of the sample, that nothing of it stops."""
    servers: dict[str, Any] = {f"{work}_servers": {} for work in ("research", "analysis", "writing")}
    runtime: AgentRuntime = (await run("EventBus messaging", **servers))["runtime"]
    yield runtime
    await runtime.stop_all()


async def test_event_bus_messaging(llm: ModuleType, messaging: AgentRuntime) -> None:
    assert llm.seen == []  # nobody in the sample waits for "research.start"
    await messaging.inject_event("researcher", {"type": "research.start", "topic": "AI safety trends 2025"})
    await until(lambda: len(llm.seen) == 3)
    assert llm.seen == [
        ("researcher", "research.start", {"type": "research.start", "topic": "AI safety trends 2025"}),
        ("analyst", "research.complete", {"by": "researcher"}),
        ("writer", "reports.safety", {"by": "analyst"}),
    ]


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


def test_research_pipeline(llm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pause = asyncio.sleep

    async def until_done(delay: float, *result: Any) -> Any:
        """Where the sample waits two minutes, wait for what it waits for."""
        return await (until(lambda: len(llm.seen) == 3) if delay == 120 else pause(delay, *result))

    monkeypatch.setattr(asyncio, "sleep", until_done)
    monkeypatch.chdir(tmp_path)
    exec(compiled("Research pipeline"), {"__name__": "sample"})
    assert [(agent, kind) for agent, kind, _ in llm.seen] == [
        ("researcher", "research.start"),
        ("analyst", "research.complete"),
        ("writer", "analysis.approved"),
    ]
    for agent in ("researcher", "analyst", "writer"):
        (line,) = (tmp_path / "journals" / agent / f"{agent}.jsonl").read_text().splitlines()
        entry = json.loads(line)
        assert (entry["kind"], entry["data"]["result"]) == ("done", f"{agent} is done")


@pytest.mark.usefixtures("llm")
async def test_fan_out_and_fan_in() -> None:
    async with model_agents("legal_reviewer", "technical_reviewer") as runtime:
        found = await run("Fan-out / fan-in", coordinator=runtime, proposal="toads")
    assert found["combined"] == (
        "**legal_reviewer**: legal_reviewer on: Review this proposal: toads\n\n"
        "**technical_reviewer**: technical_reviewer on: Review this proposal: toads"
    )
    assert set(found["answers"].failures) == {"business_reviewer"}


async def test_pipeline_with_quality_gates(llm: ModuleType) -> None:
    """Each stage waits for an event of its own name, so that the stage before has to emit it."""
    runtime, names = AgentRuntime(), ("data_collector", "data_cleaner", "analyzer", "reporter")
    configs = {name: {"model": "openai:gpt-5-mini"} for name in names}
    await run("Pipeline with quality gates", runtime=runtime, configs=configs, AgentProcess=AgentProcess)
    async with runtime:
        await runtime.inject_event("data_collector", {"type": "collect.start"})
        await until(lambda: len(llm.seen) == 4)
    kinds = ("collect.start", "clean.complete", "analyze.complete", "report.complete")
    assert [(agent, kind) for agent, kind, _ in llm.seen] == list(zip(names, kinds, strict=True))


@pytest.mark.usefixtures("llm")
async def test_error_handling() -> None:
    class WithModel:
        """What `build_agent` returns: asks its peers, and can answer itself."""

        def __init__(self, runtime: AgentRuntime) -> None:
            self.ask_peer, self.broadcast = runtime.ask_peer, runtime.broadcast

        async def ainvoke(self, given: dict[str, Any]) -> str:
            return f"alone: {given['messages'][0]['content']}"

    async with model_agents("agent_a") as runtime:
        found = await run("Error handling", agent=WithModel(runtime), question="?")
    assert found["answer"] == "alone: ?"
    assert found["successful"] == {"agent_a": "agent_a on: ?"}
    assert set(found["answers"].failures) == {"agent_b", "agent_c"}
    assert all(isinstance(error, PeerTimeoutError) for error in found["answers"].failures.values())
