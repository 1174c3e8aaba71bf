"""Measuring: two sides of a row, run in turns, and the median of each."""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import nats
from nats.aio.client import Client
from nats.js import JetStreamContext

from natterjack import Agent, AgentProcess, AgentRuntime
from natterjack.bus import Bus
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.server import Server
from natterjack.team import Team
from natterjack.testing import NatsServer

Unit = Literal["/s", "µs"]
Side = Callable[[], Awaitable[float]]
"""Runs once and returns a rate or a latency."""

WINDOW = 256
"""Calls under way at once in the windowed rows."""
RAW_STREAM = "RAW"


@dataclass(frozen=True, slots=True)
class Stage:
    """Where all rows are measured: one server, provisioned, with two raw connections.

    Attributes:
        server: The server.
        bus: The operator's connection.
        raw: A connection of raw nats-py, as the caller.
        other: Another one, as the one that is called.
        share: Of the full count of calls: 1, or less for a quick look.
    """

    server: Server
    bus: Bus
    raw: Client
    other: Client
    share: float

    def count(self, full: int) -> int:
        """How many calls to make where a full run makes `full`."""
        return max(20, int(full * self.share))

    def jetstream(self) -> JetStreamContext:
        """Raw JetStream, with the window that our side has."""
        return self.raw.jetstream(publish_async_max_pending=WINDOW)

    @asynccontextmanager
    async def team(self, *processes: AgentProcess) -> AsyncIterator[AgentRuntime]:
        """Run agents in this process."""
        runtime = AgentRuntime(self.server, name="bench")
        for process in processes:
            runtime.add_process(process)
        async with runtime:
            yield runtime


@dataclass(frozen=True, slots=True)
class Sides:
    """The two sides of a row: the same work by the kernel and by raw nats-py."""

    ours: Side
    raw: Side


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result.

    Attributes:
        name: What is measured.
        unit: `/s`: more is better; `µs`: less is better.
        target: Ratio of ours to raw that is aimed at; for a rate the least, for a latency the most.
        prepare: Makes the two sides.
        floor: Where raw nats-py has nothing alike: the rate aimed at, in place of the ratio.
        beside: What the other side is.
        needs: Modules it needs beyond those of the kernel; without one of them, the row is left out.
    """

    name: str
    unit: Unit
    target: float
    prepare: Callable[[Stage], AbstractAsyncContextManager[Sides]]
    floor: float | None = None
    beside: str = "nats-py"
    needs: tuple[str, ...] = ()


def missing(row: Row) -> str:
    """Return the first module that a row needs and that is not installed, or an empty text."""
    return next((name for name in row.needs if not _is_installed(name)), "")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of its package
        return False


@dataclass(frozen=True, slots=True)
class Figure:
    """What a row measured: medians over the rounds."""

    row: str
    beside: str
    unit: Unit
    ours: float
    raw: float
    ratio: float
    target: float
    floor: float | None
    ok: bool


@asynccontextmanager
async def stage(share: float) -> AsyncIterator[Stage]:
    """Start a server of its own and connect to it."""
    with NatsServer() as process:
        server = Server(process.url)
        bus = await Bus.connect(server, principal="operator")
        raw, other = await nats.connect(process.url), await nats.connect(process.url)
        try:
            await provision(bus, Team(name="bench", agents={}), Plugins.load())
            await raw.jetstream().add_stream(name=RAW_STREAM, subjects=["raw.>"])
            yield Stage(server, bus, raw, other, share)
        finally:
            await raw.close()
            await other.close()
            await bus.close()


async def measure(rows: list[Row], *, quick: bool, step: Callable[[str], None]) -> list[Figure]:
    """Measure rows one after another.

    Args:
        rows: What to measure; those that need what is not installed are left out.
        quick: Few calls, few rounds: shows that it works, and the order of magnitude.
        step: Called with a row's name after each of its rounds.
    """
    figures = []
    async with stage(0.1 if quick else 1.0) as place:
        for row in (row for row in rows if not missing(row)):
            async with row.prepare(place) as sides:
                figures.append(await _run(row, sides, rounds(quick=quick), step))
    return figures


def rounds(*, quick: bool) -> int:
    """How often each row is run, after one round to warm up."""
    return 2 if quick else 5


async def _run(row: Row, sides: Sides, rounds: int, step: Callable[[str], None]) -> Figure:
    """Run both sides in turns, now one first and now the other; the first round only warms up."""
    ours: list[float] = []
    raw: list[float] = []
    for number in range(rounds + 1):
        for own in (True, False) if number % 2 else (False, True):
            (ours if own else raw).append(await (sides.ours if own else sides.raw)())
        step(row.name)
    mine, theirs = statistics.median(ours[1:]), statistics.median(raw[1:])
    ratio = mine / theirs
    reached = mine >= row.floor if row.floor else ratio >= row.target if row.unit == "/s" else ratio <= row.target
    return Figure(row.name, row.beside, row.unit, mine, theirs, ratio, row.target, row.floor, reached)


async def rate(count: int, call: Callable[[int], Awaitable[object]], *, callers: int) -> float:
    """Return calls per second of some callers who each wait for every call."""
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return count / (time.perf_counter() - began)


async def p50(count: int, once: Callable[[int], Awaitable[float | None]]) -> float:
    """Return the median of calls one after another, in microseconds.

    Args:
        count: How many.
        once: Makes a call; may return when it was done, on `time.perf_counter`, if that is before its return.
    """
    taken = []
    for number in range(count):
        began = time.perf_counter()
        done = await once(number)
        taken.append((done or time.perf_counter()) - began)
    return statistics.median(taken) * 1e6


class Watched(Agent):
    """Tells what it handles to whoever listens."""

    def __init__(self, on_event: Callable[[Any], Awaitable[None]]) -> None:
        super().__init__()
        self._on_event = on_event

    async def handle(self, event: Any, ctx: Any) -> None:
        """Tell."""
        await self._on_event(event)
