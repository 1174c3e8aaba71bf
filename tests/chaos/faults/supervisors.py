"""Faults of those who keep the team running."""

from __future__ import annotations

import asyncio
from random import Random

from ..world import World
from .fault import Fault


class KillSupervisor(Fault):
    """kill -9 of `natterjack up`: its agents end by themselves, and it is started again at once."""

    touches = ("supervisor", "signals")
    common = 1

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.said = "kill -9 of the supervisor"

    async def inject(self, world: World) -> None:
        supervisor = world.supervisors[0]
        await asyncio.to_thread(supervisor.kill)
        supervisor.start()
        await supervisor.ready()


class SecondSupervisor(Fault):
    """Somebody starts the same team a second time by mistake, and ends it again."""

    touches = ("supervisor",)
    common = 1

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.lasts = random.uniform(2.0, 8.0)
        self.said = f"a second supervisor for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        self._second = world.add_supervisor()
        self._second.start()

    async def heal(self, world: World) -> None:
        await asyncio.to_thread(self._second.stop)
        world.supervisors.remove(self._second)
