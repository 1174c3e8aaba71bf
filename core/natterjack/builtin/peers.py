"""Agents of another team: `nats://host:4222/<agent>` as an address of `cross_agents`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

from natterjack import subjects
from natterjack.bus import Bus
from natterjack.components import PeerScheme
from natterjack.errors import BrokerError, ConfigError, PeerTimeoutError, PeerUnavailableError
from natterjack.guards import Guards
from natterjack.messages import Answer
from natterjack.peers import OnQuery, Peers
from natterjack.server import Server


class NatsPeers(PeerScheme):
    """Asks agents that live on another server, over one connection to each, kept open.

    Example in a team file::

        cross_agents = { translator = "nats://other-host:4222/translator" }
    """

    name: ClassVar[str] = "nats"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._buses: dict[str, Bus] = {}
        self._lock = asyncio.Lock()

    async def ask(self, address: str, question: str, timeout: float) -> Answer:
        """Ask the agent that the last part of the address names."""
        peers, agent, left = await self._reach(address, timeout)
        return await peers.ask(agent, question, timeout=left)

    async def stream(
        self, address: str, question: str, timeout: float, on_query: OnQuery | None
    ) -> AsyncGenerator[str, None]:
        """Ask, and yield the chunks of the answer as they come."""
        peers, agent, left = await self._reach(address, timeout)
        async with peers.stream(agent, question, timeout=left, on_query=on_query) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _reach(self, address: str, timeout: float) -> tuple[Peers, str, float]:
        """Return who asks on the other server, the agent's name there, and the seconds left."""
        url, slash, agent = address.rpartition("/")
        if not slash or url.endswith("/"):
            msg = f"{address!r} names no agent; write it like nats://host:4222/translator"
            raise ConfigError(msg)
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout):
                bus = await self._bus(url)
        except TimeoutError as error:
            raise PeerTimeoutError(agent, 408, f"no connection to {Server(url)} within {timeout:g} s") from error
        except BrokerError as error:
            raise PeerUnavailableError(agent, 503, str(error)) from error
        return Peers(bus, Guards()), agent, timeout - (time.monotonic() - began)

    async def _bus(self, url: str) -> Bus:
        async with self._lock:
            known = self._buses.get(url)
            if known is None or known.closed.is_set():
                known = self._buses[url] = await Bus.connect(Server(url), principal=subjects.OPERATOR)
            return known

    async def close(self) -> None:
        """Close all connections."""
        buses, self._buses = self._buses, {}
        for bus in buses.values():
            await bus.close()
