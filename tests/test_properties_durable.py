"""Whatever a durable handler does, and wherever its attempts fail: each step is done once, with one result."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natterjack import Agent, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext
from natterjack.codec import HEADER, unpack
from natterjack.testing import NatsServer

LEAVES = st.sampled_from(["step", "emit", "emit in a step", "sleep", "yield"])
PROGRAMS = st.recursive(
    st.lists(LEAVES, max_size=4),
    lambda inner: st.lists(LEAVES | st.tuples(inner, inner).map(list), max_size=4),
    max_leaves=6,
)
"""A program is a list of what is done in turn; a pair of programs is done at once."""
FAILURES = st.sets(st.integers(0, 25), max_size=5)
"""Which of all the calls that a run's attempts make fail: before what they do, or behind it."""


class Interpreter(Agent):
    """Does the program that an event brings, and fails where that says."""

    def __init__(self) -> None:
        super().__init__()
        self.done: dict[str, Counter[str]] = {}
        self.calls: dict[str, int] = {}

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        self.done.setdefault(ctx.run_id, Counter())
        self.calls.setdefault(ctx.run_id, 0)
        return await self._do(event, ctx, event.data["program"], "")

    def _fail(self, event: Event, ctx: RunContext) -> None:
        self.calls[ctx.run_id] += 1
        if self.calls[ctx.run_id] in event.data["failures"]:
            raise OSError("not now")

    async def _do(self, event: Event, ctx: RunContext, program: list[Any], path: str) -> list[Any]:
        results = list[Any]()
        for index, what in enumerate(program):
            place = f"{path}.{index}"
            if isinstance(what, list):
                both = (self._do(event, ctx, each, f"{place}.{n}") for n, each in enumerate(what))
                results.append(await asyncio.gather(*both))
                continue
            self._fail(event, ctx)
            results.append(await self._leaf(event, ctx, what, place))
            self._fail(event, ctx)
        return results

    async def _leaf(self, event: Event, ctx: RunContext, what: str, place: str) -> Any:
        async def step() -> str:
            self._fail(event, ctx)
            await asyncio.sleep(0)
            if what == "emit in a step":
                await ctx.emit("told", place)
            self.done[ctx.run_id][place] += 1
            return place

        if what == "emit":
            return bool(await ctx.emit("told", place))
        if what == "sleep":
            return await ctx.sleep(0.001)
        if what == "yield":
            return await asyncio.sleep(0)
        return await ctx.step(what, step)


def expected(program: list[Any], path: str = "") -> list[Any]:
    """What a program returns."""
    results = list[Any]()
    for index, what in enumerate(program):
        place = f"{path}.{index}"
        if isinstance(what, list):
            results.append([expected(each, f"{place}.{n}") for n, each in enumerate(what)])
        else:
            results.append({"emit": True, "sleep": None, "yield": None}.get(what, place))
    return results


def places(program: list[Any], *kinds: str, path: str = "") -> list[str]:
    """Where a program does something of these kinds."""
    found = list[str]()
    for index, what in enumerate(program):
        place = f"{path}.{index}"
        if isinstance(what, list):
            found += [deep for n, each in enumerate(what) for deep in places(each, *kinds, path=f"{place}.{n}")]
        elif what in kinds:
            found.append(place)
    return found


class Team:
    """The interpreter, running."""

    def __init__(self, runtime: AgentRuntime, interpreter: Interpreter) -> None:
        self.runtime, self.interpreter = runtime, interpreter


@pytest_asyncio.fixture
async def team(own_server: NatsServer) -> AsyncIterator[Team]:
    runtime, interpreter = AgentRuntime(own_server.url), Interpreter()
    process = AgentProcess(
        "worker", agent=interpreter, triggers=[EventTrigger("work")], retry_delay=0.001, max_attempts=100
    )
    runtime.add_process(process)
    async with runtime:
        yield Team(runtime, interpreter)


@pytest.mark.parametrize("short", [1.0, 0.0])  # sleeps are waited out, or let the run leave its process
@given(program=PROGRAMS, failures=FAILURES)
@settings(max_examples=settings().max_examples // 3, suppress_health_check=list(HealthCheck))
async def test_a_run_that_fails_anywhere_does_each_step_once(
    team: Team, monkeypatch: pytest.MonkeyPatch, short: float, program: list[Any], failures: set[int]
) -> None:
    monkeypatch.setattr("natterjack.pauses.SHORT", short)
    monkeypatch.setattr("natterjack.pauses.GRACE", 0.01)
    runtime, interpreter = team.runtime, team.interpreter
    program = ["step", *program]  # what a run emits before it is durable, it may emit again
    event = {"type": "work", "program": program, "failures": sorted(failures)}
    run = await runtime.inject_event("worker", event)
    assert await run.result(30) == expected(program)
    assert interpreter.done[run.id] == Counter(places(program, "step", "emit in a step"))
    told = [each.data for each in [event async for event in runtime.event_bus.replay("told")] if run_of(each) == run.id]
    assert Counter(told) == Counter(places(program, "emit", "emit in a step"))


def run_of(event: Event) -> str:
    """The run that emitted an event."""
    return unpack(event.headers[HEADER]).run
