"""Quotas: what replicas may use together."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from natterjack import Bus, ConfigError, NotProvisionedError, Quota, RefusedError
from natterjack.needs import agent_permissions
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.team import Team
from natterjack.testing import NatsServer, until
from natterjack.testing.narrow import login_of, narrow_config

KIND = "natterjack.testing.agents:ScriptedAgent"
TEAM = Team.model_validate({"agents": {"ann": {"kind": KIND}, "ben": {"kind": KIND}}})


@pytest.fixture
async def ready(bus: Bus) -> Bus:
    await provision(bus, TEAM, Plugins.load())
    return bus


@pytest.mark.parametrize("seed", range(10))
async def test_replicas_may_together_use_what_one_may(ready: Bus, seed: int) -> None:
    draw, now = random.Random(seed), 1000.0
    limit, per, owner = draw.randint(1, 6), draw.choice([1.0, 10.0, 60.0]), f"desk{seed}"
    replicas = [Quota(ready, owner, clock=lambda: now) for _ in range(3)]
    alone = Quota(clock=lambda: now)
    for _ in range(60):
        now += draw.choice([0.0, 0.0, per / limit * draw.random() * 2])
        what, amount = draw.choice(["a", "b"]), draw.randint(1, limit)
        expected = await alone.take(what, limit, per=per, amount=amount)
        wait = await draw.choice(replicas).take(what, limit, per=per, amount=amount)
        assert bool(wait) == bool(expected)
        assert wait <= expected + per * 1e-9  # what a replica has not heard of may put it off further


async def test_of_many_at_once_no_more_than_the_limit_come_through(ready: Bus) -> None:
    replicas = [Quota(ready, "crowd", clock=lambda: 1000.0) for _ in range(4)]
    waits = await asyncio.gather(*(replicas[n % 4].take("a", 20, per=60) for n in range(100)))
    assert waits.count(0.0) == 20
    assert {round(wait, 6) for wait in waits if wait} == {3.0}


async def test_what_can_never_be_used_is_told() -> None:
    quota = Quota()
    for limit, per, amount in ((1, 60, 2), (0, 60, 0), (1, 0, 1), (1, 100_000, 1), (float("inf"), 1, 1)):
        with pytest.raises(ConfigError, match="can never be used"):
            await quota.take("a", limit, per=per, amount=amount)


async def test_where_nothing_is_provisioned_that_is_told(bus: Bus) -> None:
    with pytest.raises(NotProvisionedError):
        await Quota(bus, "desk").take("a", 1, per=60)


async def test_an_agent_counts_for_itself_and_for_the_team_only() -> None:
    plugins = Plugins.load()
    with NatsServer(narrow_config(agent_permissions(TEAM, plugins))) as server:
        operator = await Bus.connect(login_of(server, "operator"), principal="operator")
        await provision(operator, TEAM, plugins)
        ann = await Bus.connect(login_of(server, "ann"), principal="ann")
        assert await Quota(ann, "ann").take("a", 1, per=60) == 0.0
        assert await Quota(ann, "ann").take("a", 1, per=60) > 59
        assert await Quota(ann, "anyone").take("a", 1, per=60) == 0.0
        with pytest.raises(RefusedError):
            await Quota(ann, "ben").take("a", 1, per=60)
        await ann.close()
        await operator.close()


class Crowd:
    """Counts who is inside at once; the first to enter wait there until there are so many as may be."""

    def __init__(self) -> None:
        self.inside = self.most = self.total = 0
        self.full = asyncio.Event()

    async def enter(self, quota: Quota, limit: int) -> None:
        async with quota.hold("door", limit):
            self.inside += 1
            self.total += 1
            self.most = max(self.most, self.inside)
            if self.inside == limit:
                self.full.set()
            await self.full.wait()
            self.inside -= 1


@pytest.mark.parametrize("processes", [1, 4])
async def test_of_many_at_once_so_many_hold_it(ready: Bus, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.leases.POLL", 0.01)
    replicas, crowd = [Quota(ready, "crowd") for _ in range(processes)], Crowd()
    await asyncio.gather(*(crowd.enter(replicas[n % processes], 3) for n in range(40)))
    assert (crowd.total, crowd.most, crowd.inside) == (40, 3, 0)


async def test_one_process_counts_for_itself_without_a_broker() -> None:
    quota, crowd = Quota(), Crowd()
    await asyncio.gather(*(crowd.enter(quota, 2) for _ in range(10)))
    assert (crowd.total, crowd.most) == (10, 2)
    with pytest.raises(ConfigError, match="let it be 1, at least"):
        await crowd.enter(quota, 0)


async def test_what_the_dead_held_is_free_after_a_while(ready: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.leases.POLL", 0.01)
    now = 1000.0
    dead, living, crowd = Quota(ready, "crowd", clock=lambda: now), Quota(ready, "crowd", clock=lambda: now), Crowd()
    grave = dead.hold("door", 1)
    await grave.__aenter__()  # and it never leaves
    waiting = asyncio.create_task(crowd.enter(living, 1))
    now += 29
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.2)
    now += 2
    await asyncio.wait_for(waiting, 10)
    assert crowd.total == 1
    await grave.__aexit__(None, None, None)


async def test_who_holds_it_for_long_renews_it(ready: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.leases.TERM", 0.3)
    monkeypatch.setattr("natterjack.leases.POLL", 0.01)
    holder, other, crowd = Quota(ready, "crowd"), Quota(ready, "crowd"), Crowd()
    async with holder.hold("door", 1):
        waiting = asyncio.create_task(crowd.enter(other, 1))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 1)
    await asyncio.wait_for(waiting, 10)
    assert crowd.total == 1


async def test_who_is_stopped_while_it_waits_or_holds_leaves_nothing_behind(ready: Bus) -> None:
    looks: list[float] = []

    def clock() -> float:
        looks.append(time.time())
        return looks[-1]

    quota, entered = Quota(ready, "crowd", clock=clock), asyncio.Event()

    async def stay() -> None:
        async with quota.hold("door", 1):
            entered.set()
            await asyncio.Event().wait()

    holding = asyncio.create_task(stay())
    await asyncio.wait_for(entered.wait(), 10)
    waiting, before = asyncio.create_task(stay()), len(looks)
    await until(lambda: len(looks) > before)  # it has looked who is there, and waits
    for task in (waiting, holding):
        task.cancel()
    await asyncio.wait({waiting, holding})
    async with asyncio.timeout(5), quota.hold("door", 1):
        assert waiting.cancelled()
        assert holding.cancelled()
