"""Events that a stream's limits removed before an agent had handled them: told once, and never by mistake [R9]."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from natterjack import Agent, AgentProcess, AgentRuntime, EventTrigger
from natterjack.bus import Bus
from natterjack.cli.checks import check_team
from natterjack.dead import DeadLetter, dead_letters, retry
from natterjack.errors import PayloadError
from natterjack.expiry import Look
from natterjack.host import AgentHost
from natterjack.needs import agent_permissions
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.runtime import start_agent
from natterjack.team import Team
from natterjack.testing import NatsServer, ScriptedAgent, until
from natterjack.testing.narrow import login_of, narrow_config


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "natterjack")


@asynccontextmanager
async def running(
    server: NatsServer, agent: Agent, *patterns: str, concurrency: int = 16
) -> AsyncIterator[AgentRuntime]:
    runtime = AgentRuntime(server.url)
    triggers = [EventTrigger(pattern) for pattern in patterns]
    runtime.add_process(AgentProcess("worker", agent=agent, triggers=triggers, concurrency=concurrency))
    async with runtime:
        yield runtime


async def store(bus: Bus, *types: str) -> None:
    for kind in types:
        await bus.store(f"events.{kind}", b"1")


async def keep(bus: Bus, count: int) -> None:
    """Have the stream's limits remove all but the newest."""
    config = (await bus.api("STREAM.INFO.EVENTS"))["config"]
    await bus.api("STREAM.UPDATE.EVENTS", {**config, "discard": "old", "max_msgs": count})
    await bus.api("STREAM.UPDATE.EVENTS", {**config, "max_msgs": -1})


async def letters(bus: Bus, count: int) -> list[DeadLetter]:
    async def enough() -> list[DeadLetter] | None:
        found = await dead_letters(bus)
        return found if len(found) >= count else None

    return await until(enough)  # type: ignore[arg-type]  # mypy cannot solve plain or async


async def doctor(bus: Bus) -> list[str]:
    """What the doctor says of what expired."""
    findings = [finding async for finding in check_team(bus, Path("none.toml"), Plugins.load())]
    return [finding.detail for finding in findings if "expired" in finding.detail and not finding.ok]


async def test_what_expired_while_an_agent_was_away_is_told_once(
    own_server: NatsServer, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    agent = ScriptedAgent()
    async with running(own_server, agent, "job.*", ">"):
        await store(bus, "job.a")
        await agent.handled(2)
    await store(bus, *["job.a", "other.b"] * 5)
    await keep(bus, 3)
    found = await doctor(bus)
    assert len(found) == 2
    assert "worker: events 2 to 8 of EVENTS expired unhandled" in found[0]
    for _ in range(2):
        async with running(own_server, agent, "job.*", ">"), running(own_server, agent, "job.*", ">"):
            await agent.handled(2 + 1 + 3)
    some, every = sorted(await dead_letters(bus), key=lambda letter: letter.trigger, reverse=True)
    assert (some.trigger, some.type, some.lost, some.sequence) == ("event-job+@", "job.*", 7, 8)
    assert "up to 7 for this trigger" in some.cause
    assert (every.trigger, every.lost) == ("event-@@", 7)
    assert every.cause.endswith("first, 7 for this trigger")
    assert "worker: event-job+@: events 2 to 8 of EVENTS expired unhandled" in caplog.text
    with pytest.raises(PayloadError, match=r"cannot be retried: it tells of events that expired"):
        await retry(bus, some.number)
    assert sorted(await doctor(bus)) == sorted(f"worker: {letter.cause}" for letter in (some, every))
    await store(bus, *["job.a"] * 5)
    await keep(bus, 2)
    async with running(own_server, agent, "job.*", ">"):
        later = (await letters(bus, 4))[2:]
    assert {letter.trigger: letter.lost for letter in later} == {"event-job+@": 4, "event-@@": 3}


async def test_what_expires_unseen_while_an_agent_works_is_told(
    own_server: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack.expiry.EVERY", 0.05)
    released = asyncio.Event()
    agent = ScriptedAgent(lambda _: released.wait())
    async with running(own_server, agent, "job.*", concurrency=1):
        await store(bus, *["job.a"] * 10)
        await agent.handled()
        await keep(bus, 2)
        (letter,) = await letters(bus, 1)
        released.set()
        await agent.handled(3)
    assert "expired unhandled" in letter.cause
    assert [event.sequence for event in agent.events] == [1, 9, 10]


async def test_what_no_trigger_waited_for_is_no_loss(
    own_server: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack.expiry.EVERY", 0.05)
    looks, check = [0], Look.check

    async def counted(look: Look) -> None:
        await check(look)
        looks[0] += 1

    monkeypatch.setattr(Look, "check", counted)

    async def noted() -> bool:
        return (await bus.last("JOURNAL", "journal.worker.*.*")) is not None

    async with running(own_server, ScriptedAgent(), "rare"):
        await store(bus, *["other"] * 20)
        looks[0] = 0
        await until(lambda: looks[0] > 1)  # it has found that nothing waits
        await keep(bus, 5)
        await until(noted)
    async with running(own_server, ScriptedAgent(), "rare"):
        assert await doctor(bus) == []
    assert await dead_letters(bus) == []


async def test_narrow_rights_are_enough() -> None:
    worker = {"kind": "natterjack.testing:ScriptedAgent", "on": ["job.*"]}
    team = Team.model_validate({"name": "t", "agents": {"worker": worker}})
    plugins = Plugins.load()
    with NatsServer(narrow_config(agent_permissions(team, plugins))) as server:
        bus = await Bus.connect(login_of(server, "operator"), principal="operator")
        await provision(bus, team, plugins)
        await store(bus, *["job.a"] * 10)
        await keep(bus, 2)
        host: AgentHost
        host, context = await start_agent("worker", login_of(server, "worker"), plugins=plugins)
        (letter,) = await letters(bus, 1)
        await host.stop(1)
        await context.close()
        await bus.close()
        assert letter.lost == 8
        assert "violation" not in server.log().lower()
