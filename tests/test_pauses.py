"""Sleeping runs hold no process: they go on when their time has come, wherever their agent then runs."""

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from natterjack import Agent, AgentProcess, AgentRuntime, Entry, Event, EventTrigger, RunContext, RunFailedError
from natterjack.bus import Bus
from natterjack.dead import dead_letters
from natterjack.errors import BrokerError
from natterjack.testing import NatsServer, ScriptedClock, until
from natterjack.testing.agents import CountingAgent
from natterjack.testing.parked import until_parked, waiting

pytestmark = pytest.mark.usefixtures("leave_at_once")


def team(server: NatsServer, sleeper: Agent, **settings: Any) -> AgentRuntime:
    runtime = AgentRuntime(server.url)
    settings = {"triggers": [EventTrigger("nap")], "retry_delay": 0.05, **settings}
    runtime.add_process(AgentProcess("sleeper", agent=sleeper, **settings))
    return runtime


async def entries(runtime: AgentRuntime, **only: Any) -> list[Entry]:
    return [entry async for entry in runtime.journal.entries("sleeper", **only)]


def napping(seconds: float) -> CountingAgent:
    async def work(event: Event, ctx: RunContext) -> Any:
        first = await ctx.step("first", sleeper.do, "first")
        await ctx.sleep(seconds)
        return [first, await ctx.step("second", sleeper.do, "second")]

    sleeper = CountingAgent(work)
    return sleeper


async def test_a_short_sleep_is_waited_out(own_server: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.pauses.SHORT", 1.0)
    sleeper = napping(0.2)
    async with team(own_server, sleeper) as runtime:
        began = time.monotonic()
        run = await runtime.inject_event("sleeper", {"type": "nap"})
        assert await run.result(10) == ["first", "second"]
        assert time.monotonic() - began >= 0.2
        assert [entry.kind for entry in await entries(runtime)] == ["begun", "step", "sleep", "step", "done"]
        assert await waiting(bus) == 0
    assert sleeper.did == {"handled": 1, "first": 1, "second": 1}


async def test_a_longer_sleep_holds_no_process(own_server: NatsServer, bus: Bus) -> None:
    sleeper = napping(2)
    began = time.time()
    async with team(own_server, sleeper) as runtime:
        await runtime.inject_event("sleeper", {"type": "nap"})
        await until_parked(bus, "sleeper")
        assert (await bus.api("CONSUMER.INFO.INBOX.sleeper=inbox"))["num_ack_pending"] == 0
    assert sleeper.did == {"handled": 1, "first": 1}
    async with team(own_server, sleeper) as runtime:  # another process
        found = await until_done(runtime)
    kinds = [entry.kind for entry in found]
    assert kinds == ["begun", "step", "sleep", "started", "step", "done"]
    assert found[-2].time >= found[2].data["until"] >= began + 2
    assert found[-1].data["result"] == ["first", "second"]
    assert sleeper.did == {"handled": 2, "first": 1, "second": 1}
    assert await waiting(bus) == 0


async def until_done(runtime: AgentRuntime) -> list[Entry]:
    async def done() -> list[Entry]:
        try:
            found = await entries(runtime)
        except BrokerError:  # it was killed
            return []
        return found if found and found[-1].kind == "done" else []

    return await until(done, 20)


async def test_a_killed_broker_brings_sleepers_back(own_server: NatsServer, bus: Bus) -> None:
    sleeper = napping(3)
    async with team(own_server, sleeper) as runtime:
        await runtime.event_bus.emit("nap")
        await until_parked(bus, "sleeper")
        await shorten_ack_wait(bus)
        own_server.kill()
        own_server.start()
        await bus.until_connected(10)
        await until_done(runtime)
    assert sleeper.did == {"handled": 2, "first": 1, "second": 1}


async def shorten_ack_wait(bus: Bus) -> None:
    """A server that was killed forgets how long to wait, and brings a ticket back as if its holder had died."""
    config = (await bus.api("CONSUMER.INFO.WAKES.sleeper=wake"))["config"] | {"ack_wait": 10**9}
    await bus.api("CONSUMER.DURABLE.CREATE.WAKES.sleeper=wake", {"stream_name": "WAKES", "config": config})


async def test_many_sleep_in_one_slot(own_server: NatsServer, bus: Bus) -> None:
    sleeper = napping(2)
    async with team(own_server, sleeper, concurrency=1) as runtime:
        for _ in range(20):
            await runtime.event_bus.emit("nap")
        await until_parked(bus, "sleeper", 20)

        async def over() -> bool:
            return len(await entries(runtime, kind="done")) == 20

        await until(over, 20)
    assert sleeper.did == {"handled": 40, "first": 20, "second": 20}


async def test_sleeps_beside_one_another_and_beside_steps(own_server: NatsServer, bus: Bus) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        async def branch(name: str, seconds: float) -> str:
            await ctx.sleep(seconds)
            await ctx.step(f"{name} is up", sleeper.do, name)
            await ctx.sleep(1.5)
            return name

        async def busy() -> None:
            for n in range(5):
                await ctx.step(f"busy {n}", asyncio.sleep, 0.1)
                sleeper.do("busy")

        return (await asyncio.gather(branch("a", 1.5), branch("b", 3), busy()))[:2]

    sleeper = CountingAgent(work)
    async with team(own_server, sleeper) as runtime:
        run = await runtime.inject_event("sleeper", {"type": "nap"})
        assert await run.result(20) == ["a", "b"]
        kinds = Counter(entry.kind for entry in await entries(runtime))
    assert (kinds["step"], kinds["sleep"], kinds["begun"], kinds["done"]) == (7, 4, 1, 1)
    assert (sleeper.did["a"], sleeper.did["b"]) == (1, 1)
    assert sleeper.did["handled"] == 4
    assert await waiting(bus) == 0


async def test_a_handler_that_will_not_be_cancelled_sleeps_all_the_same(own_server: NatsServer, bus: Bus) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        try:
            await ctx.sleep(1.5)
        except BaseException:
            sleeper.do("woken rudely")
            return "not rested"
        finally:
            sleeper.do("cleaned up")
        return "rested"

    sleeper = CountingAgent(work)
    async with team(own_server, sleeper) as runtime:
        run = await runtime.inject_event("sleeper", {"type": "nap"})
        assert await run.result(20) == "rested"
    assert sleeper.did == {"handled": 2, "woken rudely": 1, "cleaned up": 2}


async def test_context_is_written_before_a_run_leaves(own_server: NatsServer, bus: Bus) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        ctx.shared.set("asleep", True)
        await ctx.sleep(60)

    async with team(own_server, CountingAgent(work)) as runtime:
        await runtime.event_bus.emit("nap")
        await until_parked(bus, "sleeper")
        assert await bus.last("KV_context", "$KV.context.asleep") is not None


async def test_what_fails_after_a_sleep_is_tried_again_and_dies_as_its_event(own_server: NatsServer, bus: Bus) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.sleep(1.2)
        sleeper.do(f"attempt {event.attempt}")
        raise ValueError("bad dream")

    sleeper = CountingAgent(work)
    async with team(own_server, sleeper, max_attempts=2) as runtime:
        sequence = await runtime.event_bus.emit("nap", {"n": 1})

        async def buried() -> Any:
            return await dead_letters(bus)

        async def none_waits() -> bool:
            return await waiting(bus) == 0

        (letter,) = await until(buried)
        await until(none_waits)
    assert (letter.stream, letter.sequence, letter.trigger) == ("EVENTS", sequence, "event-nap")
    assert (letter.type, letter.data, letter.cause) == ("nap", b'{"n":1}', "ValueError: bad dream")
    assert sleeper.did == {"handled": 3, "attempt 1": 1, "attempt 2": 1}


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 29 * 86_400])
async def test_a_time_that_cannot_be_slept_is_told(own_server: NatsServer, seconds: float) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.sleep(seconds)

    async with team(own_server, CountingAgent(work)) as runtime:
        run = await runtime.inject_event("sleeper", {"type": "nap"})
        with pytest.raises(RunFailedError, match=r"cannot sleep for|longer than 28 days after it began"):
            await run.result(20)


async def test_a_test_moves_the_time_of_a_sleeper(runtime: AgentRuntime, clock: ScriptedClock) -> None:
    runtime.add_process(AgentProcess("sleeper", agent=napping(3600)))
    async with runtime:
        run = await runtime.inject_event("sleeper", {"type": "nap"})
        await clock.advance(3600)
        assert await run.result(10) == ["first", "second"]


async def test_an_answer_just_sleeps(own_server: NatsServer, bus: Bus) -> None:
    class Slow(Agent):
        async def answer(self, question: str, ctx: RunContext) -> str:
            await ctx.sleep(1.3)
            return "yawn"

    async with team(own_server, Slow(), triggers=[]) as runtime:
        assert await runtime.ask_peer("sleeper", "hello?", timeout=10) == "yawn"
        assert await waiting(bus) == 0


async def test_the_next_of_a_key_begins_while_one_sleeps(own_server: NatsServer) -> None:
    order = list[str]()

    async def work(event: Event, ctx: RunContext) -> Any:
        order.append(f"{event.data['n']} begins")
        if event.data["n"] == 1:
            await ctx.sleep(1.5)
        order.append(f"{event.data['n']} ends")

    async with team(own_server, CountingAgent(work), ordered_by="key") as runtime:
        for n in (1, 2):
            await runtime.event_bus.emit("nap", {"n": n, "key": "same"})
        await until(lambda: order[-1:] == ["1 ends"])
    assert order == ["1 begins", "2 begins", "2 ends", "1 begins", "1 ends"]


async def test_a_sleeper_whose_journal_is_gone_is_a_dead_letter(own_server: NatsServer, bus: Bus) -> None:
    async with team(own_server, napping(2)) as runtime:
        await runtime.event_bus.emit("nap")
        await until_parked(bus, "sleeper")
        config = (await bus.api("STREAM.INFO.JOURNAL"))["config"]
        await bus.api("STREAM.UPDATE.JOURNAL", config | {"max_msgs": 1})  # as if it were full: the oldest entries go
        await runtime.event_bus.emit("nap", {"n": 2})
        await until(lambda: dead_letters(bus))
        letter = (await dead_letters(bus))[0]
    assert letter.cause == "its journal does not say any more what it began with"
