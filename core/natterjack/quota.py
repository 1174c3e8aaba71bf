"""Quotas: so many uses in so much time, or at once, counted together by all replicas of an agent or a tool server."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from natterjack import subjects
from natterjack.bus import Bus
from natterjack.errors import ConfigError, ConflictError
from natterjack.leases import held

MAX_KNOWN: Final = 10_000
"""Uses that a process remembers; the one that was quiet for the longest goes first."""
MAX_PER: Final = 86_400.0
"""Seconds after which the bucket forgets."""
BUCKET: Final = subjects.LIMITS_BUCKET


class Quota:
    """Counts uses as a token bucket does, at once or spread (GCRA): a number in the KV, written by compare-and-set.

    Example::

        quota = Quota(bus, "team-tools")
        if wait := await quota.take("ann/web_search", 60, per=60.0):
            raise ToolBusyError(f"try again in {wait:.3g} s")

    Args:
        bus: The connection; None: this process counts for itself.
        owner: The agent or tool server whose replicas count together, or `anyone`: the whole team.
        clock: Returns Unix seconds. Machines that count together need clocks that agree, but for a part of `per`.
    """

    def __init__(self, bus: Bus | None = None, owner: str = "", *, clock: Callable[[], float] = time.time) -> None:
        self._bus, self._owner, self._clock = bus, owner, clock
        self._known: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._places: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def take(self, what: str, limit: float, *, per: float, amount: float = 1.0) -> float:
        """Count a use, and return 0; or return after how many seconds, at least, there is room, and count nothing.

        Args:
            what: Any text; each is counted apart.
            limit: How much may be used in `per` seconds.
            per: Seconds, at most a day.
            amount: How much is used, at most `limit`.

        Raises:
            ConfigError: Nothing could ever be used so.
            NotProvisionedError: The team has not been provisioned on this server.
            BrokerError: The broker is away.
        """
        if not (0 < amount <= limit < math.inf and 0 < per <= MAX_PER):
            msg = f"{amount:g} of {limit:g} in {per:g} s can never be used: take at most the limit, in at most a day"
            raise ConfigError(msg)
        return await self._count(self._key(what, limit, per), per, per / limit * amount)

    async def spend(self, what: str, limit: float, *, per: float, amount: float) -> None:
        """Count what was used already, however much that is; see `take`."""
        await self._count(self._key(what, limit, per), per, per / limit * amount, at_most=math.inf)

    async def left(self, what: str, limit: float, *, per: float) -> float:
        """Return how much may be used now, by what all replicas have used; less than 0: they used too much."""
        _, due = await self._read(self._key(what, limit, per))
        now = self._clock()
        return (now + per - max(due, now)) * limit / per

    @asynccontextmanager
    async def hold(self, what: str, limit: int) -> AsyncIterator[None]:
        """Wait until fewer than `limit` of all replicas hold it, and hold it within the context.

        What a process held that died is free after 30 seconds. Those that wait have no order.

        Args:
            what: Any text; each is held apart.
            limit: How many may hold it at once.

        Raises:
            ConfigError: Nobody could ever hold it.
            NotProvisionedError: The team has not been provisioned on this server.
            BrokerError: The broker is away.
        """
        if limit < 1:
            msg = f"at most {limit} at once can never be held: let it be 1, at least"
            raise ConfigError(msg)
        key = self._key(what, limit, 0)
        if self._bus is not None:
            async with held(self._bus, key, limit, self._clock):
                yield
        else:
            async with self._places.setdefault(key, asyncio.Semaphore(limit)):
                yield

    def _key(self, what: str, limit: float, per: float) -> str:
        digest = hashlib.sha256(f"{limit:g}/{per:g} {what}".encode()).hexdigest()
        return f"{self._owner}.{digest[:32]}"

    async def _count(self, key: str, per: float, cost: float, at_most: float = 0.0) -> float:
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            return await self._take(key, per, cost, at_most)

    async def _take(self, key: str, per: float, cost: float, at_most: float) -> float:
        while True:
            sequence, due = self._known.get(key) or await self._read(key)
            now = self._clock()
            paid = max(due, now) + cost  # when all uses so far are paid off; others can only have put it off further
            if (wait := paid - now - per) > at_most + per * 1e-9:  # what rounding makes is nobody's fault
                return wait
            try:
                await self._write(key, sequence, paid)
            except ConflictError:  # another replica was first
                self._known.pop(key, None)  # not there: so many others were used meanwhile
            else:
                return 0.0

    async def _read(self, key: str) -> tuple[int, float]:
        if self._bus is None:
            return self._known.setdefault(key, (0, 0.0))
        sequence, data = await self._bus.value(BUCKET, key)
        self._known[key] = found = sequence, float(data or 0)
        return found

    async def _write(self, key: str, sequence: int, paid: float) -> None:
        if self._bus is not None:
            sequence = await self._bus.put(BUCKET, key, repr(paid).encode(), expect=sequence)
        self._known[key] = sequence, paid
        self._known.move_to_end(key)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
