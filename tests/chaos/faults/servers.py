"""Faults of the servers."""

from __future__ import annotations

import asyncio
from random import Random

from ..world import World
from .fault import Fault


class KillBroker(Fault):
    """kill -9 of the server, which comes back with its store."""

    touches = ("broker",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.lasts = random.uniform(0.0, 1.5)
        self.said = f"kill -9 of the broker, away for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        await asyncio.to_thread(world.broker.kill)

    async def heal(self, world: World) -> None:
        await asyncio.to_thread(world.broker.start)


class StopBroker(KillBroker):
    """The server is stopped in order, and started again."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.said = f"restart of the broker, away for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        await asyncio.to_thread(world.broker.stop)
