"""The triggers `cron`, `every` and `at`: when they fire, what their events say, and what becomes of a missed firing."""

import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    ConfigError,
    Event,
    RunContext,
    TeamClient,
    Trigger,
    connect,
)
from natterjack.testing import NatsServer, ScriptedAgent, ScriptedClock, until
from natterjack.testing.contracts import TriggerContract
from natterjack_schedule import AtTrigger, CronTrigger, EveryTrigger
from natterjack_schedule import triggers as module


def soon(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


class TestCronTrigger(TriggerContract):
    """The contract of triggers, on `cron`."""

    component = CronTrigger
    settings = {"expression": "* * * * * *"}  # noqa: RUF012 - as the contract has it
    wrong_settings = ({"expression": "often"}, {"expression": "* * * * *", "zone": "Mars"}, {"expression": 5})

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        """The broker's own clock goes on."""


class TestEveryTrigger(TriggerContract):
    """The contract of triggers, on `every`."""

    component = EveryTrigger
    settings = {"seconds": 1}  # noqa: RUF012 - as the contract has it
    wrong_settings = ({"seconds": 0}, {"seconds": 1.5}, {"seconds": "1"}, {"seconds": 10**9}, {"seconds": True})

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        """The broker's own clock goes on."""


class TestAtTrigger(TriggerContract):
    """The contract of triggers, on `at`."""

    component = AtTrigger
    settings = {"time": soon(2)}  # noqa: RUF012 - as the contract has it
    wrong_settings = ({"time": "2026-12-01T09:00:00"}, {"time": "noon"}, {"time": soon(9), "missed": "always"})

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        """The broker's own clock goes on."""


# What they say


@pytest.mark.parametrize(
    ("trigger", "when", "zone", "label"),
    [
        (CronTrigger("0 9 * * 1-5"), "0 0 9 * * 1,2,3,4,5", "", "cron-0_9_x_x_1-5"),
        (CronTrigger(" 0  9 * * 1,2 "), "0 0 9 * * 1,2", "", "cron-0_9_x_x_1+2"),
        (CronTrigger("*/5 * * * *", zone="Asia/Tokyo"), None, "Asia/Tokyo", "cron-x~5_x_x_x_x@Asia~Tokyo"),
        (EveryTrigger(90), "@every 90s", "", "every-90"),
        (EveryTrigger(timedelta(hours=2)), "@every 7200s", "", "every-7200"),
        (AtTrigger("2026-12-01T10:00:00+01:00"), "@at 2026-12-01T09:00:00Z", "", "at-2026-12-01T09-00-00Z"),
        (AtTrigger(datetime(2026, 12, 1, 9, 0, 0, 5, tzinfo=UTC)), "@at 2026-12-01T09:00:00.000005Z", "", None),
    ],
)
def test_trigger_says_when(trigger: Trigger, when: str | None, zone: str, label: str | None) -> None:
    (spec,) = trigger.schedules("bell")
    assert (spec.agent, spec.name, spec.zone) == ("bell", trigger.label, zone)
    assert when in (None, spec.when)
    assert label in (None, trigger.label)


def test_labels_are_one_token_however_long() -> None:
    minutes = ",".join(map(str, range(0, 60, 2)))
    one, other = CronTrigger(f"{minutes} * * * *"), CronTrigger(f"{minutes},59 * * * *")
    assert one.label != other.label
    assert all(len(each.label) < 90 and not set(each.label) & set(".*> ") for each in (one, other))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: CronTrigger("0 25 * * *"), "'0 25 \\* \\* \\*' is no cron expression \\(Bad hour\\)"),
        (lambda: CronTrigger("0 9 * * *", zone="Africa/Cairo"), "the broker would miss times"),
        (lambda: CronTrigger("0 9 * * *", missed="twice"), "'missed' is 'twice'"),  # type: ignore[arg-type]
        (lambda: EveryTrigger(0), "'seconds' is 0: .*greater than or equal to 1"),
        (lambda: EveryTrigger(timedelta(milliseconds=1500)), "'seconds' is 1.5"),
        (lambda: AtTrigger(datetime(2026, 12, 1)), "it has no time zone; write e.g. 2026-12-01T09:00:00Z"),
    ],
)
def test_wrong_trigger_is_one_clear_error(make: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        make()


# When they fire


class Bell(Agent):
    """Keeps what it is told, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Event, float]] = []

    async def handle(self, event: Event, ctx: RunContext) -> None:
        self.heard.append((event, time.time()))

    def scheduled(self) -> list[datetime]:
        return [datetime.fromisoformat(event.data["scheduled"]) for event, _ in self.heard]


async def ring(server: NatsServer, bell: Agent, *triggers: Trigger, name: str = "bell") -> AgentRuntime:
    runtime = AgentRuntime(server.url)
    runtime.add_process(AgentProcess(name, agent=bell, triggers=triggers))
    await runtime.start_all()
    return runtime


@pytest.mark.parametrize("trigger", [EveryTrigger(1), CronTrigger("* * * * * *", zone="Europe/Amsterdam")])
async def test_each_second_comes_once_and_says_which_it_is(own_server: NatsServer, trigger: Trigger) -> None:
    bell = Bell()
    runtime = await ring(own_server, bell, trigger)
    await until(lambda: len(bell.heard) >= 3, timeout=20)
    await runtime.stop_all()
    scheduled = sorted(bell.scheduled())
    assert {later - earlier for earlier, later in pairwise(scheduled)} == {timedelta(seconds=1)}
    for (event, _), due in zip(bell.heard, bell.scheduled(), strict=True):
        assert event.type == trigger.name
        assert due.microsecond == 0
        assert timedelta(0) <= event.time - due < timedelta(seconds=5)
        assert datetime.fromisoformat(event.data["next"]) == due + timedelta(seconds=1)
        assert event.data["scheduled"].endswith("+00:00" if trigger.name == "every" else ("+01:00", "+02:00"))


async def test_moment_comes_once_and_never_again(own_server: NatsServer) -> None:
    due = datetime.now(UTC) + timedelta(seconds=1)
    bell, trigger = Bell(), AtTrigger(due)
    for _ in range(3):  # each start provisions
        runtime = await ring(own_server, bell, trigger)
        await until(lambda: bell.heard)
        await runtime.stop_all()
    ((event, heard),) = bell.heard
    assert (event.type, event.data) == ("at", {"scheduled": due.isoformat(), "next": None})
    assert heard >= due.timestamp()


async def test_starting_again_keeps_the_rhythm(own_server: NatsServer) -> None:
    """Written anew each time, an interval that is longer than the agent lives would never end."""
    since = []
    for _ in range(2):
        await (await ring(own_server, Bell(), EveryTrigger(3600))).stop_all()
        async with connect(own_server.url) as team:
            since += [each.since for each in await team.schedules()]
    assert since == [since[0]] * 2


async def test_changed_trigger_replaces_its_schedule_and_a_removed_one_takes_it_away(own_server: NatsServer) -> None:
    async def known() -> list[str]:
        async with connect(own_server.url) as team:
            return [each.when for each in await team.schedules()]

    for triggers in ([EveryTrigger(3600)], [EveryTrigger(7200), CronTrigger("0 9 * * *")], []):
        runtime = await ring(own_server, Bell(), *triggers)
        assert sorted(await known()) == sorted(trigger.when for trigger in triggers)
        await runtime.stop_all()


# What was missed


async def firings_of(server: NatsServer, count: int) -> int:
    """Wait until the broker has fired so often for nobody, and return how often."""
    async with connect(server.url) as team:

        async def pending() -> int:
            (durable,) = await team.bus.consumers("SCHEDULES")
            return int((await team.bus.api(f"CONSUMER.INFO.SCHEDULES.{durable}"))["num_pending"])

        async def enough() -> int:
            found = await pending()
            return found if found >= count else 0

        return await until(enough, timeout=30)


@pytest.mark.parametrize("missed", ["once", "skip"])
async def test_of_what_came_while_no_agent_ran_the_newest_is_handled(own_server: NatsServer, missed: Any) -> None:
    bell, trigger = Bell(), EveryTrigger(1, missed=missed)
    await (await ring(own_server, bell, trigger)).stop_all()
    bell.heard.clear()
    await firings_of(own_server, 3)
    back = datetime.now(UTC)
    runtime = await ring(own_server, bell, trigger)
    await until(lambda: max(bell.scheduled(), default=back) > back + timedelta(seconds=1), timeout=20)
    await runtime.stop_all()
    before = [due for due in bell.scheduled() if due < back - timedelta(seconds=1)]
    assert before == []  # but for the newest, which is no older than an interval


@pytest.mark.parametrize(("missed", "heard"), [("once", 1), ("skip", 0)])
async def test_moment_that_is_long_over_is_handled_or_skipped(own_server: NatsServer, missed: Any, heard: int) -> None:
    bell, marker = Bell(), Bell()
    past = datetime.now(UTC) - timedelta(hours=1)
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("bell", agent=bell, triggers=[AtTrigger(past, missed=missed)]))
    runtime.add_process(AgentProcess("marker", agent=marker, triggers=[EveryTrigger(1)]))
    async with runtime:
        await until(lambda: len(marker.heard) >= 2)  # by then the broker has fired for the other, too
    assert bell.scheduled() == [past] * heard


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_broker_that_was_away_fires_for_what_fell_due_once(own_server: NatsServer, end: str) -> None:
    bell, trigger = Bell(), CronTrigger("* * * * * *")
    runtime = await ring(own_server, bell, trigger)
    await until(lambda: bell.heard)
    away = datetime.now(UTC)
    getattr(own_server, end)()
    await until(lambda: datetime.now(UTC) > away + timedelta(seconds=3))
    back = datetime.now(UTC)
    own_server.start()
    await until(lambda: max(bell.scheduled()) > back + timedelta(seconds=2), timeout=30)
    await runtime.stop_all()
    scheduled = bell.scheduled()
    assert len(set(scheduled)) == len(scheduled)
    missed = [due for due in scheduled if away + timedelta(seconds=0.5) < due < back - timedelta(seconds=1)]
    assert missed == []  # at most the last one, when it is back


NOON = "0 12 * * *"


@pytest.fixture
def clock() -> ScriptedClock:
    return ScriptedClock(time.time())


@pytest.fixture
async def forgotten(runtime: AgentRuntime) -> Bell:
    """An agent for which a day is over in a moment; to it, a broker that fires at noon seems to have forgotten."""
    bell = Bell()
    runtime.add_process(AgentProcess("bell", agent=bell, triggers=[CronTrigger(NOON)]))
    await runtime.start_all()
    return bell


def next_noon() -> datetime:
    return CronTrigger(NOON).after(datetime.now(UTC)) or datetime.max


async def test_what_the_broker_forgot_is_made_up_for_once(clock: ScriptedClock, forgotten: Bell) -> None:
    noon = next_noon()
    await clock.advance(noon.timestamp() + module.GRACE - clock.now() - 1)
    assert forgotten.heard == []
    await clock.advance(2 * module.LOOK + 2)
    await until(lambda: forgotten.heard)
    ((event, _),) = forgotten.heard
    assert event.data == {"scheduled": noon.isoformat(), "next": (noon + timedelta(days=1)).isoformat()}
    await clock.advance(86_400 - 3600)  # it is not made up for again
    assert len(forgotten.heard) == 1
    await clock.advance(2 * 3600)  # but what is forgotten the next day is
    await until(lambda: len(forgotten.heard) == 2)
    assert forgotten.scheduled() == [noon, noon + timedelta(days=1)]


async def test_what_was_made_up_for_stays_so_when_the_agent_starts_again(
    own_server: NatsServer, runtime: AgentRuntime, clock: ScriptedClock, forgotten: Bell
) -> None:
    await clock.advance(next_noon().timestamp() + module.GRACE + 2 * module.LOOK + 2 - clock.now())
    await until(lambda: forgotten.heard)
    async with connect(own_server.url) as team:  # the inbox forgets the id
        config = (await team.bus.api("STREAM.INFO.INBOX"))["config"]
        await team.bus.api("STREAM.UPDATE.INBOX", {**config, "duplicate_window": 100_000_000})
    await runtime.stop_all()
    await runtime.start_all()
    await clock.advance(3600)
    await runtime.inject_event("bell", {"type": "last"})
    await until(lambda: forgotten.heard[-1][0].type == "last")
    assert [event.type for event, _ in forgotten.heard] == ["cron", "last"]


async def test_what_was_cancelled_is_not_made_up_for(
    own_server: NatsServer, clock: ScriptedClock, forgotten: Bell
) -> None:
    async with connect(own_server.url) as team:
        (schedule,) = await team.schedules()
        await team.cancel_schedule(schedule.owner, schedule.name)
        await clock.advance(next_noon().timestamp() + 3600 - clock.now())
        await team.inject_event("bell", {"type": "last"})
    await until(lambda: forgotten.heard)
    assert [event.type for event, _ in forgotten.heard] == ["last"]


async def test_broker_that_was_killed_and_has_forgotten(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within two minutes of the provisioning, nats-server 2.15 skips what fell due meanwhile."""
    monkeypatch.setattr(module, "GRACE", 2.0)
    monkeypatch.setattr(module, "LOOK", 0.5)
    bell = Bell()
    runtime = await ring(own_server, bell, EveryTrigger(4))
    provisioned = datetime.now(UTC)
    own_server.kill()
    await until(lambda: datetime.now(UTC) > provisioned + timedelta(seconds=7))
    own_server.start()
    await until(lambda: len(bell.heard) >= 2, timeout=30)
    await runtime.stop_all()
    first, second = bell.scheduled()[:2]
    assert timedelta(0) < first - provisioned < timedelta(seconds=6)  # what was missed
    assert second - first >= timedelta(seconds=4)


async def test_agent_that_fails_is_tried_again(own_server: NatsServer) -> None:
    agent = ScriptedAgent(results=[ValueError("not now"), "done"])
    runtime = AgentRuntime(own_server.url)
    moment = AtTrigger(datetime.now(UTC) + timedelta(seconds=0.5))
    runtime.add_process(AgentProcess("bell", agent=agent, triggers=[moment], retry_delay=0.05))
    async with runtime:
        first, second = await agent.handled(2)
    assert (first.id, first.data, first.attempt) == (second.id, second.data, 1)
    assert second.attempt == 2
