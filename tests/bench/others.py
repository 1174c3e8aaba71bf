"""Beside other packages for NATS: FastStream, and the Synadia SDK of the agent protocol that ours speaks, too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from natterjack import AgentProcess, EventTrigger
from natterjack.events import EventBus
from natterjack.guards import Guards
from natterjack.messages import Event

from .ask import CALLERS, QUESTION, echo
from .emit import DATA
from .measure import WINDOW, Row, Side, Sides, Stage, Watched, p50, rate

FASTSTREAM, SYNADIA = ("faststream",), ("synadia_ai.agents", "synadia_ai.agent_service")


class Countdown:
    """Set when so many things have happened."""

    def __init__(self) -> None:
        self.left, self.over = 0, asyncio.Event()

    def begin(self, count: int) -> None:
        self.left = count
        self.over.clear()

    def tick(self) -> None:
        self.left -= 1
        if not self.left:
            self.over.set()


def _emptied(count: int, countdown: Countdown, publish: Callable[[int], Any]) -> Side:
    """Publish so many messages; the rate is that from the first call to the last handler."""

    async def side() -> float:
        countdown.begin(count)
        began = time.perf_counter()
        await rate(count, publish, callers=WINDOW)
        await countdown.over.wait()
        return count / (time.perf_counter() - began)

    return side


@asynccontextmanager
async def subscriber(stage: Stage) -> AsyncIterator[Sides]:
    """Store events, and handle each: ours with a run journaled for each, FastStream by a pull of batches."""
    from faststream.nats import JStream, NatsBroker, PullSub

    events, count = EventBus(stage.bus, Guards()), stage.count(4000)
    mine, theirs = Countdown(), Countdown()
    broker = NatsBroker(stage.server.url, logger=None)
    stream = JStream(name="FASTSTREAM", subjects=["faststream.>"])

    @broker.subscriber("faststream.x", stream=stream, durable="x", pull_sub=PullSub(batch_size=WINDOW, timeout=1.0))
    async def take(message: dict[str, Any]) -> None:
        theirs.tick()

    async def handle(event: Event) -> None:
        mine.tick()

    triggers = [EventTrigger("bench.other")]
    agent = AgentProcess("watched", agent=Watched(handle), triggers=triggers, concurrency=WINDOW)
    async with stage.team(agent), broker:
        await broker.start()
        yield Sides(
            _emptied(count, mine, lambda _: events.emit("bench.other", DATA)),
            _emptied(count, theirs, lambda _: broker.publish(DATA, "faststream.x", stream="FASTSTREAM")),
        )


@asynccontextmanager
async def requests(stage: Stage) -> AsyncIterator[Sides]:
    """Questions and answers, many at once."""
    from faststream.nats import NatsBroker

    count, broker = stage.count(2000), NatsBroker(stage.server.url, logger=None)

    @broker.subscriber("faststream-echo", max_workers=CALLERS)
    async def reply(message: str) -> str:
        return message

    async with stage.team(AgentProcess("echo", agent=echo, concurrency=CALLERS)) as team, broker:
        await broker.start()

        async def ours(_: int) -> None:
            await team.ask_peer("echo", QUESTION)

        async def raw(_: int) -> None:
            await broker.request(QUESTION, "faststream-echo", timeout=5)

        yield Sides(lambda: rate(count, ours, callers=CALLERS), lambda: rate(count, raw, callers=CALLERS))


@asynccontextmanager
async def prompts(stage: Stage) -> AsyncIterator[Sides]:
    """One prompt after another, each with its acknowledgement, one chunk of an answer, and the end."""
    from synadia_ai.agent_service import AgentService, PromptStream
    from synadia_ai.agents import Agents, DiscoverFilter, Envelope

    async def answer(envelope: Envelope, stream: PromptStream) -> None:
        await stream.send(envelope.prompt)

    logging.getLogger("synadia_ai").setLevel(logging.ERROR)
    service = AgentService(agent="bench", owner="bench", session_name="echo", nc=stage.other, description="echo")
    service.on_prompt(answer)
    await service.start()
    agents, count = Agents(nc=stage.raw), stage.count(300)
    (agent,) = await agents.discover(filter=DiscoverFilter(agent="bench"))
    try:
        async with stage.team(AgentProcess("echo", agent=echo)) as team:

            async def ours(_: int) -> None:
                assert "".join([chunk async for chunk in team.ask_stream("echo", QUESTION)]) == QUESTION

            async def raw(_: int) -> None:
                assert [message async for message in agent.prompt(QUESTION)]

            yield Sides(lambda: p50(count, ours), lambda: p50(count, raw))
    finally:
        await agents.close()
        await service.stop()


ROWS = [
    Row("event → handler, emit included", "/s", 1.0, subscriber, beside="FastStream", needs=FASTSTREAM),
    Row("ask_peer, 64 callers", "/s", 1.0, requests, beside="FastStream", needs=FASTSTREAM),
    Row("ask_stream, 1 caller, p50", "µs", 1.0, prompts, beside="Synadia SDK", needs=SYNADIA),
]
