"""Faults at random, by seed: nothing that was accepted is lost, nothing journaled is done twice, nothing is left."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from .broker import Broker
from .campaign import campaign, drawn
from .faults import EVERYWHERE, Fault
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


@pytest.mark.timeout(120)
async def test_each_fault_once(tmp_path: Path) -> None:
    async with World(tmp_path, Broker(tmp_path)) as world:
        assert await suffered(world, Random(SEED).sample(EVERYWHERE, len(EVERYWHERE))) == len(EVERYWHERE)


@pytest.mark.full
@pytest.mark.timeout(60 + 10 * FAULTS)
async def test_many_faults(tmp_path: Path) -> None:
    async with World(tmp_path, Broker(tmp_path)) as world:
        kinds = [kind for kind in EVERYWHERE if not ONLY or kind.__name__ in ONLY]
        assert await suffered(world, drawn(kinds, FAULTS, SEED)) == FAULTS
