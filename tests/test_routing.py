"""Filters on triggers, and results routed to events by conditions."""

import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    ConfigError,
    Event,
    EventTrigger,
    MessageTrigger,
    RunContext,
    RunFailedError,
)
from natterjack.bus import Bus
from natterjack.cli.advice import warnings
from natterjack.dead import dead_letters
from natterjack.journal import StreamJournal
from natterjack.middleware import Middleware
from natterjack.needs import agent_needs
from natterjack.plugins import Plugins
from natterjack.rights import Right
from natterjack.team import Team, check_team
from natterjack.team.file import read_team
from natterjack.testing import NatsServer, until

PLUGINS = Plugins.load()


class Keeper(Agent):
    """Keeps what it handles, and returns its data."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Event] = []

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        self.seen.append(event)
        return event.data


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "natterjack")


async def idle(bus: Bus, stream: str, durable: str) -> None:
    """Wait until nothing is left for a consumer."""

    async def empty() -> bool:
        info = await bus.api(f"CONSUMER.INFO.{stream}.{durable}")
        return (info["num_pending"], info["num_ack_pending"]) == (0, 0)

    await until(empty, 20)


# Filters


async def test_what_a_filter_refuses_is_acked_without_a_run(own_server: NatsServer, bus: Bus) -> None:
    keeper, runtime = Keeper(), AgentRuntime(own_server.url)
    triggers = [
        EventTrigger("order.*", where='data.total > 100 && type != "order.gone"'),
        MessageTrigger("news", where='"x" in data'),
    ]
    runtime.add_process(AgentProcess(name="keeper", agent=keeper, triggers=triggers))
    async with runtime:
        await runtime.event_bus.emit("order.gone", {"total": 500})
        await runtime.event_bus.emit("order.placed", {"total": 5})
        await runtime.event_bus.emit("order.placed", {"sum": 500})
        await runtime.event_bus.emit("order.placed", {"total": 101})
        await runtime.event_bus.publish("news", ["y"])
        await runtime.event_bus.publish("news", ["x"])
        await until(lambda: len(keeper.seen) == 2)
        await idle(bus, "EVENTS", "keeper=event-order+@")
        await idle(bus, "MESSAGES", "keeper=message-news")
        await runtime.inject_event("keeper", {"type": "order.placed", "total": 1})  # addressed to it: no filter
        await until(lambda: len(keeper.seen) == 3)
    assert sorted(str(event.data) for event in keeper.seen[:2]) == ["['x']", "{'total': 101}"]
    assert await dead_letters(bus) == []
    runs = [message async for message in bus.read("JOURNAL", "journal.keeper.*.*")]
    assert len(runs) == 3


async def test_what_a_filter_cannot_decide_is_a_dead_letter(own_server: NatsServer, bus: Bus) -> None:
    keeper, runtime = Keeper(), AgentRuntime(own_server.url)
    trigger = EventTrigger("order.*", where="data.total > 100")
    runtime.add_process(AgentProcess(name="keeper", agent=keeper, triggers=[trigger]))
    async with runtime:
        await runtime.event_bus.emit("order.placed", {"total": "a lot"})
        letters = await until(lambda: dead_letters(bus))
        await idle(bus, "EVENTS", "keeper=event-order+@")
    assert [(letter.attempts, letter.type) for letter in letters] == [(0, "order.placed")]
    assert "the condition 'data.total > 100' cannot be decided" in letters[0].cause
    assert keeper.seen == []


def test_a_wrong_filter_is_refused_at_construction() -> None:
    with pytest.raises(ConfigError, match=r"EventTrigger: 'where' is 'dat.x > 1': .*Did you mean 'data'"):
        EventTrigger("a", where="dat.x > 1")
    with pytest.raises(ConfigError, match="MessageTrigger: 'where'"):
        MessageTrigger("a", where="data.x >")


TEAM = """\
[agents.a]
kind = "x:Y"
on = [
    {{ event = "order.*", where = {0} }},
    {{ message = {{ topic = "news.*", where = "data.hot" }} }},
]
"""


def test_a_filter_stands_in_a_team_file(tmp_path: Path) -> None:
    path = tmp_path / "team.toml"
    path.write_text(TEAM.format("'data.total > 100'"))
    team = read_team(path)
    check_team(team, PLUGINS)
    first, second = team.agents["a"].on
    assert first.settings == {"event_type": "order.*", "where": "data.total > 100"}
    assert second.settings == {"topic": "news.*", "where": "data.hot"}
    assert Team.model_validate_json(team.model_dump_json()) == team
    process = AgentProcess("a", agent=Keeper(), triggers=[EventTrigger("order.*", where="data.total > 100")])
    assert process.spec.on == (first,)
    assert AgentProcess("a", agent=Keeper(), triggers=[EventTrigger("order.*")]).spec.on[0].settings == {
        "event_type": "order.*"
    }


def test_a_wrong_filter_in_a_team_file_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "team.toml"
    path.write_text(TEAM.format("'dta.total > 100'"))
    with pytest.raises(ConfigError) as raised:
        check_team(read_team(path), PLUGINS)
    assert str(raised.value) == (
        f"{path}:3: [agents.a] event: 'where' is 'dta.total > 100': the condition 'dta.total > 100' uses an unknown"
        " name 'dta'. Did you mean 'data'?"
    )


# Results


class Judge(Agent):
    """Returns what the event says, better each time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        self.calls += 1
        return {"quality": event.data["quality"], "call": self.calls}


ROUTES = {
    "analysis.approved": "result.quality >= 3",
    "research.start": "result.quality < 3 && data.round < 2",
    "analysis.top": "result.quality > 4",
}


async def test_results_go_where_their_conditions_hold(own_server: NatsServer, bus: Bus) -> None:
    runtime = AgentRuntime(own_server.url)
    judge = AgentProcess(
        "judge", agent=Judge(), triggers=[EventTrigger("judge")], result_event="judged", result_events=ROUTES
    )
    runtime.add_process(judge)
    async with runtime, runtime.event_bus.subscribe() as live:
        seen = []
        for data, count in [({"quality": 5}, 3), ({"quality": 3}, 2), ({"quality": 2, "round": 1}, 2)]:
            await runtime.event_bus.emit("judge", data)
            seen += [(await anext(live)).type for _ in range(count + 1)]
    assert seen == [
        *("judge", "judged", "analysis.approved", "analysis.top"),
        *("judge", "judged", "analysis.approved"),
        *("judge", "judged", "research.start"),
    ]


async def test_a_result_that_goes_nowhere_is_a_result(own_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "natterjack.routing")
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("judge", agent=Judge(), result_events={"good": "result.quality > 3"}))
    async with runtime:
        run = await runtime.inject_event("judge", {"type": "x", "quality": 1})
        assert await run.result(10) == {"quality": 1, "call": 1}
    assert "no condition of `result_events` holds" in caplog.text


async def test_a_result_that_cannot_be_judged_is_a_dead_letter(own_server: NatsServer, bus: Bus) -> None:
    judge, runtime = Judge(), AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("judge", agent=judge, result_events={"good": "result.quality > 3"}))
    async with runtime:
        await runtime.inject_event("judge", {"type": "x", "quality": "fine"})
        (letter,) = await until(lambda: dead_letters(bus))
    assert "'result.quality > 3' cannot be decided" in letter.cause
    assert judge.calls == 1


class Away(Middleware):
    """Fails the second emit of each type once, as a broker that went away would."""

    failed: ClassVar[set[str]] = set()

    async def emit(self, event_type: str, data: Any, ctx: RunContext, call: Any) -> int:
        if event_type == "two" and event_type not in self.failed:
            self.failed.add(event_type)
            raise TimeoutError("away")
        stored: int = await call(event_type, data)
        if event_type == "three" and event_type not in self.failed:
            self.failed.add(event_type)
            raise TimeoutError("the acknowledgement was lost")
        return stored


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = Plugins.load()
    plugins.middleware["away"] = Away
    monkeypatch.setattr(Plugins, "load", lambda: plugins)
    Away.failed.clear()


async def test_a_run_that_is_repeated_emits_what_it_had_decided_once(
    own_server: NatsServer, bus: Bus, away: None
) -> None:
    routes = {
        "one": "result.call == 1",
        "two": "result.call == 1",
        "three": "result.call == 1",
        "other": "result.call > 1",
    }
    judge, runtime = Judge(), AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("judge", agent=judge, result_events=routes, retry_delay=0.01))
    async with runtime:
        run = await runtime.inject_event("judge", {"type": "x", "quality": 1})
        assert await run.result(10) == {"quality": 1, "call": 1}
        journal = StreamJournal()
        journal.attach(bus)
        entries = await journal.read("judge", run.id)
    stored = [message async for message in bus.read("EVENTS", "stored.events.>")]
    assert [(message.headers or {})["Nats-Subject"].rpartition(".")[2] for message in stored] == ["one", "two", "three"]
    assert judge.calls == 1
    routed = [entry.data["events"] for entry in entries if entry.kind == "routed"]
    assert [sorted(events) for events in routed] == [["one", "three", "two"]]
    assert len(set(routed[0].values())) == 3
    assert min(map(len, routed[0].values())) >= 22  # 128 random bits [R6]


def test_result_events_are_authority_and_wiring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "team.toml"
    table = '[agents.a]\nkind = "x:Y"\nemits = ["a.*"]\n'
    path.write_text(table + 'result_events = { "a.good" = "result > 3", "b.bad" = "result < 3" }\n')
    with pytest.raises(ConfigError, match=r"team.toml:4: \[agents.a\] the result_event 'b.bad' is not among what it"):
        check_team(read_team(path), PLUGINS)
    path.write_text(table + '[agents.a.result_events]\n"a.good" = "result > 3"\n"a.bad" = "reslt < 3"\n')
    with pytest.raises(ConfigError, match=r"team.toml:6: .*unknown name 'reslt'. Did you mean 'result'\?"):
        read_team(path)
    path.write_text(table + 'result_event = "a.good"\nresult_events = { "a.good" = "result > 3" }\n')
    with pytest.raises(ConfigError, match=r"'a.good' is both the result_event and among the result_events"):
        check_team(read_team(path), PLUGINS)
    path.write_text('[agents.a]\nkind = "x:Y"\nemits=[]\n[agents.b]\nkind = "x:Y"\nresult_events = { go = "result" }\n')
    team = read_team(path)
    assert warnings(team) == [f"{path}:6: [agents.b] emits 'go', which no agent of the team waits for"]
    spec = team.agents["b"].model_copy(update={"emits": (), "kind": "keepers:Keeper"})
    monkeypatch.setitem(sys.modules, "keepers", cast("ModuleType", SimpleNamespace(Keeper=Keeper)))
    assert [right for right in agent_needs("b", spec, PLUGINS) if right.verb == "emit"] == [Right("emit", "go")]


def test_a_wrong_route_is_refused_at_construction() -> None:
    with pytest.raises(ConfigError, match=r"agent 'a': 'result_events.x' is 'reslt > 3': .*Did you mean 'result'"):
        AgentProcess("a", agent=Keeper(), result_events={"x": "reslt > 3"})


async def test_the_kinds_of_the_kernel_are_its_own(own_server: NatsServer) -> None:
    class Forger(Agent):
        async def handle(self, event: Event, ctx: RunContext) -> None:
            await ctx.journal.append("routed", {"result": 1, "events": {}})

    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("forger", agent=Forger()))
    async with runtime:
        run = await runtime.inject_event("forger", {"type": "x"})
        with pytest.raises(RunFailedError, match="'routed' is no valid kind of journal entry"):
            await run.result(10)
