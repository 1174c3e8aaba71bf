"""Faults of what the servers keep: streams that are full, and whoever does not read what he subscribed to."""

from __future__ import annotations

import asyncio
import socket
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
        await world.limit(self._stream, full=True)

    async def heal(self, world: World) -> None:
        await world.limit(self._stream, full=False)


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
