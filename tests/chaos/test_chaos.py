"""Faults at random, by seed: nothing that was accepted is lost, nothing journaled is done twice, nothing is left."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from .broker import Broker
from .campaign import campaign, drawn
from .faults import (
    EVERYWHERE,
    ON_A_CLUSTER,
    Fault,
    Flood,
    FreezeLeader,
    FullDisk,
    Kill,
    KillBroker,
    KillLeader,
    StepDown,
)
from .world import World

log = logging.getLogger("chaos")

FAULTS = int(os.environ.get("NATTERJACK_CHAOS_FAULTS", "100"))
ONLY = os.environ.get("NATTERJACK_CHAOS_ONLY", "").split()
SEED = int(os.environ.get("NATTERJACK_CHAOS_SEED", "1"))


async def suffered(world: World, kinds: Sequence[type[Fault]]) -> int:
    """Let all of these faults happen, and return how many did."""
    figures = await campaign(world, kinds, seed=SEED)
    await world.end()
    log.info("%s", figures.told(world))
    return figures.faults.total()


def some(kinds: Sequence[type[Fault]]) -> list[type[Fault]]:
    """Return as many faults as are wanted, of these kinds."""
    return drawn([kind for kind in kinds if not ONLY or kind.__name__ in ONLY], FAULTS, SEED)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 64 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path / "node0")]
    (tmp_path / "node0").mkdir()
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr if done else 'there is no mount'}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path / "node0")], check=True)


@pytest.mark.timeout(180)
async def test_an_agent_and_the_broker_are_killed_while_events_flood(tmp_path: Path) -> None:
    async with World(tmp_path, Broker(tmp_path)) as world:
        assert await suffered(world, [Flood, Kill, KillBroker]) == 3


@pytest.mark.full
@pytest.mark.timeout(300)
async def test_each_fault_once(tmp_path: Path) -> None:
    async with World(tmp_path, Broker(tmp_path)) as world:
        assert await suffered(world, Random(SEED).sample(EVERYWHERE, len(EVERYWHERE))) == len(EVERYWHERE)


@pytest.mark.full
@pytest.mark.timeout(300)
async def test_leaders_of_a_cluster_die(tmp_path: Path) -> None:
    async with World(tmp_path, Broker(tmp_path, size=3)) as world:
        assert await suffered(world, [KillLeader, StepDown, FreezeLeader]) == 3


@pytest.mark.full
@pytest.mark.timeout(300)
async def test_a_disk_is_full(small_disk: Path) -> None:
    async with World(small_disk, Broker(small_disk, limits="jetstream { max_file_store: 64GB }")) as world:
        assert await suffered(world, [FullDisk, Kill]) == 2


@pytest.mark.full
@pytest.mark.timeout(300 + 10 * FAULTS)
async def test_many_faults(tmp_path: Path) -> None:
    async with World(tmp_path, Broker(tmp_path)) as world:
        assert await suffered(world, some(EVERYWHERE)) == FAULTS


@pytest.mark.full
@pytest.mark.timeout(300 + 15 * FAULTS)
async def test_many_faults_of_a_cluster(tmp_path: Path) -> None:
    async with World(tmp_path, Broker(tmp_path, size=3)) as world:
        assert await suffered(world, some(ON_A_CLUSTER)) == FAULTS
