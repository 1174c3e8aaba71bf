"""Quotas: what replicas may use together."""

from __future__ import annotations

import asyncio
import random

import pytest

from natterjack import Bus, ConfigError, NotProvisionedError, Quota, RefusedError
from natterjack.needs import agent_permissions
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.team import Team
from natterjack.testing import NatsServer
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
