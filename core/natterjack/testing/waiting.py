"""Waiting for a condition, bounded."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def until(condition: Callable[[], Awaitable[T]], timeout: float = 10.0, what: str = "") -> T: ...
@overload
async def until(condition: Callable[[], T], timeout: float = 10.0, what: str = "") -> T: ...
async def until(condition: Callable[[], Any], timeout: float = 10.0, what: str = "") -> Any:
    """Return the condition's value as soon as it is true.

    Args:
        condition: A function, plain or async.
        timeout: Seconds after which the test fails.
        what: What is waited for, for the message; by default the condition's source.

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
            msg = f"still {value!r} after {timeout:g} s: {what or _source(condition)}"
            raise AssertionError(msg)
        await asyncio.sleep(0.005)


def _source(condition: Callable[[], Any]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):  # a partial, a method of an object written in C, or what was typed in
        return repr(condition)
