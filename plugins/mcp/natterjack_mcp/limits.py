"""Middleware that bounds calls: how many in a time, how many at once, and how long each may take."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Final

from natterjack import BrokerError, Bus, ConfigError, Quota, RefusedError
from natterjack_mcp.errors import ToolBusyError, ToolTimeoutError
from natterjack_mcp.middleware import Call, Proceed, Result

log = logging.getLogger("natterjack.tools")

MAX_PER: Final = 86_400.0


class RateLimitMiddleware:
    """Lets each caller call each tool so many times in so many seconds, at once or spread (a token bucket).

    Replicas of a server over NATS count together; each also counts for itself, where the broker cannot.

    Args:
        calls: How many.
        per: In how many seconds, at most a day.
        clock: Returns seconds; for tests.
    """

    def __init__(self, calls: int, *, per: float = 60.0, clock: Callable[[], float] = time.time) -> None:
        if calls < 1 or not 0 < per <= MAX_PER:
            msg = f"a rate limit of {calls!r} calls per {per!r} seconds lets nobody call; give at least one, in a day"
            raise ConfigError(msg)
        self._calls, self._per, self._clock = calls, per, clock
        self._own = Quota(clock=clock)
        self._shared: Quota | None = None

    def share(self, bus: Bus, server: str) -> None:
        """Count together with all processes that serve under this name."""
        self._shared = Quota(bus, server, clock=self._clock)

    async def __call__(self, call: Call, proceed: Proceed) -> Result:
        """Stand around one call.

        Raises:
            ToolBusyError: There were too many; `data` says after how many seconds to try again.
        """
        wait = await self._wait(f"{call.ctx.caller.name} {call.tool}")
        if wait:
            msg = (
                f"{call.ctx.caller} has called {call.tool!r} {self._calls} times in {self._per:g} s, and may not more; "
                f"try again in {wait:.3g} s"
            )
            raise ToolBusyError(msg, {"retryAfter": round(wait, 3)})
        return await proceed(call)

    async def _wait(self, what: str) -> float:
        try:
            return await (self._shared or self._own).take(what, self._calls, per=self._per)
        except (BrokerError, RefusedError) as error:
            log.warning("calls are counted in this process alone: %s", error)
            return await self._own.take(what, self._calls, per=self._per)


class ConcurrencyMiddleware:
    """Lets so many calls go on at once; others wait, as many as may, and what is beyond is refused.

    Args:
        calls: How many at once.
        waiting: How many may wait.
    """

    def __init__(self, calls: int, *, waiting: int = 100) -> None:
        if calls < 1 or waiting < 0:
            msg = f"{calls!r} calls at once and {waiting!r} that wait: at least one must go on"
            raise ConfigError(msg)
        self._free, self._most, self._here = asyncio.Semaphore(calls), calls + waiting, 0

    async def __call__(self, call: Call, proceed: Proceed) -> Result:
        """Stand around one call.

        Raises:
            ToolBusyError: As many go on and wait as may.
        """
        if self._here >= self._most:
            msg = f"{self._here} calls go on or wait, and {call.ctx.server} takes no more; try again later"
            raise ToolBusyError(msg)
        self._here += 1
        try:
            async with self._free:
                return await proceed(call)
        finally:
            self._here -= 1


class TimeoutMiddleware:
    """Ends calls that take too long.

    Args:
        seconds: How long each may take.
    """

    def __init__(self, seconds: float) -> None:
        if not 0 < seconds < math.inf:
            msg = f"a timeout of {seconds!r} seconds ends everything or nothing; give a positive number"
            raise ConfigError(msg)
        self._seconds = seconds

    async def __call__(self, call: Call, proceed: Proceed) -> Result:
        """Stand around one call.

        Raises:
            ToolTimeoutError: It took too long; a coroutine is cancelled, a thread goes on and should look at
                `ctx.cancelled`.
        """
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                return await proceed(call)
        except TimeoutError as error:
            if not limit.expired():  # the tool's own
                raise
            msg = f"{call.tool!r} took longer than {self._seconds:g} s, and was given up"
            raise ToolTimeoutError(msg) from error
