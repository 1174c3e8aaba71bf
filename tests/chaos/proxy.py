"""A network that can be cut, frozen and slowed down: a TCP proxy between the team and its server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from .workload import clock

CHUNK = 65_536


class Proxy:
    """Passes bytes on to a port of this machine.

    Args:
        target: Returns the port, which may change.
        host: Where it listens.

    Attributes:
        port: Where it listens.
        delay: Seconds by which every chunk of bytes comes later.
    """

    def __init__(self, target: Callable[[], int], host: str = "127.0.0.1") -> None:
        self._target, self.host = target, host
        self.port, self.delay = 0, 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._links: list[_Link] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        if links := self._oldest(1.0):
            self.cut(1.0)
            await asyncio.wait([link.task for link in links])

    @property
    def links(self) -> int:
        """How many connections there are."""
        return len(self._oldest(1.0))

    def _oldest(self, share: float) -> list[_Link]:
        self._links = [link for link in self._links if not link.task.done()]
        return self._links[: round(share * len(self._links))]

    def cut(self, share: float) -> None:
        """End a share of the connections, the oldest."""
        for link in self._oldest(share):
            link.task.cancel()

    def freeze(self) -> None:
        """Let nothing pass, and end nothing: as a cable that is unplugged."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let everything pass again, what waited, too."""
        self._flowing.set()

    def forget(self, share: float) -> None:
        """Let nothing pass any more on a share of the connections, the oldest, and tell neither end."""
        for link in self._oldest(share):
            link.lost.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = _Link(task)
        self._links.append(link)
        try:
            await self._flowing.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target())
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            return
        pairs = ((reader, far_writer), (far_reader, writer))
        pumps = [asyncio.create_task(self._pump(link, *pair)) for pair in pairs]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if link.lost.is_set():
                await asyncio.wait(pumps)
        except asyncio.CancelledError:
            return  # it is cut
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, far_writer):
                end.transport.abort()

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(CHUNK):
                if self.delay:
                    await clock.sleep(self.delay)
                await self._flowing.wait()
                if not link.lost.is_set():
                    writer.write(data)
                    await writer.drain()
        except OSError:
            return  # the other end is gone, and so is this one


class _Link:
    """One connection.

    Attributes:
        task: Passes its bytes on; cancelled, it is cut.
        lost: Whether it passes nothing any more, not even that it ended.
    """

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task, self.lost = task, asyncio.Event()
