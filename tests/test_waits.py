"""Waiting for events: no process is held, nothing is missed, and each run is woken once."""

import asyncio
import time
from functools import partial
from typing import Any

import pytest

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    ConfigError,
    Entry,
    Event,
    EventTrigger,
    PatternError,
    RunContext,
    RunFailedError,
    WaitTimeoutError,
)
from natterjack.bus import Bus
from natterjack.testing import NatsServer, ScriptedClock, until
from natterjack.testing.agents import CountingAgent
from natterjack.testing.parked import until_parked, waiting

pytestmark = pytest.mark.usefixtures("leave_at_once")


class Waiter(CountingAgent):
    """Waits in its answer, too."""

    async def answer(self, question: str, ctx: RunContext) -> Any:
        return (await ctx.wait_for("paid", timeout=float(question))).data


def team(server: NatsServer, waiter: Agent, **settings: Any) -> AgentRuntime:
    runtime = AgentRuntime(server.url)
    settings = {"triggers": [EventTrigger("order")], "retry_delay": 0.05, "waits": ["paid", "other.*"], **settings}
    runtime.add_process(AgentProcess("waiter", agent=waiter, **settings))
    return runtime


async def entries(runtime: AgentRuntime, **only: Any) -> list[Entry]:
    return [entry async for entry in runtime.journal.entries("waiter", **only)]


async def results(runtime: AgentRuntime, count: int) -> list[Any]:
    async def done() -> list[Any]:
        found = [entry.data["result"] for entry in await entries(runtime, kind="done")]
        return found if len(found) == count else []

    return await until(done, 20)


def paying(**wait: Any) -> Waiter:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.step("order", lambda: waiter.did.update(["ordered"]))
        where = f"data.order == {event.data['order']}"
        paid = await ctx.wait_for("paid", **{"where": where, **wait})
        await ctx.step("ship", lambda: waiter.did.update(["shipped"]))
        return [event.data["order"], paid.data, paid.type, paid.source]

    waiter = Waiter(work)
    return waiter


async def nothing_pending(bus: Bus) -> bool:
    return bool((await bus.api("CONSUMER.INFO.EVENTS.waiter=event-order"))["num_ack_pending"] == 0)


async def test_a_run_waits_for_an_event_and_holds_no_process(own_server: NatsServer, bus: Bus) -> None:
    waiter = paying()
    async with team(own_server, waiter) as runtime:
        await runtime.event_bus.emit("order", {"order": 1})
        await until_parked(bus, "waiter")
        await until(partial(nothing_pending, bus))  # the ack is on its way when the run is parked
        await runtime.event_bus.emit("paid", {"order": 2})
    async with team(own_server, waiter) as runtime:
        assert waiter.did == {"handled": 1, "ordered": 1}
        await runtime.event_bus.emit("paid", {"order": 1, "by": "card"})
        assert await results(runtime, 1) == [[1, {"order": 1, "by": "card"}, "paid", "operator"]]
        found = await entries(runtime)
        assert await waiting(bus) == 0
    kinds = [entry.kind for entry in found]
    assert kinds == ["begun", "step", "waiting", "started", "waited", "step", "done"]
    assert found[2].data["where"] == "data.order == 1"
    assert found[4].data["event"]["sequence"] == 3
    assert waiter.did == {"handled": 2, "ordered": 1, "shipped": 1}


async def test_an_event_that_comes_while_nobody_runs_wakes_the_run_later(own_server: NatsServer, bus: Bus) -> None:
    waiter = paying()
    async with team(own_server, waiter) as runtime:
        await runtime.event_bus.emit("order", {"order": 1})
        await until_parked(bus, "waiter")
    await bus.store("events.paid", b'{"order": 1}')
    async with team(own_server, waiter) as runtime:
        assert (await results(runtime, 1))[0][0] == 1


async def test_what_came_before_the_wait_is_not_missed(own_server: NatsServer, bus: Bus) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await bus.store("events.paid", b'"while it was busy"')
        first = await ctx.wait_for("paid", timeout=5)
        await bus.store("events.paid", b'"the next"')
        second = await ctx.wait_for("paid", timeout=5)
        again = await ctx.wait_for("paid", timeout=5, after=first.sequence)
        anew = await ctx.wait_for("*", where='type == "paid"', after=event.sequence, timeout=5)
        return [first.data, second.data, again.data, anew.data]

    waiter = Waiter(work)
    await_none = team(own_server, waiter, waits=["*"])
    async with await_none as runtime:
        await bus.store("events.paid", b'"before the order"')
        await runtime.event_bus.emit("order")
        told = ["while it was busy", "the next", "the next", "while it was busy"]
        assert await results(runtime, 1) == [told]
        assert await waiting(bus) == 0
    assert waiter.did["handled"] == 1


async def test_a_run_from_elsewhere_waits_for_what_comes_after_its_first_emit(own_server: NatsServer, bus: Bus) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.emit("bill")
        await bus.store("events.paid", b'"at once"')
        return (await ctx.wait_for("paid", timeout=5)).data

    async with team(own_server, Waiter(work)) as runtime:
        await bus.store("events.paid", b'"before"')
        run = await runtime.inject_event("waiter", {"type": "order"})
        assert await run.result(10) == "at once"


async def test_time_that_runs_out_is_an_error_each_time(own_server: NatsServer, bus: Bus) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        try:
            await ctx.wait_for("paid", timeout=1.5)
        except WaitTimeoutError as error:
            waiter.did[str(error).partition(" ")[2].partition(" ")[2]] += 1
        if event.attempt < 2:
            raise ValueError("not now")
        await ctx.wait_for("other.thing", timeout=0.1)

    waiter = Waiter(work)
    async with team(own_server, waiter) as runtime:
        began = time.monotonic()
        run = await runtime.inject_event("waiter", {"type": "order"})
        with pytest.raises(RunFailedError, match=r"waited for 'other\.thing' in vain"):
            await run.result(20)
        assert time.monotonic() - began > 1.5
        assert [entry.data["event"] for entry in await entries(runtime, kind="waited")] == [None, None]
    assert waiter.did == {"handled": 4, "waited for 'paid' in vain: no such event came in time": 3}


async def test_each_of_many_runs_gets_its_own_event_once(own_server: NatsServer, bus: Bus) -> None:
    waiter = paying()
    async with team(own_server, waiter, concurrency=4) as runtime:
        for n in range(50):
            await runtime.event_bus.emit("order", {"order": n})
        await until_parked(bus, "waiter", 50)
        for n in [*range(50), *range(50)]:
            await runtime.event_bus.emit("paid", {"order": n})
        assert sorted(await results(runtime, 50)) == [[n, {"order": n}, "paid", "operator"] for n in range(50)]
        assert await waiting(bus) == 0
        assert len(await entries(runtime, kind="waited")) == 50
    assert waiter.did == {"handled": 100, "ordered": 50, "shipped": 50}


async def test_one_event_wakes_all_that_wait_for_it(own_server: NatsServer, bus: Bus) -> None:
    waiter = paying(where=None)
    async with team(own_server, waiter) as runtime:
        for n in range(20):
            await runtime.event_bus.emit("order", {"order": n})
        await until_parked(bus, "waiter", 20)
        await runtime.event_bus.emit("paid", "for all")
        assert sorted(await results(runtime, 20)) == [[n, "for all", "paid", "operator"] for n in range(20)]


async def test_events_that_race_with_the_wait(own_server: NatsServer, bus: Bus) -> None:
    """Each is emitted at a random moment around the wait, and none is missed, though no wait has a timeout."""
    waiter = paying()
    async with team(own_server, waiter) as runtime:

        async def pay(n: int) -> None:
            seen = asyncio.Event()
            bells.append(seen)
            for _ in range(n % 50):
                await asyncio.sleep(0)
            await runtime.event_bus.emit("order", {"order": n})
            for _ in range(n % 31):
                await bus.flush()
            await runtime.event_bus.emit("paid", {"order": n})

        bells = list[asyncio.Event]()
        await asyncio.gather(*(pay(n) for n in range(200)))
        assert sorted(each[0] for each in await results(runtime, 200)) == list(range(200))
        await until_parked(bus, "waiter", 0)
    assert (waiter.did["ordered"], waiter.did["shipped"]) == (200, 200)


async def test_the_first_of_several_waits_goes_on(own_server: NatsServer, bus: Bus) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        one, two = ctx.wait_for("paid"), ctx.wait_for("other.*", where='data == "this"')
        tasks = [asyncio.create_task(each) for each in (one, two)]
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        return sorted(task.result().type for task in done)

    waiter = Waiter(work)
    async with team(own_server, waiter) as runtime:
        await runtime.event_bus.emit("order")
        await until_parked(bus, "waiter")
        await runtime.event_bus.emit("other.thing", "that")
        await runtime.event_bus.emit("other.thing", "this")
        assert await results(runtime, 1) == [["other.thing"]]


async def test_an_answer_waits_in_its_process(own_server: NatsServer, bus: Bus) -> None:
    async with team(own_server, paying()) as runtime:
        await runtime.event_bus.emit("paid", "before")
        asking = asyncio.create_task(runtime.ask_peer("waiter", "10", timeout=10))

        async def waits() -> bool:
            return bool(await entries(runtime, kind="waiting"))

        await until(waits)
        await runtime.event_bus.emit("paid", "now")
        assert await asking == "now"
        assert await waiting(bus) == 0


async def test_what_was_not_declared_or_is_no_condition_is_told_at_the_call(own_server: NatsServer) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        told = list[str]()
        wrong: list[tuple[type[Exception], str, dict[str, Any]]] = [
            (ConfigError, "pade", {}),
            (ConfigError, "other.a.b", {}),
            (ConfigError, ">", {}),
            (PatternError, "paid..", {}),
            (ConfigError, "paid", {"where": "data.order = 1"}),
            (ConfigError, "paid", {"timeout": -1}),
        ]
        for error, kind, more in wrong:
            with pytest.raises(error) as found:
                await ctx.wait_for(kind, **more)
            told.append(str(found.value))
        return told

    async with team(own_server, Waiter(work)) as runtime:
        run = await runtime.inject_event("waiter", {"type": "order"})
        told = await run.result(10)
    assert told[0].startswith("'waiter' has not declared that it waits for 'pade'. Did you mean 'paid'?")
    assert "no valid condition" in told[4]
    assert "cannot wait for -1 seconds" in told[5]


async def test_a_test_lets_the_time_of_a_wait_run_out(runtime: AgentRuntime, clock: ScriptedClock) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        try:
            return (await ctx.wait_for("paid", timeout=3600)).data
        except WaitTimeoutError:
            return "never"

    runtime.add_process(AgentProcess("waiter", agent=Waiter(work), waits=["paid"]))
    async with runtime:
        run = await runtime.inject_event("waiter", {"type": "order"})
        await clock.advance(3600)
        assert await run.result(10) == "never"
        run = await runtime.inject_event("waiter", {"type": "order"})

        async def waits() -> bool:
            return len(await entries(runtime, kind="waiting")) == 2

        await until(waits)
        await runtime.event_bus.emit("paid", "now")
        assert await run.result(10) == "now"
