"""Limits: how many calls in a time, how many at once, how long."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natterjack import ConfigError
from natterjack.testing import until
from natterjack_mcp import (
    Caller,
    ConcurrencyMiddleware,
    MCPServer,
    Middleware,
    RateLimitMiddleware,
    TimeoutMiddleware,
    ToolBusyError,
    ToolError,
    ToolTimeoutError,
)

ANN, BEN = Caller.test("ann"), Caller.test("ben")


def one() -> int:
    return 1


def desk(*middleware: Middleware) -> MCPServer:
    server = MCPServer("desk")
    server.tool(name="a")(one)
    server.tool(name="b")(one)
    server.middleware = middleware
    return server


async def test_each_caller_has_a_rate_for_each_tool() -> None:
    now = 0.0
    server = desk(RateLimitMiddleware(2, per=60, clock=lambda: now))
    for _ in range(2):
        assert await server.call("a", as_caller=ANN) == 1
    with pytest.raises(ToolBusyError, match="ann has called 'a' 2 times in 60 s") as caught:
        await server.call("a", as_caller=ANN)
    assert caught.value.data == {"retryAfter": 30}
    assert await server.call("b", as_caller=ANN) == await server.call("a", as_caller=BEN) == 1
    now = 30.0
    assert await server.call("a", as_caller=ANN) == 1
    with pytest.raises(ToolBusyError):
        await server.call("a", as_caller=ANN)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.lists(st.floats(0, 20), max_size=25))
def test_no_window_has_more_than_twice_the_rate_and_quiet_ones_are_never_refused(
    calls: int, pauses: list[float]
) -> None:
    now, done = 0.0, list[float]()

    async def check() -> None:
        nonlocal now
        server = desk(RateLimitMiddleware(calls, per=10, clock=lambda: now))
        for pause in pauses:
            now += pause
            try:
                await server.call("a", as_caller=ANN)
            except ToolBusyError:
                assert sum(now - 10 <= each for each in done) >= 1
                continue
            done.append(now)
            # A bucket that is full, and fills while it is emptied.
            assert sum(now - 10 < each for each in done) <= 2 * calls
            assert len(done) <= calls + (now - done[0]) * calls / 10 + 1e-6
        if all(pause >= 10 / calls for pause in pauses):
            assert len(done) == len(pauses)

    asyncio.run(check())


async def test_so_many_at_once_and_so_many_wait() -> None:
    server = desk(ConcurrencyMiddleware(2, waiting=1))
    inside, go_on = 0, asyncio.Event()

    @server.tool()
    async def slow() -> int:
        nonlocal inside
        inside += 1
        try:
            await go_on.wait()
            return inside
        finally:
            inside -= 1

    under_way = [asyncio.create_task(server.call("slow")) for _ in range(3)]
    await until(lambda: inside == 2)
    with pytest.raises(ToolBusyError, match="3 calls go on or wait"):
        await server.call("slow")
    under_way[2].cancel()  # it waits
    await asyncio.gather(under_way[2], return_exceptions=True)
    under_way[2] = asyncio.create_task(server.call("slow"))
    go_on.set()
    assert max(await asyncio.gather(*under_way)) == 2
    assert await server.call("a") == 1


async def test_a_call_that_takes_too_long_is_ended() -> None:
    server, ended = desk(TimeoutMiddleware(0.01)), asyncio.Event()

    @server.tool()
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    @server.tool()
    async def impatient() -> None:
        raise TimeoutError

    with pytest.raises(ToolTimeoutError, match=r"'slow' took longer than 0\.01 s"):
        await server.call("slow")
    assert ended.is_set()
    with pytest.raises(ToolError):
        await server.call("impatient")


def test_limits_that_are_none_are_told() -> None:
    with pytest.raises(ConfigError, match="lets nobody call"):
        RateLimitMiddleware(0)
    with pytest.raises(ConfigError, match="at least one must go on"):
        ConcurrencyMiddleware(0)
    with pytest.raises(ConfigError, match="positive number"):
        TimeoutMiddleware(0)
