"""Events with a delay: the broker holds them, so that they happen whatever becomes of who emitted them."""

import asyncio
import math
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from natterjack import Agent, AgentProcess, AgentRuntime, Event, RunContext, connect
from natterjack.bus import Bus
from natterjack.client import TeamClient
from natterjack.errors import ConfigError, ConflictError, RefusedError, StreamError
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.schedules import moment
from natterjack.server import Server
from natterjack.team import Team
from natterjack.testing import NatsServer, ScriptedAgent, until
from natterjack.testing.narrow import login_of, narrow_team

PLUGINS = Plugins.load()
SCRIPTED = {"kind": "natterjack.testing:ScriptedAgent"}


def team(**agents: Any) -> Team:
    return Team.model_validate({"agents": {name: SCRIPTED | spec for name, spec in agents.items()}})


async def stored(client: TeamClient, pattern: str = ">") -> list[Event]:
    return [event async for event in client.event_bus.replay(pattern)]


# When it happens, and what it is then


@pytest.mark.parametrize("delay", [0.4, timedelta(milliseconds=400)])
async def test_event_happens_once_its_delay_is_over(runtime: AgentRuntime, delay: float | timedelta) -> None:
    async with runtime, runtime.event_bus.subscribe("tea.*") as live:
        began = time.time()
        assert await runtime.event_bus.emit("tea.ready", {"cups": 2}, id="pot-1", delay=delay) == 1
        event = await anext(live)
        assert 0.4 <= time.time() - began < 3
        assert (event.id, event.type, event.data, event.source) == ("pot-1", "tea.ready", {"cups": 2}, "operator")
        assert (event.time - datetime.fromtimestamp(began, UTC)).total_seconds() >= 0.4


async def test_no_delay_is_none(runtime: AgentRuntime) -> None:
    async with runtime, runtime.event_bus.subscribe() as live:
        for delay in (None, 0, 0.0, timedelta()):
            await runtime.event_bus.emit("now", delay=delay)
        assert [(await anext(live)).sequence for _ in range(4)] == [1, 2, 3, 4]


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, 1e12, "5", timedelta(seconds=-1), timedelta.max])
async def test_what_is_no_delay_is_refused(runtime: AgentRuntime, delay: Any) -> None:
    async with runtime:
        with pytest.raises(ConfigError, match="is no delay; give seconds from 0 to 315,360,000"):
            await runtime.event_bus.emit("never", delay=delay)


class Egg(Agent):
    """Emits with a delay from a run, and keeps what it is then told."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, str, int]] = []

    async def handle(self, event: Event, ctx: RunContext) -> None:
        if event.type == "egg.put":
            await ctx.shared.set("eggs", 1)
            await ctx.emit("egg.done", {"soft": True}, delay=0.3)
        self.heard.append((event.type, ctx.cause, ctx.shared.get("eggs")))


async def test_what_a_run_delays_follows_from_it(runtime: AgentRuntime) -> None:
    """The envelope travels: depth, cause and context revision; the loop guard and causality need them."""
    from natterjack import EventTrigger

    agent = Egg()
    runtime.add_process(AgentProcess("cook", agent=agent, triggers=[EventTrigger("egg.*")], delays=["egg.done"]))
    async with runtime:
        await runtime.event_bus.emit("egg.put", id="first")
        await until(lambda: len(agent.heard) == 2)
        assert agent.heard[0] == ("egg.put", "first", 1)
        kind, cause, eggs = agent.heard[1]
        assert (kind, eggs) == ("egg.done", 1)
        assert len(cause) > 16  # the id of the delayed event itself, which nobody can guess
        (done,) = [event async for event in runtime.event_bus.replay("egg.done")]
        assert done.headers["Natterjack"].startswith("s=cook;c=first;d=1;r=")


# Whatever happens meanwhile


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_what_falls_due_while_the_broker_is_away_happens_once_it_is_back(
    own_server: NatsServer, end: str
) -> None:
    bus = await Bus.connect(Server(own_server.url), principal="operator")
    await provision(bus, team(a={}), PLUGINS)
    await bus.close()
    async with connect(own_server.url) as client:
        due = time.time() + 1.0
        emits = [client.event_bus.emit("due", number, delay=max(0.1, due - time.time())) for number in range(100)]
        await asyncio.gather(*emits)
        await client.event_bus.emit("later", delay=timedelta(days=400))
    getattr(own_server, end)()
    await until(lambda: time.time() > due)
    own_server.start()
    async with connect(own_server.url) as client:

        async def happened() -> list[Any]:
            found = [event.data for event in await stored(client)]
            return found if len(found) >= 100 else []

        assert sorted(await until(happened, timeout=30)) == list(range(100))
        info = await client.bus.api("STREAM.INFO.DELAYS_operator", {"subjects_filter": "delay.operator.*"})
        assert len(info["state"]["subjects"]) == 1  # what is due in 400 days


async def test_an_id_that_is_held_is_not_held_again(runtime: AgentRuntime) -> None:
    async with runtime:
        first = await runtime.event_bus.emit("tick", 1, id="a", delay=0.5)
        assert await runtime.event_bus.emit("tick", 1, id="a", delay=3600) == first
        for kind, data in (("tick", 2), ("tock", 1)):
            with pytest.raises(ConflictError, match="'a' already belongs to another event"):
                await runtime.event_bus.emit(kind, data, id="a", delay=0.5)

        async def happened() -> list[Event]:
            return [event async for event in runtime.event_bus.replay()]

        (event,) = await until(happened)
        assert (event.id, event.data) == ("a", 1)
        assert await runtime.event_bus.emit("tick", 1, id="a", delay=0.5) == first  # it has just been


# Who may


async def test_agent_delays_only_what_it_declares(own_server: NatsServer) -> None:
    agents = team(clerk={"emits": ["bill.*", "note"], "delays": ["bill.*"]}, boss={})
    async with narrow_team(agents, PLUGINS) as narrow:
        host = await narrow.start("clerk")
        ctx = RunContextOf(host)
        with pytest.raises(RefusedError, match="'clerk' may not emit 'note' with a delay: add it to `delays`"):
            await ctx.emit("note", delay=1)
        assert await ctx.emit("bill.due", {"n": 1}, delay=0.3, id="bill-1") == 1
        assert await ctx.emit("bill.due", {"n": 1}, delay=0.3, id="bill-1") == 1
        events = await until(lambda: stored(narrow.client))
        assert [(event.type, event.source) for event in events] == [("bill.due", "clerk")]
        assert narrow.violations() == []


class RunContextOf:
    """The event bus of a host, as its agent has it."""

    def __init__(self, host: Any) -> None:
        self.emit = host._facilities.events.emit


async def test_broker_holds_an_agent_to_what_it_declares() -> None:
    """A process that was taken over can forge, target and cancel nothing beyond its own delays [R13]."""
    agents = team(clerk={"emits": ["bill.*"], "delays": ["bill.*"]}, other={"delays": ["x"]}, boss={})
    async with narrow_team(agents, PLUGINS) as narrow:
        await narrow.client.event_bus.emit("precious", delay=0.8)
        bus = await Bus.connect(login_of(narrow.server, "clerk"), principal="clerk")
        at = {"Nats-Schedule": f"@at {moment(time.time())}"}
        with pytest.raises(StreamError, match="target is invalid"):  # a type it may not delay
            await bus.store("delay.clerk.a", b"", headers={**at, "Nats-Schedule-Target": "delay.clerk.due.stop"})
        for target in ("events.stop", "delay.operator.due.stop", "stored.events.operator.stop"):
            with pytest.raises(StreamError, match="target is invalid"):
                await bus.store("delay.clerk.a", b"", headers={**at, "Nats-Schedule-Target": target})
        (held,) = (await narrow.client.bus.api("STREAM.INFO.DELAYS_operator", {"subjects_filter": ">"}))["state"][
            "subjects"
        ]
        await bus.store("delay.clerk.a", b"", headers={"Nats-Scheduler": held, "Nats-Schedule-Next": "purge"})
        for subject in (held, "delay.other.a", "delay.clerk.due.bill.x", "delay.other.due.x", "delay.operator.due.x"):
            with pytest.raises(RefusedError):
                await bus.store(subject, b"")
        await bus.close()
        events = await until(lambda: stored(narrow.client))
        assert [event.type for event in events] == ["precious"]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"emits": ["a.*"], "delays": ["b"]}, "'b' is not among what it emits; add it to `emits`"),
        ({"emits": ["a.b"], "delays": ["a.*"]}, r"'a\.\*' is not among what it emits"),
        ({"delays": ["a.*", "*.b"]}, r"'a\.\*' and '\*\.b' overlap"),
    ],
)
async def test_delays_are_checked_before_anything_starts(own_server: NatsServer, spec: Any, problem: str) -> None:
    bus = await Bus.connect(Server(own_server.url), principal="operator")
    with pytest.raises(ConfigError, match=problem):
        await provision(bus, team(a=spec), PLUGINS)
    await bus.close()


# Provisioning


@pytest.fixture
async def bus(own_server: NatsServer) -> Any:
    bus = await Bus.connect(Server(own_server.url), principal="operator")
    yield bus
    await bus.close()


async def emit_as(bus: Bus, principal: str, kind: str, delay: float) -> None:
    """Emit with a delay as an agent would."""
    from natterjack.events import EventBus
    from natterjack.guards import Guards

    own = await Bus.connect(bus.server, principal=principal)
    await EventBus(own, Guards(())).emit(kind, delay=delay)
    await own.close()


async def test_changed_delays_bring_no_event_again(bus: Bus) -> None:
    await provision(bus, team(a={"delays": ["x", "y.*"]}), PLUGINS)
    await emit_as(bus, "a", "x", 0.1)
    async with connect(bus.server) as client:
        assert len(await until(lambda: stored(client))) == 1
        for delays in (["y.>", "z"], ["x"], ["x", "x.>"], [">", "a.b"]):
            done = await provision(bus, team(a={"delays": delays}), PLUGINS)
            assert (done.updated, done.created) == (["stream DELAYS_a"], [])
        await emit_as(bus, "a", "last", 0.1)

        async def happened() -> bool:
            return bool(await stored(client, "last"))

        await until(happened)
        assert [event.type for event in await stored(client)] == ["x", "last"]


async def test_what_an_agent_delayed_happens_also_when_it_is_gone_unless_pruned(bus: Bus) -> None:
    await provision(bus, team(a={"delays": ["x"]}, b={}), PLUGINS)
    await emit_as(bus, "a", "x", 0.5)
    done = await provision(bus, team(b={}), PLUGINS)
    assert "stream DELAYS_a" in done.left
    async with connect(bus.server) as client:
        assert len(await until(lambda: stored(client))) == 1
        done = await provision(bus, team(b={}), PLUGINS, prune=True)
        assert "stream DELAYS_a" in done.removed
        assert done.left == []
        done = await provision(bus, team(a={"delays": ["x"]}, b={}), PLUGINS)  # it comes back, and its events do
        assert "stream DELAYS_a" in done.created
        await emit_as(bus, "a", "x", 0.1)

        async def both() -> bool:
            return len(await stored(client)) == 2

        await until(both, timeout=30)


async def test_many_events_fall_due_at_once(runtime: AgentRuntime) -> None:
    agent = ScriptedAgent()
    from natterjack import EventTrigger

    runtime.add_process(AgentProcess("counter", agent=agent, triggers=[EventTrigger("at.once")]))
    async with runtime:
        due = time.time() + 1.5
        emits = [runtime.event_bus.emit("at.once", n, delay=max(0.1, due - time.time())) for n in range(1000)]
        await asyncio.gather(*emits)
        handled = await agent.handled(1000)
        assert sorted(event.data for event in handled) == list(range(1000))
