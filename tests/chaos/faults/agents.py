"""Faults of agents' processes."""

from __future__ import annotations

import signal
from random import Random

from ..supervised import LABELS, LEASE
from ..world import World, send
from .fault import Fault


class Kill(Fault):
    """kill -9 of an agent's process, at whatever it is."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._who = random.choice(LABELS)
        self.said = f"kill -9 {self._who}"

    async def inject(self, world: World) -> None:
        world.signal(self._who, signal.SIGKILL)


class Die(Fault):
    """An agent's process dies at a chosen place of a run: in a step, while journaling, emitting, or acking."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        place = random.choice(["weigh", "journal", "emit", "ack"])
        self._order = {"at": place, "turns": random.choice([0, 1, 2, 5, random.randrange(10, 300)])}
        self.said = f"die {self._order['turns']} turns behind {place!r}"

    async def inject(self, world: World) -> None:
        await world.emit(die=self._order)


class Freeze(Fault):
    """SIGSTOP of a replica past its lease, then SIGCONT: others have taken its work over."""

    touches = ("signals",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._who = random.choice(LABELS)
        self.lasts = LEASE * random.uniform(0.5, 2.0)
        self.said = f"SIGSTOP {self._who} for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        self._process = world.signal(self._who, signal.SIGSTOP)

    async def heal(self, world: World) -> None:
        if self._process is not None:
            send(self._process, signal.SIGCONT)
