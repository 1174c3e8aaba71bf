"""The samples of the public documentation, as they stand there; only import lines are changed."""

import asyncio
import importlib.util
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from natterjack import AgentContext, AgentProcess, AgentRuntime, Event, PeerTimeoutError, RefusedError, RunContext
from natterjack.testing import NatsServer, until

COUNTER = '''
from natterjack import Agent, AgentContext, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext

class Counter(Agent):
    async def handle(self, event: Event, ctx: RunContext) -> str:
        """Called for each trigger; the result is journaled."""
        count = await ctx.shared.update("count", lambda value: (value or 0) + event.data["by"])
        await ctx.emit("count.changed", {"count": count})
        return f"now {count}"

    async def answer(self, question: str, ctx: RunContext) -> str:
        """Called for each ask; may also be an async generator of chunks."""
        return str(ctx.shared.get("count"))

runtime = AgentRuntime(context=AgentContext(initial_state={"count": 0}))
runtime.add_process(AgentProcess(name="counter", agent=Counter(), triggers=[EventTrigger("count.add")]))
async with runtime:
    await runtime.event_bus.emit("count.add", {"by": 2})
    print(await runtime.ask_peer("counter", "how many?", timeout=5.0))
'''

TICK = """
import asyncio
from typing import ClassVar
from pydantic import BaseModel
from natterjack import Right, Trigger, TriggerContext, hookimpl

class Tick(Trigger):
    name: ClassVar = "tick"
    class Config(BaseModel):
        every: float                     # seconds; validated from team.toml

    def needs(self, agent: str) -> list[Right]: return []
    async def run(self, ctx: TriggerContext) -> None:
        while True:
            await asyncio.sleep(self.config.every)
            await ctx.fire({"every": self.config.every})

@hookimpl
def natterjack_triggers():
    return [Tick]
"""

RUNTIME = """
from natterjack import AgentRuntime, AgentProcess
from natterjack import EventTrigger, MessageTrigger

runtime = AgentRuntime()

# Research agent publishes findings
research_process = AgentProcess(
    name="researcher",
    agent_config={
        "kind": kinds.researcher,
    },
)

# Analysis agent subscribes to research findings
analysis_process = AgentProcess(
    name="analyst",
    agent_config={
        "kind": kinds.analyst,
    },
    triggers=[
        # Fires when researcher publishes a "research.complete" event
        EventTrigger(event_type="research.complete"),
    ],
)

# Writer agent subscribes to analysis results via topic
writer_process = AgentProcess(
    name="writer",
    agent_config={
        "kind": kinds.writer,
    },
    triggers=[
        # Fires on any message to the "reports" topic
        MessageTrigger(topic="reports.*"),
    ],
)

runtime.add_process(research_process)
runtime.add_process(analysis_process)
runtime.add_process(writer_process)
await runtime.start_all()

# Kick off the pipeline
await runtime.event_bus.emit("research.start", {
    "topic": "AI safety trends 2025",
})
"""

CONTEXT = """
from natterjack import AgentContext

# Create shared context with controlled write access
shared_ctx = AgentContext(
    initial_state={"project": "quarterly-report", "status": "in_progress"},
    write_permissions={
        "researcher": ["findings", "sources"],
        "analyst": ["analysis", "recommendations"],
        "writer": ["draft", "status"],
    },
)

# Researcher writes findings (allowed)
shared_ctx.set("findings", research_data, writer="researcher")

# Analyst reads findings, writes analysis (allowed)
findings = shared_ctx.get("findings")
shared_ctx.set("analysis", analysis_data, writer="analyst")

# Writer reads everything, writes draft (allowed)
shared_ctx.set("draft", final_draft, writer="writer")
shared_ctx.set("status", "complete", writer="writer")

# Researcher tries to write draft (denied — not in write_permissions)
# shared_ctx.set("draft", "...", writer="researcher")  # Raises PermissionError
"""

STAGES = """
from natterjack import EventTrigger

# Each agent listens for the previous stage's completion event
stages = [
    ("data_collector", "collect.complete"),
    ("data_cleaner", "clean.complete"),
    ("analyzer", "analyze.complete"),
    ("reporter", "report.complete"),
]

for name, trigger_event in stages:
    runtime.add_process(AgentProcess(
        name=name,
        agent_config=configs[name],
        triggers=[EventTrigger(event_type=trigger_event)] if trigger_event != "collect.complete" else [],
    ))
"""

FAN_OUT = """
# Coordinator broadcasts subtasks
answers = await coordinator.broadcast(
    ["legal_reviewer", "technical_reviewer", "business_reviewer"],
    f"Review this proposal: {proposal}",
    timeout=60.0,
)
# Merge results from all reviewers
combined = "\\n\\n".join(f"**{name}**: {answer}" for name, answer in answers.items())
"""

ERRORS = """
# Cross-agent delegation with timeout and fallback
try:
    answer = await agent.ask_peer("specialist", question, timeout=30.0)
except TimeoutError:
    # Peer didn't respond — handle locally
    answer = await agent.ainvoke({"messages": [{"role": "user", "content": question}]})

# Broadcast with partial failure tolerance
answers = await agent.broadcast(
    ["agent_a", "agent_b", "agent_c"],
    question,
    timeout=30.0,
)
# answers may have fewer keys than requested if some agents failed
successful = {k: v for k, v in answers.items() if v is not None}
"""


async def run(source: str, **names: Any) -> dict[str, Any]:
    """Run a sample inside a coroutine and return its names."""
    body = textwrap.indent(f"{source}\nreturn locals()", "    ")
    scope: dict[str, Any] = {"__name__": __name__, **names}
    exec(compile(f"async def sample({', '.join(names)}):\n{body}", "<sample>", "exec"), scope)
    found: dict[str, Any] = await scope["sample"](**names)
    return found


@pytest.fixture(autouse=True)
def server(own_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    monkeypatch.setenv("NATS_URL", own_server.url)
    return own_server


AGENTS = '''
from natterjack import Agent

class Seen(Agent):
    events = []

    async def handle(self, event, ctx):
        self.events.append((ctx.agent, event.type, event.data))
        await self.work(event, ctx)

    async def work(self, event, ctx):
        """Nothing."""

class Analyst(Seen):
    async def work(self, event, ctx):
        await ctx.publish("reports.safety", {"quality": 4})

class Stage(Seen):
    FOLLOWING = {"collect.start": "clean.complete", "clean.complete": "analyze.complete",
                 "analyze.complete": "report.complete"}

    async def work(self, event, ctx):
        if event.type in self.FOLLOWING:
            await ctx.emit(self.FOLLOWING[event.type], event.data)
'''


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import sys

    (tmp_path / "sample_agents.py").write_text(AGENTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("sample_agents")
    sys.modules.pop("sample_agents", None)


async def test_counter(capsys: pytest.CaptureFixture[str]) -> None:
    found = await run(COUNTER)
    assert capsys.readouterr().out.strip() in ("0", "2")  # the event may still be on its way
    async with found["runtime"] as runtime:
        await until(lambda: runtime.context.get("count") == 2)
        assert await runtime.ask_peer("counter", "how many?", timeout=5.0) == "2"


async def test_tick() -> None:
    tick = (await run(TICK))["Tick"]
    fired: list[Event] = []

    async def handle(question: str, ctx: RunContext) -> None:
        fired.append(question)  # type: ignore[arg-type]

    runtime = AgentRuntime()
    trigger = tick.create({"every": 0.01})
    runtime.add_process(AgentProcess(name="ticking", agent=handle, triggers=[trigger]))
    async with runtime:
        await until(lambda: len(fired) >= 2)


async def test_event_bus_and_runtime(agents: Any) -> None:
    kinds = SimpleNamespace(
        researcher="sample_agents:Seen", analyst="sample_agents:Analyst", writer="sample_agents:Seen"
    )
    found = await run(RUNTIME, kinds=kinds)
    runtime = found["runtime"]
    try:
        await runtime.event_bus.emit("research.complete", {"findings": ["…"]})
        await until(lambda: len(agents.Seen.events) == 2)
        assert agents.Seen.events == [
            ("analyst", "research.complete", {"findings": ["…"]}),
            ("writer", "reports.safety", {"quality": 4}),
        ]
        injected = await runtime.inject_event("researcher", {"type": "research.start", "topic": "AI"})
        assert await injected.result(timeout=5.0) is None
        assert agents.Seen.events[-1][2] == {"type": "research.start", "topic": "AI"}
    finally:
        await runtime.stop_all()


@pytest.mark.parametrize("attached", [False, True])
async def test_shared_context(attached: bool) -> None:
    given = {"research_data": ["a"], "analysis_data": {"b": 1}, "final_draft": "text"}
    shared = (await run(CONTEXT, **given))["shared_ctx"]
    assert isinstance(shared, AgentContext)
    async with AgentRuntime(context=shared) if attached else AgentContextAlone():
        assert shared.get("findings") == ["a"]
        assert shared.get("status") == "complete"
        with pytest.raises(PermissionError, match="'researcher' may not write 'draft'") as caught:
            shared.set("draft", "...", writer="researcher")
        assert isinstance(caught.value, RefusedError)
        await shared.set("draft", "better", writer="writer")
        assert shared.get("draft") == "better"
        assert shared.get("project") == "quarterly-report"


class AgentContextAlone:
    """In place of a runtime: nothing."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def test_shared_context_sample_inside_a_running_runtime() -> None:
    shared = AgentContext(write_permissions={"researcher": ["findings"]})
    async with AgentRuntime(context=shared) as runtime:
        shared.set("findings", [1], writer="researcher")  # nobody awaits it, and it shows at once
        assert shared.get("findings") == [1]
        await shared.flush()
        assert runtime.context.get("findings") == [1]


async def test_pipeline_with_quality_gates(agents: Any) -> None:
    names = ("data_collector", "data_cleaner", "analyzer", "reporter")
    configs = {name: {"kind": "sample_agents:Stage"} for name in names}
    runtime = AgentRuntime()
    await run(STAGES, runtime=runtime, configs=configs, AgentProcess=AgentProcess)
    async with runtime:
        await runtime.inject_event("data_collector", {"type": "collect.start", "n": 1})
        await until(lambda: len(agents.Seen.events) == 4)
    assert [(agent, kind) for agent, kind, _ in agents.Seen.events] == [
        ("data_collector", "collect.start"),
        ("data_cleaner", "clean.complete"),
        ("analyzer", "analyze.complete"),
        ("reporter", "report.complete"),
    ]


async def test_fan_out_and_fallback() -> None:
    async def review(question: str) -> str:
        return f"fine: {question}"

    async def silent(question: str) -> None:
        await asyncio.Event().wait()

    runtime = AgentRuntime()
    for name in ("legal_reviewer", "technical_reviewer", "agent_a"):
        runtime.add_process(AgentProcess(name=name, agent=review))
    async with runtime:
        found = await run(FAN_OUT, coordinator=runtime, proposal="toads")
        assert found["combined"] == (
            "**legal_reviewer**: fine: Review this proposal: toads\n\n"
            "**technical_reviewer**: fine: Review this proposal: toads"
        )
        assert set(found["answers"].failures) == {"business_reviewer"}

        class WithModel:
            ask_peer, broadcast = runtime.ask_peer, runtime.broadcast

            async def ainvoke(self, given: dict[str, Any]) -> str:
                return f"alone: {given['messages'][0]['content']}"

        found = await run(ERRORS, agent=WithModel(), question="?")
        assert found["answer"] == "alone: ?"
        assert found["successful"] == {"agent_a": "fine: ?"}
        assert all(isinstance(error, PeerTimeoutError) for error in found["answers"].failures.values())
