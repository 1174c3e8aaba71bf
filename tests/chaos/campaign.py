"""A campaign: rounds of faults under load; after each, the team must be healthy by itself and all work be done."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median

from .faults import Fault
from .workload import clock
from .world import World

log = logging.getLogger("chaos")
log.setLevel(logging.INFO)  # the sequence of faults is shown with every failure

TOGETHER = 6
"""Faults in one round at most."""
SPREAD = 2.0
"""Seconds over which the faults of a round are spread."""


@dataclass
class Figures:
    """What a campaign measured.

    Attributes:
        faults: How many of each kind.
        health: Seconds until the team was healthy, of each round.
    """

    faults: Counter[str] = field(default_factory=Counter)
    health: list[float] = field(default_factory=list)

    def told(self, world: World) -> str:
        """Return them in words."""
        events = len(world.audit.accepted) + len(world.audit.slow)
        done = f"{events} events accepted, all done; {world.audit.repeated} effects repeated"
        kinds = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        asked = ", ".join(f"{count} {what}" for what, count in world.asked.most_common())
        health = f"healthy after {median(self.health):.1f} s, at most {max(self.health):.1f} s"
        return f"{self.faults.total()} faults ({kinds}); {done}; asks: {asked}; {health}"


def drawn(kinds: Sequence[type[Fault]], count: int, seed: int) -> list[type[Fault]]:
    """Return so many kinds of faults at random, each as often as it is common, beside the others."""
    random, found = Random(seed), list[type[Fault]]()
    deck = [kind for kind in kinds for _ in range(kind.common)]
    while len(found) < count:
        found += random.sample(deck, len(deck))
    return found[:count]


async def campaign(world: World, kinds: Sequence[type[Fault]], *, seed: int) -> Figures:
    """Let faults happen, and see after each round that nothing was lost and nothing is left.

    Args:
        world: Where.
        kinds: Of faults, in their order.
        seed: From which all is drawn that is random.
    """
    random, figures, history, began = Random(seed), Figures(), list[str](), time.monotonic()
    left = list(kinds)
    while left:
        count = min(len(left), random.randint(1, TOGETHER))
        chosen, left = [kind(random) for kind in left[:count]], left[count:]
        moments = sorted(random.uniform(0.0, SPREAD) for _ in chosen)
        told = "; ".join(f"{moment:.2f} s {fault}" for moment, fault in zip(moments, chosen, strict=True))
        history.append(f"round {len(history) + 1}: {told}")
        log.info("seed %d, %s", seed, history[-1])
        try:
            async with world.load(random):
                await asyncio.gather(*map(_happen, chosen, moments, [world] * len(chosen)))
                over = time.monotonic()
            figures.health.append(await world.healthy(over))
            await world.check()
        except Exception as error:
            msg = f"{error}\nseed {seed}:\n" + "\n".join(history)
            raise AssertionError(msg) from error
        figures.faults.update(type(fault).__name__ for fault in chosen)
        done, events = figures.faults.total(), len(world.audit.accepted) + len(world.audit.slow)
        text = "… %d faults, %d events, healthy after %.1f s; %.0f s in all"
        log.info(text, done, events, figures.health[-1], time.monotonic() - began)
    return figures


async def _happen(fault: Fault, moment: float, world: World) -> None:
    await clock.sleep(moment)
    async with world.alone(*fault.touches):
        await fault.inject(world)
        try:
            await clock.sleep(fault.lasts)
        finally:
            await fault.heal(world)
