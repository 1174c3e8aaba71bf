"""Waiting for a condition, bounded."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(condition: Callable[[], T | Awaitable[T]], timeout: float = 10.0) -> T:
    """Return the condition's value as soon as it is true.

    Args:
        condition: A function, plain or async.
        timeout: Seconds after which the test fails.

    Raises:
        AssertionError: It stayed false; with its last value.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            msg = f"still {value!r} after {timeout:g} s: {inspect.getsource(condition).strip()}"
            raise AssertionError(msg)
        await asyncio.sleep(0.005)
