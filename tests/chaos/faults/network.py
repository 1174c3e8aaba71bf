"""Faults of the network between the team and its servers."""

from __future__ import annotations

from random import Random

from ..world import World
from .fault import Fault


class Cut(Fault):
    """Connections end all at once, some or all of them."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._share = random.choice([0.3, 0.6, 1.0])
        self.said = f"{self._share:.0%} of the connections are cut"

    async def inject(self, world: World) -> None:
        for proxy in world.proxies:
            proxy.cut(self._share)


class Slow(Fault):
    """Everything comes late."""

    touches = ("network",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._delay, self.lasts = random.uniform(0.005, 0.2), random.uniform(0.5, 3.0)
        self.said = f"all comes {1000 * self._delay:.0f} ms late for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        for proxy in world.proxies:
            proxy.delay = self._delay

    async def heal(self, world: World) -> None:
        for proxy in world.proxies:
            proxy.delay = 0.0


class Unplug(Fault):
    """Nothing passes for a while, and nobody is told: a cable that is unplugged."""

    touches = ("network",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.lasts = random.uniform(0.5, 6.0)
        self.said = f"unplugged for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        for proxy in world.proxies:
            proxy.freeze()

    async def heal(self, world: World) -> None:
        for proxy in world.proxies:
            proxy.thaw()


class Forget(Fault):
    """Nothing passes on some of the connections ever again, and neither end is told: a router forgot them."""

    common = 1

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._share = random.choice([0.2, 0.5, 1.0])
        self.said = f"{self._share:.0%} of the connections are silent for ever"

    async def inject(self, world: World) -> None:
        for proxy in world.proxies:
            proxy.forget(self._share)
