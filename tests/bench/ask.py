"""Asking a peer, beside a raw request to a raw subscriber that publishes the reply."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from nats.aio.msg import Msg

from natterjack import AgentProcess

from .measure import Row, Sides, Stage, p50, rate

QUESTION = "How does the with statement work?"
CALLERS = 64

Call = Callable[[int], Awaitable[None]]


async def echo(question: str) -> str:
    """Answer with the question."""
    return question


@asynccontextmanager
async def _responders(stage: Stage) -> AsyncIterator[tuple[Call, Call]]:
    """Ask once by the kernel, and once by raw nats-py; each side has its own responder."""

    async def reply(message: Msg) -> None:
        await stage.other.publish(message.reply, message.data)

    subscription = await stage.other.subscribe("echo.raw", cb=reply)
    await stage.other.flush()
    try:
        async with stage.team(AgentProcess("echo", agent=echo, concurrency=CALLERS)) as team:

            async def ours(_: int) -> None:
                await team.ask_peer("echo", QUESTION)

            async def raw(_: int) -> None:
                await stage.raw.request("echo.raw", QUESTION.encode(), timeout=5)

            yield ours, raw
    finally:
        await subscription.unsubscribe()


@asynccontextmanager
async def one_caller(stage: Stage) -> AsyncIterator[Sides]:
    """One question after another."""
    count = stage.count(500)
    async with _responders(stage) as (ours, raw):
        yield Sides(lambda: p50(count, ours), lambda: p50(count, raw))


@asynccontextmanager
async def many_callers(stage: Stage) -> AsyncIterator[Sides]:
    """As many callers at once as the peer works on."""
    count = stage.count(4000)
    async with _responders(stage) as (ours, raw):
        yield Sides(lambda: rate(count, ours, callers=CALLERS), lambda: rate(count, raw, callers=CALLERS))


ROWS = [
    Row("ask_peer, 1 caller, p50", "µs", 1.25, one_caller),
    Row("ask_peer, 64 callers", "/s", 0.8, many_callers),
]
