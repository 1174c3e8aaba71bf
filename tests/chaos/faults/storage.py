"""Faults of what the servers keep: streams that are full, and whoever does not read what he subscribed to."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path
from random import Random

from ..world import World
from .fault import Fault

STREAMS = ("EVENTS", "KV_context", "DEAD", "INBOX")


class Full(Fault):
    """A stream is full for a while: what is written there is refused, and whoever wrote it is told."""

    touches = ("limits",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._stream, self.lasts = random.choice(STREAMS), random.uniform(0.5, 3.0)
        self.said = f"{self._stream} is full for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        await world.stubborn(lambda: self._limit(world, full=True))

    async def heal(self, world: World) -> None:
        await world.stubborn(lambda: self._limit(world, full=False))

    async def _limit(self, world: World, *, full: bool) -> None:
        found = await world.bus.api(f"STREAM.INFO.{self._stream}")
        most = max(1, found["state"]["messages"]) if full else -1
        await world.bus.api(f"STREAM.UPDATE.{self._stream}", found["config"] | {"max_msgs": most})


class FullDisk(Fault):
    """The disk is full for a while. The server stores nothing any more, until there is room and it is restarted."""

    touches = ("broker",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.lasts = random.uniform(0.5, 3.0)
        self.said = f"the disk is full for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        self._filler = world.broker.nodes[0].store / "filler"
        await asyncio.to_thread(fill, self._filler)

    async def heal(self, world: World) -> None:
        self._filler.unlink()
        await asyncio.to_thread(world.broker.stop)
        await asyncio.to_thread(world.broker.start)


def fill(path: Path) -> None:
    """Write a file until there is no room."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                continue
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


class Deaf(Fault):
    """A client subscribes to everything, and does not read."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.lasts = random.uniform(1.0, 4.0)
        self._writer: asyncio.StreamWriter | None = None
        self.said = f"a client does not read what it subscribed to for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", world.broker.nodes[0].port))
            _, self._writer = await asyncio.open_connection(sock=narrow, limit=1024)
        except OSError:  # the server is away
            narrow.close()
            return
        self._writer.write(b'CONNECT {"verbose":false,"name":"deaf"}\r\nSUB > 1\r\nSUB > 2\r\nSUB > 3\r\n')

    async def heal(self, world: World) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
