"""Provisioning on a cluster: each stream is kept on three servers, if there are three."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from natterjack.bus import Bus
from natterjack.errors import BrokerError, NatterjackError
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.server import Server
from natterjack.stores import STREAMS
from natterjack.team import Team
from natterjack.testing import until

from .chaos.broker import Broker

TEAM = Team.model_validate({"agents": {"ann": {"kind": "natterjack.components:Agent", "on": ["x"]}}})
PLUGINS = Plugins.load()


@asynccontextmanager
async def cluster(folder: Path, size: int) -> AsyncIterator[tuple[Broker, Bus]]:
    broker = Broker(folder, size=size)
    broker.start()
    bus = await Bus.connect(Server(broker.url), principal="operator")
    try:
        await until(lambda: ready(bus), timeout=30)
        yield broker, bus
    finally:
        await bus.close()
        broker.kill()


async def ready(bus: Bus) -> bool:
    """Whether the servers have agreed on who leads."""
    try:
        await bus.api("INFO", timeout=1.0)
    except NatterjackError:
        return False
    return True


async def copies(bus: Bus) -> dict[str, int]:
    """On how many servers each stream is."""
    found: dict[str, int] = {}
    for name in STREAMS:
        info: dict[str, Any] = await bus.api(f"STREAM.INFO.{name}")
        found[name] = info["config"]["num_replicas"]
    return found


async def test_of_three_servers_one_may_die(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as (broker, bus):
        await provision(bus, TEAM, PLUGINS)
        assert set((await copies(bus)).values()) == {3}
        again = await provision(bus, TEAM, PLUGINS)
        assert (again.created, again.updated) == ([], [])
        stored = await bus.store("events.x", b"1")
        broker.nodes[0].kill()
        await bus.store("events.x", b"2", budget=30.0)
        message = await bus.at("EVENTS", stored.sequence)
        assert message is not None
        assert message.data == b"1"


async def test_what_was_kept_on_one_server_is_spread(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as (_, bus):
        config = STREAMS["DEAD"]
        await bus.api("STREAM.CREATE.DEAD", {"name": "DEAD", **config, "num_replicas": 1})
        done = await provision(bus, TEAM, PLUGINS)
        assert done.updated == ["stream DEAD"]
        assert set((await copies(bus)).values()) == {3}


@pytest.mark.full
async def test_where_there_are_two_servers_one_has_it(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as (_, bus):
        await provision(bus, TEAM, PLUGINS)
        assert set((await copies(bus)).values()) == {1}
        assert (await provision(bus, TEAM, PLUGINS)).updated == []
        with pytest.raises(BrokerError):
            await bus.api("STREAM.CREATE.X", {"name": "X", "subjects": ["x"], "num_replicas": 3})


@pytest.mark.full
@pytest.mark.timeout(180)
async def test_what_is_on_three_servers_stays_there_while_one_is_away(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as (broker, bus):
        await provision(bus, TEAM, PLUGINS)
        config = (await bus.api("STREAM.INFO.MESSAGES"))["config"]
        await bus.api("STREAM.UPDATE.MESSAGES", config | {"max_bytes": 1_000_000})
        broker.nodes[0].kill()

        async def provisioned() -> bool:
            try:
                await provision(bus, TEAM, PLUGINS)
            except NatterjackError:  # until the others have agreed on who leads
                return False
            return True

        await until(provisioned, timeout=120)
        assert set((await copies(bus)).values()) == {3}
        assert (await bus.api("STREAM.INFO.MESSAGES"))["config"]["max_bytes"] == STREAMS["MESSAGES"]["max_bytes"]
