"""Leases: so many at once, over all replicas; what a process held that died is free again after half a minute."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import orjson

from natterjack import subjects
from natterjack.bus import Bus
from natterjack.errors import BrokerError

log = logging.getLogger("natterjack.leases")

TERM: Final = 30.0
"""Seconds after which a place is free that nobody has renewed; its holder does so every third of it."""
POLL: Final = 0.25
"""Seconds, at most, after which one who waits looks again."""


@asynccontextmanager
async def held(bus: Bus, key: str, limit: int, clock: Callable[[], float]) -> AsyncIterator[None]:
    """Wait for one of `limit` places, and hold it within the context.

    Args:
        bus: The connection.
        key: Under which the holders stand in the bucket `limits`.
        limit: Places.
        clock: Returns Unix seconds.

    Raises:
        NotProvisionedError: The team has not been provisioned on this server.
        BrokerError: The broker is away.
    """
    places = _Places(bus, key, clock)
    me = secrets.token_hex(8)
    while not await places.change(lambda holders: _with(holders, me, clock() + TERM, limit)):  # noqa: ASYNC110 - who leaves is in another process
        await asyncio.sleep(POLL * random.uniform(0.2, 1.0))  # noqa: S311
    renewing = asyncio.create_task(_renew(places, me, clock))
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.wait([renewing])
        try:
            await places.change(lambda holders: {name: end for name, end in holders.items() if name != me})
        except BrokerError as error:
            log.warning("a place of %s is free only in %g s, by itself: %s", key, TERM, error)


async def _renew(places: _Places, me: str, clock: Callable[[], float]) -> None:
    while True:
        await asyncio.sleep(TERM / 3)
        try:
            await places.change(lambda holders: {**holders, me: clock() + TERM})
        except BrokerError as error:
            log.warning("a place could not be renewed, and may go to another: %s", error)


def _with(holders: Mapping[str, float], me: str, end: float, limit: int) -> dict[str, float] | None:
    return {**holders, me: end} if len(holders) < limit else None


class _Places:
    """Who holds one until when, as JSON under one key, written by compare-and-set."""

    def __init__(self, bus: Bus, key: str, clock: Callable[[], float]) -> None:
        self._bus, self._key, self._clock = bus, key, clock

    async def change(self, change: Callable[[Mapping[str, float]], dict[str, float] | None]) -> bool:
        """Write what `change` makes of those who hold a place now, and return True; or nothing, if it is None."""

        def changed(data: bytes) -> bytes | None:
            now = self._clock()
            known: dict[str, float] = orjson.loads(data) if data else {}
            wanted = change({name: end for name, end in known.items() if end > now})
            return None if wanted is None else orjson.dumps(wanted)

        return await self._bus.change(subjects.LIMITS_BUCKET, self._key, changed)
