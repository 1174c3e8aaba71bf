"""Middleware that bounds calls: how many in a time, how many at once, and how long each may take."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from natterjack import ConfigError
from natterjack_mcp.errors import ToolBusyError, ToolTimeoutError
from natterjack_mcp.middleware import Call, Proceed, Result

MAX_CALLERS: Final = 10_000
"""Pairs of caller and tool that are remembered; the one that was quiet for the longest goes first."""


class RateLimitMiddleware:
    """Lets each caller call each tool so many times in so many seconds, at once or spread (a token bucket).

    It counts in this process: of replicas, each does.

    Args:
        calls: How many.
        per: In how many seconds.
        clock: Returns seconds; for tests.
    """

    def __init__(self, calls: int, *, per: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        if calls < 1 or not 0 < per < math.inf:
            msg = f"a rate limit of {calls!r} calls per {per!r} seconds lets nobody call; both must be positive"
            raise ConfigError(msg)
        self._calls, self._per, self._clock = calls, per, clock
        self._due: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def __call__(self, call: Call, proceed: Proceed) -> Result:
        """Stand around one call.

        Raises:
            ToolBusyError: There were too many; `data` says after how many seconds to try again.
        """
        # As GCRA has it: each call moves the time by which all calls so far would be paid off.
        key, now, cost = (call.ctx.caller.name, call.tool), self._clock(), self._per / self._calls
        due = max(self._due.pop(key, now), now) + cost
        wait = due - now - self._per
        if wait > cost * 1e-9:  # what rounding makes is nobody's fault
            self._due[key] = due - cost
            msg = (
                f"{call.ctx.caller} has called {call.tool!r} {self._calls} times in {self._per:g} s, and may not more; "
                f"try again in {wait:.3g} s"
            )
            raise ToolBusyError(msg, {"retryAfter": round(wait, 3)})
        self._due[key] = due
        if len(self._due) > MAX_CALLERS:
            self._due.popitem(last=False)
        return await proceed(call)


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
