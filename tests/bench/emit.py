"""Storing events: `emit` beside nats-py's windowed `publish_async`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from natterjack.events import EventBus
from natterjack.guards import Guards

from .measure import WINDOW, Row, Sides, Stage, rate

DATA = {"question": "How does the with statement work?", "round": 1}
PAYLOAD = b'{"question":"How does the with statement work?","round":1}'


@asynccontextmanager
async def windowed(stage: Stage) -> AsyncIterator[Sides]:
    """Many emits under way, each acknowledged."""
    events, count = EventBus(stage.bus, Guards()), stage.count(4000)
    jetstream = stage.jetstream()

    async def ours() -> float:
        return await rate(count, lambda _: events.emit("bench.emitted", DATA), callers=WINDOW)

    async def raw() -> float:
        began = time.perf_counter()
        for _ in range(count):
            await jetstream.publish_async("raw.emitted", PAYLOAD)
        await jetstream.publish_async_completed()
        return count / (time.perf_counter() - began)

    yield Sides(ours, raw)


ROWS = [Row("emit, windowed", "/s", 0.85, windowed)]
