"""Stored events, read again: from Python, by an agent that may, and on the command line."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from natterjack import Agent, AgentProcess, AgentRuntime, ConfigError, Event, PatternError, RunContext, RunFailedError
from natterjack.bus import Bus
from natterjack.events import EventBus
from natterjack.guards import Guards
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.subjects import matches
from natterjack.team import Team
from natterjack.testing import NatsServer
from natterjack.testing.command import Cli as Quick


@pytest.fixture
async def events(bus: Bus) -> EventBus:
    await provision(bus, Team(), Plugins.load())
    return EventBus(bus, Guards())


async def test_replays_from_a_sequence_a_time_and_a_while_ago(events: EventBus, bus: Bus) -> None:
    for n in range(600):  # more than two pages
        await bus.store(f"events.job.{'a' if n % 2 else 'b'}", b"%d" % n)
    assert [event.data async for event in events.replay()] == list(range(600))
    assert [event.data async for event in events.replay("job.a", since=590)] == [589, 591, 593, 595, 597, 599]
    for ago in (timedelta(hours=1), timedelta.max):
        assert [event.data async for event in events.replay(since=ago)] == list(range(600))
    middle = await anext(events.replay("job.b", since=301))
    later = [event.sequence async for event in events.replay(since=middle.time)]
    assert later == list(range(middle.sequence, 601))
    assert [event async for event in events.replay(since=datetime.now(UTC) + timedelta(hours=1))] == []
    assert (middle.type, middle.sequence, middle.data) == ("job.b", 301, 300)


async def test_a_replay_ends_with_what_was_there(events: EventBus, bus: Bus) -> None:
    for n in range(300):
        await bus.store("events.x", b"%d" % n)
    seen = []
    async for event in events.replay("x"):
        seen.append(event.data)
        await bus.store("events.x", b"-1")
    assert seen == list(range(300))


async def test_what_cannot_be_read_is_replayed_as_text(events: EventBus, bus: Bus) -> None:
    await bus.store("events.x", b"\xff!")
    assert [event.data async for event in events.replay()] == ["\ufffd!"]


async def test_a_wrong_replay_is_refused(events: EventBus) -> None:
    with pytest.raises(ConfigError, match="has no time zone"):
        await anext(events.replay(since=datetime(2026, 1, 1)))
    with pytest.raises(PatternError):
        await anext(events.replay("a.>.b"))


@pytest.mark.parametrize(
    ("allowed", "wanted", "covered"),
    [("a.*", "a.>", False), ("*", ">", False), ("a.>", "a.*", True), ("a.*", "a.*", True), ("a.b", "a.*", False)],
)
def test_who_may_replay_little_may_not_replay_more(allowed: str, wanted: str, covered: bool) -> None:
    assert matches(allowed, wanted) is covered


class Reader(Agent):
    """Reads what it is told to."""

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        return [each.data async for each in ctx.replay(event.data["pattern"], since=1)]


async def test_an_agent_replays_what_it_declares(own_server: NatsServer) -> None:
    pytest.importorskip("natterjack_permissions")
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("reader", agent=Reader(), replays=["job.*"], max_attempts=1))
    async with runtime:
        await runtime.event_bus.emit("job.a", 1)
        run = await runtime.inject_event("reader", {"type": "x", "pattern": "job.*"})
        assert await run.result(10) == [1]
        run = await runtime.inject_event("reader", {"type": "x", "pattern": ">"})
        with pytest.raises(RunFailedError, match="replay"):
            await run.result(10)


def test_the_command_line_replays(team: Quick) -> None:
    for n in range(3):
        team.run("emit", "other.thing", json.dumps({"name": f"n{n}"}))
    lines = team.run("events", "replay", "other.*", "--since", "1h", "--limit", "2", "--json").stdout.splitlines()
    assert [json.loads(line)["data"] for line in lines] == [{"name": "n0"}, {"name": "n1"}]
    assert "other.thing" in team.run("events", "replay", "other.*", "--since", "2020-01-01T00:00Z").stdout
    done = team.run("events", "replay", "other.thing", "--to", "greeter", "--yes", "--json")
    assert json.loads(done.stdout) == {"agent": "greeter", "events": 3}
    for wrong in ("soon", "", "99999999999d"):
        assert "is no time" in team.run("events", "replay", "--since", wrong, code=2).stderr
    assert "greter" in team.run("events", "replay", "--to", "greter", "--yes", code=4).stderr
