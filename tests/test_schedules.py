"""Schedules of triggers: written by provisioning, fired by the broker's own clock, followed by whoever runs."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from natterjack import Event, Firing, Schedule, ScheduleSpec, Settings, TeamClient, Trigger, TriggerContext, connect
from natterjack import schedules as schedules_module
from natterjack.bus import Bus
from natterjack.errors import ConfigError, NotProvisionedError, RefusedError
from natterjack.host import AgentHost
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.schedules import moment
from natterjack.server import Server
from natterjack.team import Team
from natterjack.testing import NatsServer, ScriptedAgent, until
from natterjack.testing.narrow import NarrowTeam, login_of, narrow_team

SCRIPTED = {"kind": "natterjack.testing:ScriptedAgent"}


class Timed(Trigger):
    """Fires when the broker does; its test may do more with each firing."""

    name: ClassVar[str] = "timed"

    class Config(Settings):
        """When."""

        when: str
        zone: str = ""

    config: Config
    taken: ClassVar[list[Firing]] = []
    act: ClassVar[Callable[[TriggerContext, Firing], Awaitable[object]] | None] = None

    @property
    def label(self) -> str:
        return "timed-" + "".join(char for char in self.config.when if char.isalnum())

    def schedules(self, agent: str) -> list[ScheduleSpec]:
        return [ScheduleSpec(agent, self.label, self.config.when, self.config.zone)]

    async def run(self, ctx: TriggerContext) -> None:
        async def take(firing: Firing) -> None:
            self.taken.append(firing)
            if Timed.act is not None:
                await Timed.act(ctx, firing)
            else:
                await ctx.fire({"at": firing.time.isoformat()}, id=str(firing.sequence))

        (spec,) = self.schedules(ctx.agent)
        await ctx.follow(spec, take)


@pytest.fixture(autouse=True)
def plugins() -> Plugins:
    Timed.taken.clear()
    Timed.act = None
    plugins = Plugins.load()
    plugins.triggers["timed"] = Timed
    return plugins


@pytest.fixture
async def bus(own_server: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(Server(own_server.url), principal="operator")
    yield bus
    await bus.close()


@pytest.fixture
async def narrow(plugins: Plugins) -> AsyncIterator[NarrowTeam]:
    agents = {"bell": SCRIPTED | {"on": [{"timed": "@every 1s"}]}, "other": SCRIPTED}
    async with narrow_team(Team.model_validate({"agents": agents}), plugins) as narrow:
        yield narrow


def events_of(host: AgentHost) -> list[Event]:
    agent = host._agent
    assert isinstance(agent, ScriptedAgent)
    return agent.events


def team(*when: str, **more: Any) -> Team:
    on = [{"timed": each} for each in when]
    return Team.model_validate({"agents": {"bell": SCRIPTED | {"on": on} | more, "other": SCRIPTED}})


async def known(bus: Bus) -> dict[str, Schedule]:
    async with connect(bus.server) as client:
        return {f"{each.owner}.{each.name}": each for each in await client.schedules()}


# Provisioning


async def test_schedules_are_written_kept_changed_and_removed(bus: Bus, plugins: Plugins) -> None:
    done = await provision(bus, team("@every 3600s", "0 0 9 * * 1,2"), plugins)
    assert done.created[-2:] == ["schedule bell.timed-every3600s", "schedule bell.timed-00912"]
    first = await known(bus)
    assert [each.when for each in first.values()] == ["@every 3600s", "0 0 9 * * 1,2"]
    done = await provision(bus, team("@every 3600s", "0 0 9 * * 1,2"), plugins)
    assert (done.created, done.updated, done.removed) == ([], [], [])
    assert await known(bus) == first  # written when it was: an interval goes on
    done = await provision(bus, team("@every 60s"), plugins)
    assert done.created == ["consumer bell=timed-every60s on SCHEDULES", "schedule bell.timed-every60s"]
    assert done.removed == [f"schedule {name}" for name in sorted(first)]
    assert sorted(done.left) == sorted(f"consumer {name.replace('.', '=')} on SCHEDULES" for name in first)
    done = await provision(bus, team(), plugins, prune=True)
    assert await known(bus) == {}
    assert len(done.removed) == 4
    done = await provision(bus, team(), plugins, prune=True)
    assert (done.removed, done.created, done.updated) == ([], [], [])


async def test_team_without_schedules_has_no_stream_of_them(bus: Bus, plugins: Plugins) -> None:
    await provision(bus, team(), plugins)
    with pytest.raises(NotProvisionedError):
        await bus.api("STREAM.INFO.SCHEDULES")
    assert await known(bus) == {}


@pytest.mark.parametrize(
    ("trigger", "problem"),
    [
        ({"when": "61 * * * * *"}, r"the server takes no schedule '61 \* \* \* \* \*' for 'bell'"),
        ({"when": "@every 10ms"}, "the server takes no schedule"),
        ({"when": "0 0 9 * * *", "zone": "Europe/Atlantis"}, "in Europe/Atlantis for 'bell'.*time zone is invalid"),
    ],
)
async def test_what_the_server_cannot_read_is_told(
    bus: Bus, plugins: Plugins, trigger: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        await provision(bus, team(**{"on": [{"timed": trigger}]}), plugins)


async def test_older_server_is_one_clear_error(bus: Bus, plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedules_module, "OLDEST", (99, 4))
    told = r"runs nats-server 2\.\d+\.\d+, but 'bell' is to be woken by the server's own clock: that needs 99.4 or"
    with pytest.raises(ConfigError, match=told):
        await provision(bus, team("@every 1s"), plugins)
    assert await bus.streams(">") == []  # nothing is begun
    await provision(bus, team(), plugins)


async def test_one_moment_comes_once_however_often_it_is_provisioned(narrow: NarrowTeam, plugins: Plugins) -> None:
    when = f"@at {moment(time.time() + 0.5)}"
    bus = narrow.client.bus
    await provision(bus, team(when), plugins)
    name = f"bell.{Timed.create({'when': when}).label}"

    async def fired() -> bool:
        return await bus.last("SCHEDULES", f"schedule.{name}.fired") is not None

    await until(fired)
    for _ in range(2):
        done = await provision(bus, team(when), plugins)
        assert f"schedule {name}" in done.kept
        assert await known(bus) == {}


# Firing


async def test_each_firing_goes_to_one_replica(narrow: NarrowTeam) -> None:
    agents = [await narrow.start("bell") for _ in range(3)]
    await until(lambda: len(Timed.taken) >= 3)
    assert len({firing.sequence for firing in Timed.taken}) == len(Timed.taken)
    for firing in Timed.taken:
        assert firing.next is not None
        assert firing.next.microsecond == 0
        assert abs(firing.next - firing.time) < timedelta(seconds=10)
    handled = await until(
        lambda: found if len(found := [each for host in agents for each in events_of(host)]) > 2 else []
    )
    assert {event.type for event in handled} <= {"timed"}
    assert narrow.violations() == []


async def test_what_came_while_nobody_ran_is_told_from_the_newest(narrow: NarrowTeam) -> None:
    async def there() -> int:
        info = await narrow.client.bus.api("CONSUMER.INFO.SCHEDULES.bell=timed-every1s")
        return int(info["num_pending"]) if info["num_pending"] >= 3 else 0

    pending = await until(there)
    await narrow.start("bell")
    await until(lambda: len(Timed.taken) > pending)
    taken = sorted(Timed.taken, key=lambda firing: firing.sequence)
    newest = max(firing.sequence for firing in taken if firing.missed)
    assert [firing.missed for firing in taken] == [firing.sequence <= newest for firing in taken]
    assert sum(firing.missed for firing in taken) >= pending - 1


async def test_firing_that_fails_comes_again(narrow: NarrowTeam) -> None:
    async def act(ctx: TriggerContext, firing: Firing) -> None:
        if len([each for each in Timed.taken if each.sequence == firing.sequence]) < 2:
            msg = "not now"
            raise ValueError(msg)
        await ctx.fire({"n": firing.sequence})

    Timed.act = act
    host = await narrow.start("bell")
    await until(lambda: len(events_of(host)) >= 2)
    handled = sorted(event.data["n"] for event in events_of(host))
    assert len(set(handled)) == len(handled)


async def test_lasting_id_counts_beyond_the_window_of_the_stream(narrow: NarrowTeam) -> None:
    """What is handled is not handled again, when the inbox has long forgotten the id."""
    results: list[int] = []

    async def act(ctx: TriggerContext, firing: Firing) -> None:
        results.append(await ctx.fire({"n": 1}, id="the-one", lasting=True))

    Timed.act = act
    stream = (await narrow.client.bus.api("STREAM.INFO.INBOX"))["config"]
    await narrow.client.bus.api("STREAM.UPDATE.INBOX", {**stream, "duplicate_window": 100_000_000})  # 0.1 s
    host = await narrow.start("bell")
    await until(lambda: len(results) >= 3)
    assert [result > 0 for result in results[:3]] == [True, False, False]
    assert len(events_of(host)) == 1


async def test_stopping_gives_back_what_is_not_taken(narrow: NarrowTeam) -> None:
    began = asyncio.Event()

    async def hang(ctx: TriggerContext, firing: Firing) -> None:
        began.set()
        await asyncio.Event().wait()

    Timed.act = hang
    first = await narrow.start("bell")
    await began.wait()
    (given,) = Timed.taken[:1]
    await first.stop(0)
    Timed.act = None
    await narrow.start("bell")
    await until(lambda: given.sequence in {each.sequence for each in Timed.taken[1:]}, timeout=10)


async def test_it_goes_on_when_the_broker_was_away(narrow: NarrowTeam) -> None:
    await narrow.start("bell")
    await until(lambda: Timed.taken)
    narrow.server.kill()
    narrow.server.start()
    back = datetime.now(UTC)
    await until(lambda: Timed.taken[-1].time > back, timeout=20)
    assert narrow.violations() == []


# Rights


async def test_agent_cannot_write_cancel_or_fire_schedules(narrow: NarrowTeam) -> None:
    own, firing = "schedule.bell.timed-every1s", "schedule.bell.timed-every1s.fired"
    for name in ("bell", "other"):
        bus = await Bus.connect(login_of(narrow.server, name), principal=name)
        for subject in (own, firing, f"schedule.{name}.mine", "schedule.other.x.fired"):
            with pytest.raises(RefusedError):
                await bus.store(subject, b"", headers={"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": firing})
        with pytest.raises(RefusedError):
            await bus.api("STREAM.PURGE.SCHEDULES", {"filter": own})
        await bus.close()
    other = await Bus.connect(login_of(narrow.server, "other"), principal="other")
    with pytest.raises(RefusedError):
        await other.last("SCHEDULES", own)
    await other.close()
    assert list(await known(narrow.client.bus)) == ["bell.timed-every1s"]


# Looking and cancelling


async def test_schedules_are_listed_and_cancelled(own_server: NatsServer, bus: Bus, plugins: Plugins) -> None:
    zoned = {"timed": {"when": "0 0 9 * * *", "zone": "Europe/Amsterdam"}}
    await provision(bus, team(on=[zoned]), plugins)
    async with connect(own_server.url) as client:
        await client.event_bus.emit("tea.ready", {"cups": 2}, delay=3600)
        (cron, held) = await client.schedules()
        assert (cron.owner, cron.name, cron.when, cron.zone) == ("bell", "timed-009", "0 0 9 * * *", "Europe/Amsterdam")
        assert (cron.event, cron.last, held.last) == ("", None, None)
        assert (held.owner, held.event, held.when[:4]) == ("operator", "tea.ready", "@at ")
        assert abs((held.since - datetime.now(UTC)).total_seconds()) < 60
        for each in (cron, held):
            await client.cancel_schedule(each.owner, each.name)
            with pytest.raises(NotProvisionedError, match=f"a schedule {each.owner}.{each.name}"):
                await client.cancel_schedule(each.owner, each.name)
        assert await client.schedules() == []
    await provision(bus, team("@every 1s"), plugins)
    async with connect(own_server.url) as client:

        async def fired(client: TeamClient = client) -> bool:
            return (await client.schedules())[0].last is not None

        await until(fired)


async def test_agent_sees_how_its_schedule_stands(narrow: NarrowTeam) -> None:
    seen: list[Schedule | None] = []

    async def act(ctx: TriggerContext, firing: Firing) -> None:
        seen.append(await ctx.schedule(ScheduleSpec(ctx.agent, "timed-every1s", "@every 1s")))

    Timed.act = act
    await narrow.start("bell")
    await until(lambda: seen)
    stands = seen[0]
    assert stands is not None
    assert stands.last is not None
    assert stands.last.sequence == Timed.taken[0].sequence
    await narrow.client.cancel_schedule("bell", "timed-every1s")
    assert await known(narrow.client.bus) == {}
