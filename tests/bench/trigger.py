"""From an event to its handler: durable, acknowledged, beside nats-py's `fetch` and `ack`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import nats.errors
from nats.js.client import JetStreamContext

from natterjack import AgentProcess, EventTrigger, subjects
from natterjack.events import EventBus
from natterjack.guards import Guards
from natterjack.messages import Event
from natterjack.testing import until

from .emit import DATA, PAYLOAD
from .measure import WINDOW, Row, Sides, Stage, Watched, p50, rate

BATCH = 256


async def _reader(stage: Stage, name: str) -> JetStreamContext.PullSubscription:
    return await stage.other.jetstream().pull_subscribe(f"raw.{name}", durable=name, stream="RAW")


def _agent(handle: Callable[[Event], Awaitable[None]], type: str) -> AgentProcess:
    return AgentProcess("watched", agent=Watched(handle), triggers=[EventTrigger(type)], concurrency=WINDOW)


@asynccontextmanager
async def throughput(stage: Stage) -> AsyncIterator[Sides]:
    """A backlog is worked off; the time ends with the last acknowledgement."""
    events, count = EventBus(stage.bus, Guards()), stage.count(4000)
    reader, jetstream = await _reader(stage, "backlog"), stage.jetstream()
    gate = asyncio.Event()

    async def handle(event: Event) -> None:
        await gate.wait()

    durable = f"{subjects.EVENTS}.{subjects.durable('watched', EventTrigger('bench.backlog').label)}"

    async def acked() -> bool:
        info = await stage.bus.api(f"CONSUMER.INFO.{durable}")
        return not info["num_pending"] and not info["num_ack_pending"]

    async def ours() -> float:
        gate.clear()
        await rate(count, lambda _: events.emit("bench.backlog", DATA), callers=WINDOW)
        began = time.perf_counter()
        gate.set()
        await until(acked, 30)
        return (count - WINDOW if count > WINDOW else count) / (time.perf_counter() - began)

    async def raw() -> float:
        for _ in range(count):
            await jetstream.publish_async("raw.backlog", PAYLOAD)
        await jetstream.publish_async_completed()
        began, left = time.perf_counter(), count
        while left:
            for message in await reader.fetch(min(BATCH, left), timeout=5):
                await message.ack()
                left -= 1
        await stage.other.flush()
        return count / (time.perf_counter() - began)

    async with stage.team(_agent(handle, "bench.backlog")):
        yield Sides(ours, raw)


@asynccontextmanager
async def latency(stage: Stage) -> AsyncIterator[Sides]:
    """From the call that stores an event to the first line of its handler."""
    events, count = EventBus(stage.bus, Guards()), stage.count(300)
    reader, jetstream = await _reader(stage, "single"), stage.raw.jetstream()
    arrivals: asyncio.Queue[float] = asyncio.Queue()

    async def handle(event: Event) -> None:
        arrivals.put_nowait(time.perf_counter())

    async def read() -> None:
        while True:
            with suppress(nats.errors.TimeoutError):  # nothing to read while the other side is measured
                for message in await reader.fetch(1, timeout=5):
                    arrivals.put_nowait(time.perf_counter())
                    await message.ack()

    async def ours(_: int) -> float:
        await events.emit("bench.single", DATA)
        return await arrivals.get()

    async def raw(_: int) -> float:
        await jetstream.publish("raw.single", PAYLOAD)
        return await arrivals.get()

    async with stage.team(_agent(handle, "bench.single")):
        reading = asyncio.create_task(read())
        try:
            yield Sides(lambda: p50(count, ours), lambda: p50(count, raw))
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


ROWS = [
    Row("event → handler, durable, acked", "/s", 1.0, throughput),
    Row("event → handler, p50", "µs", 1.5, latency),
]
