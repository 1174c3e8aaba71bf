"""The runtime: an orderly start and end, agents of every form, triggers, replicas, two processes on one state."""

import asyncio
import contextlib
import logging
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from natterjack import (
    Agent,
    AgentContext,
    AgentProcess,
    AgentRuntime,
    ConfigError,
    ConnectError,
    Entry,
    Event,
    EventTrigger,
    FileJournal,
    InvalidNameError,
    Journal,
    MessageTrigger,
    NotProvisionedError,
    PeerUnavailableError,
    PluginError,
    RefusedError,
    RunContext,
    RunFailedError,
    StartError,
    Trigger,
    TriggerContext,
    connect,
)
from natterjack.bus import Bus
from natterjack.plugins import DISABLED, Plugins
from natterjack.runtime import TeamRuntime, opened, start_agent
from natterjack.server import Server
from natterjack.team import Team, TriggerSpec
from natterjack.testing import NatsServer, free_port, until


async def echo(question: str) -> str:
    """Say it again, loudly."""
    return question.upper()


async def elapse(seconds: float) -> None:
    """Work that takes so long."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, done.set)
    await done.wait()


class Recorder(Agent):
    """Remembers what it handles, and how it was started and stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.events: list[Event] = []

    async def start(self) -> None:
        self.calls.append("start")

    async def stop(self) -> None:
        self.calls.append("stop")

    async def handle(self, event: Event, ctx: RunContext) -> str:
        self.events.append(event)
        return f"did {event.type}"

    async def answer(self, question: str, ctx: RunContext) -> str:
        return "yes"


@contextlib.asynccontextmanager
async def nothing_left(server: NatsServer) -> AsyncIterator[None]:
    """Fail when a task or a connection is left behind."""
    bus = await Bus.connect(Server(server.url), principal="operator")
    tasks = asyncio.all_tasks()
    try:
        yield
        await until(lambda: not asyncio.all_tasks() - tasks)
        assert await bus.gather("$SRV.PING", window=0.05) == []
        assert connections(server) == 1
    finally:
        await bus.close()


def connections(server: NatsServer) -> int:
    """How many established connections the server's port has, as the kernel sees them."""
    port = f"0100007F:{server.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1] == port and row[3] == "01" for row in rows)


# Start and stop


async def test_start_and_stop_call_the_agent_once(own_server: NatsServer) -> None:
    recorder = Recorder()
    async with nothing_left(own_server):
        runtime = AgentRuntime(own_server.url)
        runtime.add_process(AgentProcess(name="recorder", agent=recorder))
        await runtime.start_all()
        await runtime.start_all()
        assert await runtime.ask_peer("recorder", "?", timeout=5.0) == "yes"
        assert recorder.calls == ["start"]
        await runtime.stop_all()
        await runtime.stop_all()
        assert recorder.calls == ["start", "stop"]


async def test_concurrent_starts_are_one(own_server: NatsServer) -> None:
    recorder = Recorder()
    async with nothing_left(own_server):
        runtime = AgentRuntime(own_server.url)
        runtime.add_process(AgentProcess(name="recorder", agent=recorder))
        await asyncio.gather(*(runtime.start_all() for _ in range(5)))
        assert len(await runtime.agents()) == 1
        await runtime.stop_all()
    assert recorder.calls == ["start", "stop"]


async def test_stopped_runtime_starts_again(own_server: NatsServer) -> None:
    recorder = Recorder()
    runtime = AgentRuntime(own_server.url, context=AgentContext({"n": 1}))
    runtime.add_process(AgentProcess(name="recorder", agent=recorder, triggers=[EventTrigger("a.b")]))
    async with runtime:
        await runtime.event_bus.emit("a.b", 1)
        await until(lambda: len(recorder.events) == 1)
        await runtime.context.set("n", 2)
    async with runtime:
        await runtime.event_bus.emit("a.b", 2)
        await until(lambda: len(recorder.events) == 2)
        assert runtime.context.get("n") == 2
    assert recorder.calls == ["start", "stop"] * 2


class Broken(Agent):
    """Cannot start."""

    async def start(self) -> None:
        msg = "no licence"
        raise OSError(msg)


class Patient(Recorder):
    """Takes its time to start."""

    async def start(self) -> None:
        self.calls.append("begin")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.calls.append("cancelled")
            raise


async def test_failed_start_names_agent_and_cause_and_leaves_nothing(own_server: NatsServer) -> None:
    ready, patient = Recorder(), Patient()
    async with nothing_left(own_server):
        runtime = AgentRuntime(own_server.url)
        runtime.add_process(AgentProcess(name="ready", agent=ready, triggers=[EventTrigger("a")]))
        runtime.add_process(AgentProcess(name="patient", agent=patient))
        runtime.add_process(AgentProcess(name="broken", agent=Broken()))
        async with asyncio.timeout(10):
            with pytest.raises(StartError, match=r"'broken' cannot start: OSError: no licence"):
                await runtime.start_all()
        with pytest.raises(ConfigError, match="does not run yet"):
            await runtime.ask_peer("ready", "?")
    assert ready.calls in (["start", "stop"], [])
    assert patient.calls in (["begin", "cancelled"], [])


async def test_cancelled_start_leaves_nothing(own_server: NatsServer) -> None:
    patient = Patient()
    async with nothing_left(own_server):
        runtime = AgentRuntime(own_server.url)
        runtime.add_process(AgentProcess(name="patient", agent=patient))
        starting = asyncio.create_task(runtime.start_all())
        await until(lambda: patient.calls)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert patient.calls == ["begin", "cancelled"]


async def test_agent_that_cannot_stop_is_logged_and_the_rest_stops(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Stuck(Agent):
        async def stop(self) -> None:
            msg = "stuck"
            raise RuntimeError(msg)

    recorder = Recorder()
    async with nothing_left(own_server):
        runtime = AgentRuntime(own_server.url)
        runtime.add_process(AgentProcess(name="stuck", agent=Stuck()))
        runtime.add_process(AgentProcess(name="recorder", agent=recorder))
        async with runtime:
            pass
    assert "'stuck' did not stop cleanly" in caplog.text
    assert recorder.calls == ["start", "stop"]


async def test_stop_finishes_running_handlers(own_server: NatsServer) -> None:
    begun, ended = asyncio.Event(), []

    class Worker(Agent):
        async def handle(self, event: Event, ctx: RunContext) -> None:
            begun.set()
            await elapse(0.2)
            ended.append(event.data)

    async with nothing_left(own_server):
        runtime = AgentRuntime(own_server.url)
        runtime.add_process(AgentProcess(name="worker", agent=Worker(), triggers=[EventTrigger("work")]))
        async with runtime:
            await runtime.event_bus.emit("work", 1)
            await begun.wait()
        assert ended == [1]


async def test_no_server_there() -> None:
    runtime = AgentRuntime(f"nats://127.0.0.1:{free_port()}")
    runtime.add_process(AgentProcess(name="echo", agent=echo))
    tasks = asyncio.all_tasks()
    with pytest.raises(StartError, match="no NATS server answers at"):
        await runtime.start_all()
    assert asyncio.all_tasks() == tasks


async def test_embedded_broker_where_no_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NATS_URL", raising=False)
    tasks = asyncio.all_tasks()
    runtime = AgentRuntime()
    runtime.add_process(AgentProcess(name="echo", agent=echo))
    async with runtime:
        assert (tmp_path / ".natterjack").is_dir()
        assert await runtime.ask_peer("echo", "a", timeout=5.0) == "A"
        async with connect(runtime.server) as team, connect() as found:
            assert await team.ask_peer("echo", "b", timeout=5.0) == "B"
            assert await found.ask_peer("echo", "c", timeout=5.0) == "C"
    await until(lambda: asyncio.all_tasks() == tasks)


async def test_server_of_the_environment(own_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", own_server.url)
    runtime = AgentRuntime()
    runtime.add_process(AgentProcess(name="echo", agent=echo))
    async with runtime, connect() as team:
        assert await team.ask_peer("echo", "a", timeout=5.0) == "A"


# What is written wrongly


def test_processes_are_checked_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either `agent` or `agent_config`"):
        AgentProcess(name="a")
    with pytest.raises(ConfigError, match="either `agent` or `agent_config`"):
        AgentProcess(name="a", agent=echo, agent_config={})
    with pytest.raises(InvalidNameError, match="'No Name'"):
        AgentProcess(name="No Name", agent=echo)
    with pytest.raises(ConfigError, match="'a' is no agent"):
        AgentProcess(name="a", agent="echo")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is no trigger"):
        AgentProcess(name="a", agent=echo, triggers=["a.b"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="concurrency"):
        AgentProcess(name="a", agent=echo, concurrency=0)
    with pytest.raises(ValueError, match="no valid pattern"):
        EventTrigger("a..b")
    with pytest.raises(ValueError, match="no valid pattern"):
        MessageTrigger(topic="a.>.b")
    runtime = AgentRuntime()
    runtime.add_process(AgentProcess(name="a", agent=echo))
    with pytest.raises(ConfigError, match="already has an agent 'a'"):
        runtime.add_process(AgentProcess(name="a", agent=echo))


async def test_late_agent_is_refused(own_server: NatsServer) -> None:
    async with AgentRuntime(own_server.url) as runtime:
        with pytest.raises(ConfigError, match="too late"):
            runtime.add_process(AgentProcess(name="a", agent=echo))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"model": "openai:gpt-5-mini"}, r"\[agents.odd\].*natterjack install natterjack-llm"),
        ({"kind": "gopher"}, r"\[agents.odd\].*natterjack install natterjack-gopher"),
        ({"kind": "no_such_module_here:Agent"}, r"'odd'.*no_such_module_here"),
        ({"kind": "natterjack:Agnet"}, r"'odd'.*Did you mean 'Agent'"),
        ({"kind": "natterjack:EventTrigger"}, "'odd'.*is no agent"),
        ({"kind": "natterjack.builtin.agents:FunctionAgent"}, "'odd' cannot be made: TypeError"),
    ],
)
async def test_unknown_kind_says_what_to_do(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], text: str
) -> None:
    monkeypatch.setenv(DISABLED, "llm")
    async with nothing_left(own_server):
        runtime = AgentRuntime(own_server.url)
        runtime.add_process(AgentProcess(name="fine", agent=echo))
        runtime.add_process(AgentProcess(name="odd", agent_config=config))
        with pytest.raises(StartError, match=text):
            await runtime.start_all()


# Agents by function, by class, with context


async def test_functions_are_agents(own_server: NatsServer) -> None:
    async def informed(question: str, ctx: RunContext) -> str:
        return f"{ctx.agent} {ctx.caller} {question}"

    async def optional(question: str, loud: bool = False, *, n: int = 2) -> str:
        return question * n if not loud else question.upper()

    runtime = AgentRuntime(own_server.url)
    for name, function in (("echo", echo), ("informed", informed), ("optional", optional)):
        runtime.add_process(AgentProcess(name=name, agent=function, triggers=[EventTrigger("a.b")]))
    async with runtime:
        assert await runtime.ask_peer("echo", "a", timeout=5.0) == "A"
        assert await runtime.ask_peer("informed", "a", timeout=5.0) == "informed operator a"
        assert await runtime.ask_peer("optional", "a", timeout=5.0) == "aa"
        run = await runtime.inject_event("echo", {"type": "a.b", "x": 1})
        assert await run.result(timeout=5.0) == '{"TYPE":"A.B","X":1}'
        assert (await runtime.agents())[0].description == "Say it again, loudly."


async def test_class_stands_for_an_agent(own_server: NatsServer) -> None:
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess(name="recorder", agent=Recorder))
    async with runtime:
        assert await runtime.ask_peer("recorder", "?", timeout=5.0) == "yes"


async def test_result_event_and_journals(own_server: NatsServer, tmp_path: Path) -> None:
    kept: list[Entry] = []

    class Kept(Journal):
        closed = False

        async def write(self, entry: Entry) -> None:
            kept.append(entry)

        async def close(self) -> None:
            Kept.closed = True

    class First(Agent):
        async def handle(self, event: Event, ctx: RunContext) -> dict[str, Any]:
            await ctx.journal.append("note", {"topic": event.data["topic"]})
            return {"found": event.data["topic"]}

    second = Recorder()
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(
        AgentProcess(
            name="first",
            agent=First(),
            triggers=[EventTrigger("start")],
            result_event="complete",
            journal=[FileJournal(tmp_path), Kept()],
        )
    )
    runtime.add_process(AgentProcess(name="second", agent=second, triggers=[EventTrigger("complete")]))
    async with runtime:
        await runtime.event_bus.emit("start", {"topic": "toads"})
        await until(lambda: second.events)
        assert (second.events[0].data, second.events[0].source) == ({"found": "toads"}, "first")
        await until(lambda: len(kept) == 3)
    assert [entry.kind for entry in kept] == ["note", "routed", "done"]
    assert len((tmp_path / "first.jsonl").read_text().splitlines()) == 3
    assert Kept.closed


async def test_messages_and_wildcards(own_server: NatsServer) -> None:
    recorder = Recorder()
    runtime = AgentRuntime(own_server.url)
    triggers = [EventTrigger("a.*"), MessageTrigger("reports.>")]
    runtime.add_process(AgentProcess(name="recorder", agent=recorder, triggers=triggers))
    async with runtime:
        await runtime.event_bus.emit("a.b", 1)
        await runtime.event_bus.emit("a.b.c", 2)
        await runtime.event_bus.publish("reports.x.y", 3)
        await runtime.event_bus.publish("a.b", 4)
        await until(lambda: len(recorder.events) == 2)
    assert sorted((event.type, event.data) for event in recorder.events) == [("a.b", 1), ("reports.x.y", 3)]


async def test_inject_event(own_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    class Moody(Recorder):
        async def handle(self, event: Event, ctx: RunContext) -> str:
            if event.data.get("fail"):
                msg = "not today"
                raise ValueError(msg)
            return await super().handle(event, ctx)

    moody, other = Moody(), Recorder()
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess(name="moody", agent=moody, max_attempts=2, retry_delay=0.05))
    runtime.add_process(AgentProcess(name="other", agent=other, triggers=[EventTrigger(">")]))
    async with runtime:
        run = await runtime.inject_event("moody", {"type": "research.start", "topic": "toads"})
        assert await run.result(timeout=5.0) == "did research.start"
        assert await run.result(timeout=5.0) == "did research.start"  # known later, too
        assert moody.events[0].data == {"type": "research.start", "topic": "toads"}
        failing = await runtime.inject_event("moody", {"type": "research.start", "fail": True})
        with pytest.raises(RunFailedError, match="ValueError: not today"):
            await failing.result(timeout=5.0)
        with pytest.raises(ConfigError, match="Did you mean 'moody'"):
            await runtime.inject_event("mody", {"type": "a"})
        with pytest.raises(ValueError, match="'type'"):
            await runtime.inject_event("moody", {"topic": "a"})
        with pytest.raises(InvalidNameError):
            await runtime.inject_event("moody", {"type": "a b"})
    assert other.events == []


async def test_write_permissions(own_server: NatsServer) -> None:
    class Writer(Agent):
        async def answer(self, question: str, ctx: RunContext) -> str:
            await ctx.shared.set(question, ctx.agent)
            return str(ctx.shared.get(question))

    shared = AgentContext({"status": "new"}, {"researcher": ["findings", "sources.*"], "writer": ["draft"]})
    runtime = AgentRuntime(own_server.url, context=shared)
    for name in ("researcher", "writer", "reader"):
        runtime.add_process(AgentProcess(name=name, agent=Writer()))
    async with runtime:
        assert await runtime.ask_peer("researcher", "findings", timeout=5.0) == "researcher"
        assert await runtime.ask_peer("researcher", "sources.a", timeout=5.0) == "researcher"
        for name, key in (("researcher", "draft"), ("reader", "draft"), ("writer", "status")):
            with pytest.raises(PermissionError, match=f"{name!r} may not write {key!r}"):
                await runtime.ask_peer(name, key, timeout=5.0)
        with pytest.raises(RefusedError):
            shared.set("draft", "x", writer="researcher")
        await shared.set("status", "done")  # the operator
        assert (shared.get("status"), shared.get("findings"), shared.get("draft")) == ("done", "researcher", None)


# Triggers of one's own


class Tick(Trigger):
    """Fires every so many seconds."""

    name: ClassVar = "tick"

    class Config(BaseModel):
        every: float

    async def run(self, ctx: TriggerContext) -> None:
        while True:
            await elapse(self.config.every)
            await ctx.fire({"every": self.config.every})


async def test_trigger_of_ones_own(own_server: NatsServer) -> None:
    recorder = Recorder()
    async with nothing_left(own_server):
        runtime = AgentRuntime(own_server.url)
        trigger = Tick(Tick.Config(every=0.02))
        runtime.add_process(AgentProcess(name="ticking", agent=recorder, triggers=[trigger]))
        async with runtime:
            await until(lambda: len(recorder.events) >= 3)
    assert {event.type for event in recorder.events} == {"tick"}
    assert recorder.events[0].data == {"every": 0.02}
    assert recorder.events[0].source == "ticking"


def test_doors_are_added_or_take_the_place_of_what_the_team_says() -> None:
    on = (TriggerSpec(kind="event", settings={"event_type": "x"}), TriggerSpec(kind="tick", settings={"a": 1, "b": 2}))
    assert opened(on, {}) == on
    changed = opened(on, {"tick": {"b": 3}, "door": {"c": 4}})
    assert [(each.kind, each.settings) for each in changed] == [
        ("event", {"event_type": "x"}),
        ("tick", {"a": 1, "b": 3}),
        ("door", {"c": 4}),
    ]


async def test_trigger_fires_once_per_id(own_server: NatsServer) -> None:
    class Daily(Trigger):
        """Fires for the same days on every replica, and long after the first was handled."""

        name: ClassVar = "daily"
        fired: ClassVar[list[int]] = []

        async def run(self, ctx: TriggerContext) -> None:
            for day in range(3):
                self.fired.append(await ctx.fire(day, type="day.begun", id=f"day-{day}"))
                await until(lambda day=day: len(recorder.events) > day)  # type: ignore[misc]
            await asyncio.Event().wait()

    recorder, namesake = Recorder(), Recorder()
    async with contextlib.AsyncExitStack() as stack:
        for replica in range(1, 4):
            runtime = AgentRuntime(own_server.url)
            runtime.add_process(AgentProcess(name="daily", agent=recorder, triggers=[Daily()]))
            await stack.enter_async_context(runtime)
            await until(lambda replica=replica: len(Daily.fired) == 3 * replica)  # type: ignore[misc]
        runtime = AgentRuntime(own_server.url)
        runtime.add_process(AgentProcess(name="namesake", agent=namesake, triggers=[Daily()]))
        await stack.enter_async_context(runtime)
        await until(lambda: len(namesake.events) == 3)  # the ids of one agent are not those of another
    assert sorted(event.data for event in recorder.events) == [0, 1, 2]
    assert len(set(Daily.fired)) == 6


class Ending(Trigger):
    """Returns, or raises."""

    name: ClassVar = "ending"

    class Config(BaseModel):
        error: str = ""

    async def run(self, ctx: TriggerContext) -> None:
        if self.config.error:
            raise LookupError(self.config.error)


@pytest.mark.parametrize(("error", "text"), [("", "ended by itself"), ("no source", "LookupError: no source")])
async def test_trigger_that_ends_ends_the_runtime(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture, error: str, text: str
) -> None:
    runtime = AgentRuntime(own_server.url)
    trigger = Ending(Ending.Config(error=error))
    runtime.add_process(AgentProcess(name="fine", agent=echo))
    runtime.add_process(AgentProcess(name="short", agent=echo, triggers=[trigger]))
    async with nothing_left(own_server), runtime:
        async with asyncio.timeout(5):
            with pytest.raises(StartError, match=f"'short' cannot go on: its trigger 'ending'.*{text}"):
                await runtime.wait()
        assert await runtime.ask_peer("fine", "a", timeout=5.0) == "A"
        assert "agent 'short': its trigger 'ending'" in caplog.text


class Door(Trigger):
    """Is reached at a door."""

    name: ClassVar = "door"
    tells_ready = True

    def __init__(self, opens: asyncio.Event, error: str = "") -> None:
        super().__init__()
        self.opens, self.error = opens, error

    async def run(self, ctx: TriggerContext) -> None:
        await self.opens.wait()
        if self.error:
            raise ConfigError(self.error)
        ctx.ready()
        await asyncio.Event().wait()


async def test_an_agent_starts_once_its_triggers_can_be_reached(own_server: NatsServer) -> None:
    opens = asyncio.Event()
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess(name="inside", agent=echo, triggers=[Door(opens)]))
    async with nothing_left(own_server):
        starting = asyncio.create_task(runtime.start_all())
        done, _ = await asyncio.wait([starting], timeout=0.2)
        assert not done
        opens.set()
        await starting
        await runtime.stop_all()


async def test_a_trigger_that_fails_before_it_can_be_reached_fails_the_start(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    opens = asyncio.Event()
    opens.set()
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess(name="inside", agent=echo, triggers=[Door(opens, "it is locked")]))
    async with nothing_left(own_server):
        with pytest.raises(StartError, match=r"'inside' cannot start: its trigger 'door' failed: it is locked$"):
            await runtime.start_all()
    assert "Traceback" not in caplog.text


async def test_wait_returns_when_stopped(own_server: NatsServer) -> None:
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess(name="echo", agent=echo, triggers=[EventTrigger("a")]))
    with pytest.raises(ConfigError, match="does not run"):
        await runtime.wait()
    async with nothing_left(own_server):
        await runtime.start_all()
        waiting = asyncio.create_task(runtime.wait())
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        await runtime.stop_all()
        async with asyncio.timeout(5):
            assert await waiting is None  # type: ignore[func-returns-value]


async def test_wait_without_agents(own_server: NatsServer) -> None:
    async with AgentRuntime(own_server.url) as runtime:
        waiting = asyncio.create_task(runtime.wait())
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
    async with asyncio.timeout(5):
        await waiting


# Many processes


async def test_connect_never_provisions(own_server: NatsServer) -> None:
    with pytest.raises(NotProvisionedError, match="natterjack provision"):
        async with connect(own_server.url):
            pytest.fail("there is no team")
    bus = await Bus.connect(Server(own_server.url), principal="operator")
    assert (await bus.api("STREAM.NAMES")).get("streams") is None
    await bus.close()


async def test_connect_needs_a_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NATS_URL", raising=False)
    with pytest.raises(ConfigError, match="no server is named, and no broker runs in this folder"):
        async with connect():
            pytest.fail("there is no server")
    with pytest.raises(ConnectError, match="no NATS server answers"):
        async with connect(f"nats://127.0.0.1:{free_port()}"):
            pytest.fail("there is no server")


async def test_client_does_what_the_operator_does(own_server: NatsServer) -> None:
    recorder = Recorder()
    runtime = AgentRuntime(own_server.url, context=AgentContext({"n": 1}))
    runtime.add_process(AgentProcess(name="recorder", agent=recorder, triggers=[EventTrigger("a.b")]))
    async with runtime:
        await (await runtime.inject_event("recorder", {"type": "a.b"})).result(timeout=5.0)
        await runtime.event_bus.emit("a.b")
        await until(lambda: len(recorder.events) == 2)  # now its triggers listen
        async with nothing_left_here(), connect(own_server.url) as team:
            assert await team.ask_peer("recorder", "?", timeout=5.0) == "yes"
            assert await team.broadcast(["recorder"], "?", timeout=5.0) == {"recorder": "yes"}
            assert team.context.get("n") == 1
            await team.context.set("n", 2)
            await team.event_bus.emit("a.b")
            await until(lambda: len(recorder.events) == 3)
            run = await team.inject_event("recorder", {"type": "a.b"})
            assert await run.result(timeout=5.0) == "did a.b"
            assert [agent.name for agent in await team.agents()] == ["recorder"]
        await until(lambda: runtime.context.get("n") == 2)


@contextlib.asynccontextmanager
async def nothing_left_here() -> AsyncIterator[None]:
    tasks = asyncio.all_tasks()
    yield
    await until(lambda: not asyncio.all_tasks() - tasks)


TEAM = {
    "agents": {
        "counter": {"kind": "counting:Counter", "on": ["count.add"], "step": 2},
        "reader": {"kind": "counting:Counter"},
    },
    "context": {"count": 0},
}
COUNTING = '''
from natterjack import Agent, Settings

class Counter(Agent):
    """Counts."""

    class Config(Settings):
        step: int = 1

    async def handle(self, event, ctx):
        return await ctx.shared.update("count", lambda value: value + self.config.step * event.data["by"])

    async def answer(self, question, ctx):
        return f"{ctx.agent} sees {ctx.shared.get('count')}"
'''


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder; the team's package is installed elsewhere."""
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "counting.py").write_text(COUNTING)
    (tmp_path / "empty").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.chdir(tmp_path / "empty")
    yield tmp_path / "installed"
    sys.modules.pop("counting", None)


async def provisioned(server: NatsServer) -> None:
    from natterjack.provision import provision

    bus = await Bus.connect(Server(server.url), principal="operator")
    try:
        await provision(bus, Team.model_validate(TEAM), Plugins.load())
    finally:
        await bus.close()


async def test_agent_starts_from_an_empty_folder(own_server: NatsServer, counting: Path) -> None:
    await provisioned(own_server)
    async with nothing_left(own_server):
        host, context = await start_agent("counter", Server(own_server.url))
        async with connect(own_server.url) as team:
            await team.event_bus.emit("count.add", {"by": 3})
            await until(lambda: context.get("count") == 6)
            assert await team.ask_peer("counter", "?", timeout=5.0) == "counter sees 6"
            with pytest.raises(PeerUnavailableError):
                await team.ask_peer("reader", "?", timeout=5.0)
        await host.stop(5.0)
        await context.close()


@pytest.mark.parametrize("name", ["countr", "No Name"])
async def test_agent_that_the_team_does_not_have(own_server: NatsServer, counting: Path, name: str) -> None:
    await provisioned(own_server)
    async with nothing_left(own_server):
        with pytest.raises(ValueError, match=r"Did you mean 'counter'|no valid agent name"):
            await start_agent(name, Server(own_server.url))


async def test_agent_without_a_team(own_server: NatsServer) -> None:
    async with nothing_left(own_server):
        with pytest.raises(NotProvisionedError, match="a team"):
            await start_agent("counter", Server(own_server.url))


async def test_agent_whose_code_is_missing(own_server: NatsServer, counting: Path) -> None:
    await provisioned(own_server)
    (counting / "counting.py").unlink()
    async with nothing_left(own_server):
        with pytest.raises(ConfigError, match=r"'counter'.*'counting:Counter' cannot be imported"):
            await start_agent("counter", Server(own_server.url))


async def test_team_in_one_process(own_server: NatsServer, counting: Path) -> None:
    async with nothing_left(own_server):
        runtime = TeamRuntime(Team.model_validate(TEAM), Server(own_server.url), Plugins.load())
        async with runtime:
            run = await runtime.inject_event("counter", {"type": "count.add", "by": 2})
            assert await run.result(timeout=5.0) == 4
            assert await runtime.ask_peer("reader", "?", timeout=5.0) == "reader sees 4"


async def test_processes_share_state(own_server: NatsServer, counting: Path) -> None:
    """The counter is an operating-system process of its own; the reader is ours."""
    await provisioned(own_server)
    program = f"""
        import asyncio, sys
        sys.path.insert(0, {str(counting)!r})
        from natterjack import Server
        from natterjack.runtime import start_agent

        async def main():
            host, context = await start_agent("counter", Server({own_server.url!r}))
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.read)
            await host.stop(5)
            await context.close()

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 - once
        assert process.stdin is not None
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        host, context = await start_agent("reader", Server(own_server.url))
        async with connect(own_server.url) as team:
            for _ in range(10):
                await team.event_bus.emit("count.add", {"by": 1})
            await until(lambda: context.get("count") == 20)
            assert await team.ask_peer("reader", "?", timeout=5.0) == "reader sees 20"
            assert await team.ask_peer("counter", "?", timeout=5.0) == "counter sees 20"
            await context.acting_as("reader", host.bus).set("count", 100)
            run = await team.inject_event("counter", {"type": "count.add", "by": 1})
            assert await run.result(timeout=5.0) == 102
        await host.stop(5.0)
        await context.close()
        process.stdin.close()
        assert await asyncio.to_thread(process.wait, 10) == 0


async def test_ten_replicas_handle_each_event_once(own_server: NatsServer) -> None:
    recorders = [Recorder() for _ in range(10)]
    runtimes = []
    for recorder in recorders:
        runtime = AgentRuntime(own_server.url)
        process = AgentProcess(name="worker", agent=recorder, triggers=[EventTrigger("work")], concurrency=4)
        runtime.add_process(process)
        runtimes.append(runtime)
    async with nothing_left(own_server):
        await asyncio.gather(*(runtime.start_all() for runtime in runtimes))
        assert len(await runtimes[0].agents()) == 10
        await asyncio.gather(*(runtimes[0].event_bus.emit("work", n) for n in range(500)))
        await until(lambda: sum(len(recorder.events) for recorder in recorders) >= 500)
        await asyncio.gather(*(runtime.stop_all() for runtime in runtimes))
    handled = sorted(event.data for recorder in recorders for event in recorder.events)
    assert handled == list(range(500))
    assert sum(bool(recorder.events) for recorder in recorders) >= 5


async def test_plugin_error_of_a_stored_team_names_the_package(own_server: NatsServer) -> None:
    """A trigger of the program that provisioned cannot be had from the store alone."""
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess(name="ticking", agent=echo, triggers=[Tick(Tick.Config(every=60))]))
    async with runtime:
        with pytest.raises(PluginError, match="natterjack install natterjack-tick"):
            await start_agent("ticking", Server(own_server.url))


async def test_forged_revision_does_not_hold_an_agent_up(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recorder = Recorder()
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess(name="recorder", agent=recorder, triggers=[EventTrigger("a")]))
    async with runtime, connect(own_server.url) as team:
        headers = {"Natterjack": "r=9000000000000000000"}
        await team.bus.store("events.a", b"1", headers=headers)
        await until(lambda: recorder.events)
        reply = await team.bus.request("agents.ask.recorder", b"?", timeout=5, headers=headers)
        assert reply.data == b"yes"
