"""Appending to journals, beside nats-py's windowed `publish_async` with the same expectation."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from natterjack.journal import StreamJournal
from natterjack.runjournal import RunJournal

from .measure import WINDOW, Row, Sides, Stage, rate

DATA = {"step": "search", "passages": 16}
ENTRY = b'{"kind":"note","data":{"step":"search","passages":16},"time":1700000000.0}'
EMPTY = {"Nats-Expected-Last-Subject-Sequence": "0"}


@asynccontextmanager
async def windowed(stage: Stage) -> AsyncIterator[Sides]:
    """Many runs append, each entry a compare-and-set on an empty subject."""
    stream, jetstream, count = StreamJournal(), stage.jetstream(), stage.count(4000)
    stream.attach(stage.bus)

    async def ours() -> float:
        runs = [RunJournal("bench", stage.bus.new_id(), stream) for _ in range(WINDOW)]
        return await rate(count, lambda number: runs[number % WINDOW].append("note", DATA), callers=WINDOW)

    async def raw() -> float:
        run = stage.bus.new_id()
        began = time.perf_counter()
        for number in range(count):
            await jetstream.publish_async(f"raw.journal.{run}.{number}", ENTRY, headers=EMPTY)
        await jetstream.publish_async_completed()
        return count / (time.perf_counter() - began)

    yield Sides(ours, raw)


ROWS = [Row("journal append, windowed", "/s", 0.85, windowed)]
