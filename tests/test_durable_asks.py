"""Asks of durable runs: one that is repeated is known, and its peer does not do its steps again."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from natterjack import Agent, AgentProcess, AgentRuntime, Entry, Event, PeerError, RunContext
from natterjack.bus import Bus
from natterjack.guards import Guards
from natterjack.messages import Envelope
from natterjack.peers import Peers
from natterjack.testing import ScriptedAgent, until

Handle = Callable[[Event, RunContext], Awaitable[Any]]


class Peer(Agent):
    """Answers in two steps, and counts them; the second fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__()
        self.done, self.failures, self.gate = Counter[str](), failures, asyncio.Event()
        self.gate.set()

    async def answer(self, question: str, ctx: RunContext) -> Any:
        await ctx.step("read", self.do, f"read {question}")
        await ctx.step("write", self.write, question)
        return f"{question} {self.done[f'write {question}']}"

    def do(self, what: str) -> None:
        self.done[what] += 1

    async def write(self, question: str) -> None:
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise ValueError("not now")
        self.do(f"write {question}")


class Asker(Agent):
    def __init__(self, work: Handle) -> None:
        super().__init__()
        self.work = work

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        return await self.work(event, ctx)


def add(runtime: AgentRuntime, peer: Agent, work: Handle) -> None:
    runtime.add_process(AgentProcess("asker", agent=Asker(work), retry_delay=0.05))
    runtime.add_process(AgentProcess("peer", agent=peer, concurrency=4))


async def run(runtime: AgentRuntime) -> Any:
    return await (await runtime.inject_event("asker", {"type": "work"})).result(20)


async def entries(runtime: AgentRuntime, **only: Any) -> list[Entry]:
    return [entry async for entry in runtime.journal.entries("peer", **only)]


def once(*questions: str) -> dict[str, int]:
    return {f"{verb} {question}": 1 for question in questions for verb in ("read", "write")}


async def chunks_of(ctx: RunContext) -> str:
    return "".join([chunk async for chunk in ctx.ask_stream("peer", "how?")])


async def told_by_all(ctx: RunContext) -> dict[str, str]:
    return {**await ctx.broadcast(["peer"], "how?")}


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda ctx: ctx.ask_peer("peer", "how?"), "how? 1"),
        (chunks_of, "how? 1"),
        (told_by_all, {"peer": "how? 1"}),
    ],
    ids=["ask_peer", "ask_stream", "broadcast"],
)
async def test_a_step_that_is_repeated_gets_the_answer_that_was_given(
    runtime: AgentRuntime, ask: Callable[[RunContext], Awaitable[Any]], answer: Any
) -> None:
    attempts = list[int]()

    async def work(event: Event, ctx: RunContext) -> Any:
        async def asks() -> Any:
            answered = await ask(ctx)
            attempts.append(event.attempt)
            if event.attempt < 3:
                raise ValueError("it dies before its step is journaled")
            return answered

        return await ctx.step("ask", asks)

    peer = Peer()
    add(runtime, peer, work)
    async with runtime:
        assert await run(runtime) == answer
        assert [entry.kind for entry in await entries(runtime)] == ["begun", "step", "step", "done"]
    assert attempts == [1, 2, 3]
    assert peer.done == once("how?")


async def test_an_answer_that_failed_goes_on_behind_what_it_had_finished(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        return await ctx.step("ask", ctx.ask_peer, "peer", "how?")

    peer = Peer(failures=2)
    add(runtime, peer, work)
    async with runtime:
        assert await run(runtime) == "how? 1"
        assert [entry.kind for entry in await entries(runtime)] == [
            *("begun", "step", "failed", "failed", "step", "done")
        ]
    assert peer.done == once("how?")


async def test_an_ask_between_steps_is_known_again_too(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.step("first", lambda: None)
        answer = await ctx.ask_peer("peer", "how?")
        if event.attempt == 1:
            raise ValueError("not now")
        return answer

    peer = Peer()
    add(runtime, peer, work)
    async with runtime:
        assert await run(runtime) == "how? 1"
    assert peer.done == once("how?")


async def test_each_ask_of_one_run_and_of_two_is_its_own(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        async def asks() -> list[str]:
            return [await ctx.ask_peer("peer", question) for question in ("how?", "how?", "why?")]

        return await ctx.step("ask", asks)

    peer = Peer()
    add(runtime, peer, work)
    async with runtime:
        assert await run(runtime) == ["how? 1", "how? 2", "why? 1"]
        assert await run(runtime) == ["how? 3", "how? 4", "why? 2"]
        assert len({entry.run for entry in await entries(runtime)}) == 6


async def test_an_ask_outside_of_durable_runs_has_no_journal(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        return [await ctx.ask_peer("peer", "how?") for _ in range(2)]

    add(runtime, ScriptedAgent(answers="so"), work)
    async with runtime:
        assert await run(runtime) == ["so", "so"]
        assert await entries(runtime) == []


@pytest.fixture
async def as_asker(bus: Bus) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Asks as an asker does that was killed and asks again: under one key, at the same time."""
    peers = Peers(bus, Guards([]))
    asks = set[asyncio.Task[Any]]()

    def ask() -> asyncio.Task[Any]:
        task = asyncio.create_task(peers.ask("peer", "how?", timeout=10, envelope=Envelope(key="5eed")))
        asks.add(task)
        return task

    yield ask
    await asyncio.gather(*asks, return_exceptions=True)


async def test_who_asks_again_while_the_answer_is_worked_on_waits_for_it(
    runtime: AgentRuntime, as_asker: Callable[[], Awaitable[str]]
) -> None:
    peer = Peer()
    peer.gate.clear()
    runtime.add_process(AgentProcess("peer", agent=peer, concurrency=4))
    async with runtime:
        first = as_asker()
        await until(lambda: peer.done["read how?"] == 1)
        second = as_asker()
        await until_waiting(runtime, 2)
        peer.gate.set()
        assert [await first, await second] == ["how? 1", "how? 1"]
    assert peer.done == once("how?")


async def until_waiting(runtime: AgentRuntime, number: int) -> None:
    async def busy() -> bool:
        return [agent.answering for agent in await runtime.agents()] == [number]

    await until(busy)


async def test_an_answer_that_another_replica_works_on_is_fetched_when_it_is_there(
    runtime: AgentRuntime, bus: Bus, as_asker: Callable[[], Awaitable[str]]
) -> None:
    class Overtaken(Peer):
        async def write(self, question: str) -> None:
            if not self.done["overtaken"]:
                self.do("overtaken")
                (read,) = await entries(runtime, kind="step")
                data = b'{"kind":"done","data":{"result":"from the other"},"time":1}'
                await bus.store(f"journal.peer.{read.run}.3", data)

    runtime.add_process(AgentProcess("peer", agent=Overtaken()))
    async with runtime:
        assert await as_asker() == "from the other"


async def test_an_answer_whose_run_was_cancelled_says_so(
    runtime: AgentRuntime, as_asker: Callable[[], Awaitable[str]]
) -> None:
    runtime.add_process(AgentProcess("peer", agent=Peer(failures=1)))
    async with runtime:
        with pytest.raises(PeerError):
            await as_asker()
        (failed,) = await entries(runtime, kind="failed")
        await runtime.runs.cancel("peer", failed.run)
        with pytest.raises(PeerError, match=f"run {failed.run} of 'peer', which was to answer this, was cancelled"):
            await as_asker()
