"""The shared context, beside nats-py's key-value bucket."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from nats.js.api import KeyValueConfig
from nats.js.kv import KeyValue

from natterjack import AgentContext
from natterjack.bus import Bus

from .measure import Row, Sides, Stage, p50, rate

WRITERS = 64
VALUE = {"status": "in progress", "round": 1}
STORED = b'{"status":"in progress","round":1}'


@asynccontextmanager
async def _both(stage: Stage) -> AsyncIterator[tuple[AgentContext, KeyValue]]:
    """A context on the operator's connection, and a bucket with the same history on a raw one."""
    bucket = await stage.raw.jetstream().create_key_value(KeyValueConfig(bucket="raw", history=16, direct=True))
    context = AgentContext()
    await context.attach(stage.bus)
    try:
        yield context, bucket
    finally:
        await context.close()


@asynccontextmanager
async def reading(stage: Stage) -> AsyncIterator[Sides]:
    """Reads are local here; raw nats-py asks the server each time."""
    async with _both(stage) as (context, bucket):
        await context.set("key", VALUE)
        await bucket.put("key", STORED)

        async def ours() -> float:
            count, get = stage.count(200_000), context.get
            began = time.perf_counter()
            for _ in range(count):
                get("key")
            return count / (time.perf_counter() - began)

        async def raw() -> float:
            return await rate(stage.count(500), lambda _: bucket.get("key"), callers=1)

        yield Sides(ours, raw)


@asynccontextmanager
async def writing(stage: Stage, *, writers: int) -> AsyncIterator[Sides]:
    """Each writer waits until its write is durable; keys differ."""
    count = stage.count(500 if writers == 1 else 3000)
    async with _both(stage) as (context, bucket):

        async def ours(number: int) -> None:
            await context.set(f"key.{number % writers}", VALUE)

        async def raw(number: int) -> None:
            await bucket.put(f"key.{number % writers}", STORED)

        yield Sides(lambda: rate(count, ours, callers=writers), lambda: rate(count, raw, callers=writers))


@asynccontextmanager
async def seen(stage: Stage) -> AsyncIterator[Sides]:
    """From a write to its sight in a replica on another connection."""
    count = stage.count(300)
    bus = await Bus.connect(stage.server, principal="reader")
    reader = AgentContext()
    await reader.attach(bus)
    try:
        async with _both(stage) as (context, bucket):
            changes = reader.watch("seen")
            watcher = await (await stage.other.jetstream().key_value("raw")).watch("seen")
            await watcher.updates()  # type: ignore[no-untyped-call]  # None: what was there has been read

            async def ours(number: int) -> float:
                write = context.set("seen", number)
                await anext(changes)
                at = time.perf_counter()
                await write
                return at

            async def raw(number: int) -> float:
                await bucket.put("seen", b"%d" % number)
                await watcher.updates(timeout=5)  # type: ignore[no-untyped-call]
                return time.perf_counter()

            yield Sides(lambda: p50(count, ours), lambda: p50(count, raw))
            await watcher.stop()  # type: ignore[no-untyped-call]
    finally:
        await reader.close()
        await bus.close()


ROWS = [
    Row("context get", "/s", 1.0, reading, floor=1e6),
    Row("context set, acked, 1 writer", "/s", 0.8, partial(writing, writers=1)),
    Row("context set, acked, 64 writers", "/s", 0.8, partial(writing, writers=WRITERS)),
    Row("context set → seen, p50", "µs", 1.5, seen),
]
