"""Triggers for changes of the shared context, and for plain subjects of other programs."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from nats.aio.client import Client

from natterjack import (
    AgentContext,
    AgentProcess,
    AgentRuntime,
    ConfigError,
    ContextTrigger,
    Event,
    PatternError,
    PeerRefusedError,
    RunContext,
    SubjectTrigger,
)
from natterjack.bus import Bus
from natterjack.codec import encode
from natterjack.components import Agent, Trigger, TriggerContext
from natterjack.dead import DeadLetter, dead_letters, retry
from natterjack.listener import check_plain
from natterjack.peers import MAX_DEPTH
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.rights import Right
from natterjack.subjects import durable, label
from natterjack.team import Team, check_team
from natterjack.testing import NatsServer, ScriptedAgent, until

PLUGINS = Plugins.load()
SENT = {"Unit": "C", "Nats-Msg-Id": "1", "Natterjack": "d=x"}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "natterjack")


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def started(
    stack: AsyncExitStack,
    server: NatsServer,
    buckets: dict[str, AgentContext] | None = None,
    **agents: tuple[Agent, Trigger],
) -> AgentRuntime:
    """A team that runs, of agents with one trigger each."""
    runtime = AgentRuntime(server.url, buckets=buckets)
    for name, (agent, trigger) in agents.items():
        process = AgentProcess(name, agent=agent, triggers=[trigger], retry_delay=0.02, max_attempts=2)
        runtime.add_process(process)
    return await stack.enter_async_context(runtime)


async def write(bus: Bus, key: str, value: Any, writer: str, bucket: str = "context") -> int:
    """Write a key as somebody of whom the team knows nothing."""
    stored = await bus.store(f"$KV.{bucket}.{key}", encode(value), headers={"Natterjack": f"s={writer}"})
    return stored.sequence


async def letters(bus: Bus, count: int = 1) -> list[DeadLetter]:
    async def enough() -> list[DeadLetter] | None:
        found = await dead_letters(bus)
        return found if len(found) >= count else None

    return await until(enough)  # type: ignore[arg-type]  # mypy cannot solve plain or async


# The shared context


async def test_a_change_of_the_context_wakes_an_agent(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, bus: Bus
) -> None:
    agent = ScriptedAgent()
    runtime = await started(stack, own_server, writer=(agent, ContextTrigger("findings.*")))
    await runtime.context.set("status", "new")
    revision = await write(bus, "findings.toads", ["warts"], "researcher")
    (event,) = await agent.handled()
    data = {"key": "findings.toads", "value": ["warts"], "revision": revision, "writer": "researcher", "deleted": False}
    assert (event.type, event.source, event.sequence, event.data) == ("findings.toads", "researcher", revision, data)
    await runtime.context.delete("findings.toads")
    *_, gone = await agent.handled(2)
    assert (gone.data["deleted"], gone.data["value"], gone.source) == (True, None, "operator")
    await raw.publish("$KV.context.findings.newts", b"seen by a stranger")
    *_, stranger = await agent.handled(3)
    assert (stranger.data["value"], stranger.data["writer"]) == ("seen by a stranger", "")


async def test_the_handler_reads_at_least_what_woke_it(own_server: NatsServer, stack: AsyncExitStack) -> None:
    class Reader(ScriptedAgent):
        async def handle(self, event: Event, ctx: RunContext) -> Any:
            assert ctx.shared.revision >= event.sequence
            return await super().handle(event, ctx)

    agent = Reader()
    runtime = await started(stack, own_server, reader=(agent, ContextTrigger("n")))
    for n in range(50):
        await runtime.context.set("n", n)
    assert sorted(event.data["value"] for event in await agent.handled(50)) == list(range(50))


async def test_filters_hold_for_changes(own_server: NatsServer, stack: AsyncExitStack, bus: Bus) -> None:
    agent = ScriptedAgent()
    trigger = ContextTrigger("finance/budget.*", where='!data.deleted && data.value > 1000.0 && source == "cfo"')
    await started(stack, own_server, {"finance": AgentContext()}, auditor=(agent, trigger))
    for value, writer in ((1.0, "cfo"), (2000.0, "intern"), (3000.0, "cfo")):
        await write(bus, "budget.q1", value, writer, "context_finance")
    await write(bus, "budget.q1", 4000.0, "cfo")
    await write(bus, "budget.q2", 5000.0, "cfo", "context_finance")
    assert [event.data["value"] for event in await agent.handled(2)] == [3000.0, 5000.0]


class Counter(ScriptedAgent):
    """Counts in the context, up to a limit."""

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        if event.data["value"] < 3:
            await ctx.shared.set("n", event.data["value"] + 1)
        return await super().handle(event, ctx)


async def test_its_own_writes_wake_an_agent_only_where_it_wants(own_server: NatsServer, stack: AsyncExitStack) -> None:
    modest, keen = Counter(), ScriptedAgent()
    runtime = await started(
        stack, own_server, modest=(modest, ContextTrigger("n")), keen=(keen, ContextTrigger("n", own=True))
    )
    await runtime.context.set("n", 2)
    assert [event.data["value"] for event in await keen.handled(2)] == [2, 3]
    await runtime.context.set("n", 9)
    assert [event.data["value"] for event in await modest.handled(2)] == [2, 9]


class Endless(ScriptedAgent):
    """Answers each change with another."""

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        await ctx.shared.set("n", event.data["value"] + 1)
        return await super().handle(event, ctx)


async def test_a_loop_over_the_context_ends_in_a_dead_letter(
    own_server: NatsServer, stack: AsyncExitStack, bus: Bus
) -> None:
    agent = Endless()
    runtime = await started(stack, own_server, endless=(agent, ContextTrigger("n", own=True)))
    await runtime.context.set("n", 0)
    (letter,) = await letters(bus)
    assert "looks like a loop" in letter.cause
    assert len(agent.events) == MAX_DEPTH + 1


async def test_a_dead_change_is_retried_as_the_same_event(
    own_server: NatsServer, stack: AsyncExitStack, bus: Bus, raw: Client
) -> None:
    agent = ScriptedAgent([ValueError("no"), ValueError("no"), None])
    await started(stack, own_server, writer=(agent, ContextTrigger("findings.*")))
    await write(bus, "findings.a", {"x": 1}, "researcher")
    (letter,) = await letters(bus)
    assert (letter.type, letter.trigger, letter.attempts) == ("findings.a", "context-findings+@", 2)
    await retry(bus, letter.number)
    first, _, again = await agent.handled(3)
    assert (again.type, again.data) == (first.type, first.data)
    await raw.publish("$KV.context.findings.b", b"\xff")
    (letter,) = await letters(bus)
    assert ("not UTF-8" in letter.cause, letter.data, letter.type) == (True, b"\xff", "findings.b")


async def test_a_team_begins_with_the_newest_of_each_key_and_a_new_trigger_with_now(
    own_server: NatsServer, stack: AsyncExitStack, bus: Bus
) -> None:
    table = {"name": "garden", "agents": {"one": {"kind": "x:Y", "on": [{"context": "*"}]}}}
    await provision(bus, Team.model_validate({"name": "garden"}), PLUGINS)
    for n in range(3):
        await bus.store("$KV.context.a", b"%d" % n)
    await bus.api("STREAM.DELETE.KV_team")  # as on a server that has only the data

    async def pending(agent: str) -> int:
        return int((await bus.api(f"CONSUMER.INFO.KV_context.{durable(agent, label('context', '*'))}"))["num_pending"])

    await provision(bus, Team.model_validate(table), PLUGINS)
    assert await pending("one") == 1
    table["agents"] |= {"two": table["agents"]["one"]}  # type: ignore[operator,index]
    await provision(bus, Team.model_validate(table), PLUGINS)
    assert await pending("two") == 0
    del table["agents"]["one"]  # type: ignore[attr-defined]
    done = await provision(bus, Team.model_validate(table), PLUGINS, prune=True)
    assert sorted(done.removed) == [
        "consumer one=context-@ on KV_context, for which 1 wait",
        "consumer one=inbox on INBOX",
        "consumer one=wake on WAKES",
    ]


def test_a_bucket_that_is_not_there_is_told() -> None:
    agents = {"a": {"kind": "x:Y", "on": [{"context": "finanse/budget"}]}}
    team = Team.model_validate({"name": "t", "agents": agents, "buckets": {"finance": {}}})
    with pytest.raises(ConfigError, match=r"a bucket that the team has not.*finance"):
        check_team(team, PLUGINS)


# Plain subjects


async def test_a_plain_message_wakes_an_agent_and_keeps_its_headers(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client
) -> None:
    agent = ScriptedAgent()
    await started(stack, own_server, guard=(agent, SubjectTrigger("sensors.*.temperature")))
    await raw.publish("sensors.roof.humidity", b"1")
    await raw.publish("sensors.roof.temperature", b"21.5", headers=SENT)
    (event,) = await agent.handled()
    assert (event.type, event.data, event.source) == ("sensors.roof.temperature", 21.5, "guard")
    assert event.headers["Unit"] == "C"
    await raw.publish("sensors.roof/é.temperature", b"hot")
    *_, odd = await agent.handled(2)
    assert (odd.type, odd.data) == ("subject", "hot")
    assert odd.headers["Natterjack-Subject"] == "sensors.roof/é.temperature"


async def test_one_replica_takes_each_message(own_server: NatsServer, stack: AsyncExitStack, raw: Client) -> None:
    agents = [ScriptedAgent(), ScriptedAgent()]
    for agent in agents:
        await started(stack, own_server, guard=(agent, SubjectTrigger("sensors.>")))
    for n in range(100):
        await raw.publish("sensors.a", b"%d" % n)
    await until(lambda: sum(len(agent.events) for agent in agents) >= 100)
    assert sorted(event.data for agent in agents for event in agent.events) == list(range(100))


async def test_a_filter_stands_before_the_inbox(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, bus: Bus
) -> None:
    agent = ScriptedAgent()
    await started(stack, own_server, guard=(agent, SubjectTrigger("sensors.>", where="data > 30.0")))
    for payload in (b"10.0", b'"hot"', b"\xff", b"31.0"):
        await raw.publish("sensors.a", payload)
    assert [event.data for event in await agent.handled()] == [31.0]
    text, binary = await letters(bus, 2)
    assert (text.data, text.trigger, text.type) == (b'"hot"', "subject-sensors+@@", "sensors.a")
    assert (binary.data, "not UTF-8" in binary.cause) == (b"\xff", True)
    await retry(bus, text.number)
    assert [event.data for event in await agent.handled(2)] == [31.0, "hot"]


async def test_what_cannot_be_an_event_is_a_dead_letter(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, bus: Bus
) -> None:
    agent = ScriptedAgent()
    await started(stack, own_server, guard=(agent, SubjectTrigger("sensors.>")))
    await raw.publish("sensors.a", b"\xff")
    await raw.publish("sensors.b", b"x" * bus.max_payload)
    found = {letter.type: letter for letter in await letters(bus, 2)}
    assert "not UTF-8" in found["sensors.a"].cause
    assert (found["sensors.b"].size, found["sensors.b"].data) == (bus.max_payload, b"")
    assert "bytes, but the server takes" in found["sensors.b"].cause


async def test_messages_wait_while_the_inbox_is_full(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack.listener.PAUSE", 0.02)
    released, agent = asyncio.Event(), ScriptedAgent(lambda _: released.wait())
    await started(stack, own_server, guard=(agent, SubjectTrigger("sensors.>")))
    config = (await bus.api("STREAM.INFO.INBOX"))["config"]
    await bus.api("STREAM.UPDATE.INBOX", {**config, "max_msgs_per_subject": 2})
    for n in range(10):
        await raw.publish("sensors.a", b"%d" % n)
    await agent.handled(2)
    released.set()
    assert sorted(event.data for event in await agent.handled(10)) == list(range(10))
    assert await dead_letters(bus) == []


async def test_what_waits_when_the_agent_stops_is_a_dead_letter(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, bus: Bus
) -> None:
    agent = ScriptedAgent(lambda _: asyncio.Event().wait())
    runtime = await started(stack, own_server, guard=(agent, SubjectTrigger("sensors.>")))
    config = (await bus.api("STREAM.INFO.INBOX"))["config"]
    await bus.api("STREAM.UPDATE.INBOX", {**config, "max_msgs_per_subject": 1})
    for n in range(3):
        await raw.publish("sensors.a", b"%d" % n)
    await raw.flush()
    await agent.handled()
    await runtime.stop_all(0)
    assert [letter.data for letter in await letters(bus, 2)] == [b"1", b"2"]


class Odd(Trigger):
    """Listens by itself, with what fails."""

    name = "odd"

    def needs(self, agent: str) -> list[Right]:
        return [Right("listen", "odd.*")]

    async def run(self, ctx: TriggerContext) -> None:
        async def fail(message: object) -> None:
            raise KeyError(message)

        await ctx.listen("odd.*", fail)


async def test_what_a_callback_fails_for_is_a_dead_letter(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, bus: Bus
) -> None:
    await started(stack, own_server, odd=(ScriptedAgent(), Odd()))
    await raw.publish("odd.one", b"1")
    (letter,) = await letters(bus)
    assert (letter.data, letter.type) == (b"1", "odd.one")
    assert "KeyError" in letter.cause


class Door(Trigger):
    """Asks for others, and passes on what is still answered when it ends."""

    name, tells_ready, drains = "door", True, True

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.asking: list[asyncio.Task[str]] = []
        self.told, self.ended = asyncio.Event(), asyncio.Event()

    async def run(self, ctx: TriggerContext) -> None:
        self.ctx = ctx
        ctx.ready()
        try:
            await asyncio.Event().wait()
        finally:
            self.told.set()
            try:
                await asyncio.wait(self.asking)
            finally:
                self.ended.set()

    def ask(self, caller: str, **more: Any) -> asyncio.Task[str]:
        """Have it ask."""
        self.asking.append(asyncio.create_task(self.ctx.ask("well?", caller=caller, **more)))
        return self.asking[-1]


async def test_a_trigger_asks_for_others_whom_the_rules_bind(own_server: NatsServer, stack: AsyncExitStack) -> None:
    door, agent = Door(), ScriptedAgent(answers="yes")
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("ann", agent=ScriptedAgent(), asks=["door"]))
    runtime.add_process(AgentProcess("bob", agent=ScriptedAgent(), asks=["ann"]))
    runtime.add_process(AgentProcess("door", agent=agent, triggers=[door]))
    await stack.enter_async_context(runtime)
    assert await door.ask("ann") == "yes"
    assert await door.ask("a stranger; s=operator") == "yes"
    with pytest.raises(PeerRefusedError, match="'bob' may not ask 'door'"):
        await door.ask("bob")
    with pytest.raises(PeerRefusedError, match="'bob' may not ask 'door'"):
        door.ctx.ask_stream("well?", caller="bob")
    async with door.ctx.ask_stream("well?", caller="ann", timeout=5) as chunks:
        assert [chunk async for chunk in chunks] == ["yes"]
    assert [ctx.caller for ctx in agent.contexts] == ["ann", "a stranger; s=operator", "ann"]


async def test_a_trigger_that_drains_passes_on_what_is_still_answered(
    own_server: NatsServer, stack: AsyncExitStack
) -> None:
    released, door = asyncio.Event(), Door()
    agent = ScriptedAgent(answers=lambda _: released.wait())
    runtime = await started(stack, own_server, door=(agent, door))
    asking = door.ask("ann")
    await until(lambda: agent.questions)
    stopping = asyncio.create_task(runtime.stop_all(20))
    await door.told.wait()
    assert not stopping.done()
    released.set()
    assert await asking == "true"
    await stopping


async def test_a_trigger_that_drains_for_too_long_is_cancelled_again(
    own_server: NatsServer, stack: AsyncExitStack
) -> None:
    door = Door()
    agent = ScriptedAgent(answers=lambda _: asyncio.Event().wait())
    runtime = await started(stack, own_server, door=(agent, door))
    endless = asyncio.create_task(asyncio.Event().wait())
    door.asking.append(endless)  # type: ignore[arg-type]
    await runtime.stop_all(0.1)
    assert (door.told.is_set(), door.ended.is_set()) == (True, True)
    assert not endless.done()  # it was not waited for
    endless.cancel()


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("events.research.*", "event trigger"),
        ("messages.>", "message trigger"),
        ("inbox.a.b", "inbox"),
        ("stored.events.>", "triggers"),
        ("feed.context.a", "context"),
        ("agents.>", "Natterjack's own"),
        ("journal.>", "Natterjack's own"),
        ("dead.*.*", "Natterjack's own"),
        ("$JS.API.>", "the server's own"),
        ("_INBOX.>", "the server's own"),
        (">", "no wildcard"),
        ("*.a", "no wildcard"),
        ("", "tokens"),
        ("a..b", "tokens"),
        ("a b", "tokens"),
        ("a.b*", "whole token"),
        ("a.>.b", "last"),
        ("a" * 300, "255"),
        (7, "tokens"),
    ],
)
def test_patterns_that_are_not_others_are_refused(pattern: Any, hint: str) -> None:
    with pytest.raises(PatternError, match=hint):
        check_plain(pattern)
    if isinstance(pattern, str):
        with pytest.raises(PatternError, match=hint):
            SubjectTrigger(pattern)


def test_labels_of_odd_subjects_are_tokens_and_differ() -> None:
    patterns = ["a.b", "a+b", "a.*", "a.@", "a/b", "-a", "a.~2f", "a.>", "é.a", "a-b"]
    labels = {SubjectTrigger(pattern).label for pattern in patterns}
    assert len(labels) == len(patterns)
    assert not any(set(each) & set(" .*>/\\") for each in labels)


def test_team_files_have_short_forms() -> None:
    own = {"context": {"keys": "n", "own": True}}
    on = [{"context": "findings.*", "where": "data.deleted"}, {"subject": "sensors.>"}, own]
    team = Team.model_validate({"name": "t", "agents": {"a": {"kind": "x:Y", "on": on}}})
    check_team(team, PLUGINS)
    again = Team.model_validate(team.model_dump(mode="json"))
    check_team(again, PLUGINS)
    assert again.agents == team.agents
