"""Faults of the servers."""

from __future__ import annotations

import asyncio
from random import Random

from natterjack import BrokerError
from natterjack.testing import NatsServer

from ..world import World
from .fault import Fault

LED = ("EVENTS", "JOURNAL", "KV_context")


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


class KillLeader(Fault):
    """kill -9 of the server that leads a stream, in a cluster; another takes over, and it comes back later."""

    touches = ("broker",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._stream, self.lasts = random.choice(LED), random.uniform(0.5, 4.0)
        self.said = f"kill -9 of the leader of {self._stream}, away for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        self._node = await leader(world, self._stream)
        await asyncio.to_thread(self._node.kill)

    async def heal(self, world: World) -> None:
        await asyncio.to_thread(self._node.start)


class FreezeLeader(KillLeader):
    """SIGSTOP of the server that leads a stream, in a cluster, then SIGCONT: it believes to lead when it wakes up."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.lasts *= 2
        self.said = f"SIGSTOP of the leader of {self._stream} for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        self._node = await leader(world, self._stream)
        self._node.freeze()

    async def heal(self, world: World) -> None:
        self._node.thaw()


class StepDown(Fault):
    """The leader of a stream steps down, in a cluster."""

    touches = ("broker",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._stream = random.choice(LED)
        self.said = f"the leader of {self._stream} steps down"

    async def inject(self, world: World) -> None:
        await world.stubborn(lambda: world.bus.api(f"STREAM.LEADER.STEPDOWN.{self._stream}"))


async def leader(world: World, stream: str) -> NatsServer:
    """Return the server that leads a stream."""

    async def find() -> NatsServer:
        info = await world.bus.api(f"STREAM.INFO.{stream}")
        if name := info["cluster"].get("leader"):
            return world.broker.nodes[int(name.removeprefix("node"))]
        msg = f"nobody leads {stream}"
        raise BrokerError(msg)

    return await world.stubborn(find)
