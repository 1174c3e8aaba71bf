"""An operator cancels runs, and lets runs go on: those that wait, that are dead, that were cancelled."""

import asyncio
from typing import Any

import pytest

from natterjack import AgentProcess, AgentRuntime, ConfigError, Entry, Event, RunContext, RunFailedError
from natterjack.bus import Bus
from natterjack.control import Runs
from natterjack.dead import dead_letters
from natterjack.testing import NatsServer, until
from natterjack.testing.agents import CountingAgent

pytestmark = pytest.mark.usefixtures("leave_at_once")


def team(server: NatsServer, worker: CountingAgent, **settings: Any) -> AgentRuntime:
    runtime = AgentRuntime(server.url)
    runtime.add_process(AgentProcess("worker", agent=worker, retry_delay=0.05, waits=["go"], **settings))
    return runtime


async def kinds(runtime: AgentRuntime) -> list[str]:
    return [entry.kind async for entry in runtime.journal.entries("worker")]


async def waiting(runs: Runs, count: int) -> None:
    async def so_many() -> bool:
        return len([ticket async for _, ticket in runs.waiting("worker") if ticket.due]) == count

    await until(so_many)


@pytest.fixture
def runs(bus: Bus) -> Runs:
    return Runs(bus)


async def test_a_run_that_goes_on_is_cancelled_where_it_is(own_server: NatsServer, bus: Bus, runs: Runs) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.step("first", lambda: None)
        try:
            await ctx.step("long", asyncio.Event().wait)
        finally:
            worker.did["cleaned up"] += 1

    worker = CountingAgent(work)
    async with team(own_server, worker) as runtime:
        run = await runtime.inject_event("worker", {"type": "work"})
        await until(lambda: worker.did["handled"])
        result = asyncio.create_task(run.result(10))

        async def stepped() -> bool:
            return "step" in await kinds(runtime)

        await until(stepped)
        await runs.cancel("worker", run.id, reason="it is too dear")
        with pytest.raises(RunFailedError, match="operator cancelled it: it is too dear"):
            await result

        async def acked() -> bool:
            info = await bus.api("CONSUMER.INFO.INBOX.worker=inbox")
            return bool(info["num_ack_pending"] == 0)

        await until(acked)
        assert await kinds(runtime) == ["begun", "step", "cancelled"]
        assert await dead_letters(bus) == []
        with pytest.raises(ConfigError, match=r"has ended \(cancelled\)"):
            await runs.cancel("worker", run.id)
    assert worker.did == {"handled": 1, "cleaned up": 1}


async def test_a_run_that_has_journaled_nothing_is_cancelled(own_server: NatsServer, bus: Bus, runs: Runs) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await asyncio.Event().wait()

    worker = CountingAgent(work)
    async with team(own_server, worker) as runtime:
        run = await runtime.inject_event("worker", {"type": "work"})
        await until(lambda: worker.did["handled"])
        await runs.cancel("worker", run.id)
        with pytest.raises(RunFailedError, match="operator cancelled it"):
            await run.result(10)


async def test_who_merely_claims_that_a_run_was_cancelled_changes_nothing(own_server: NatsServer, bus: Bus) -> None:
    go = asyncio.Event()

    async def work(event: Event, ctx: RunContext) -> Any:
        await go.wait()
        return "done"

    worker = CountingAgent(work)
    async with team(own_server, worker) as runtime:
        run = await runtime.inject_event("worker", {"type": "work"})
        await until(lambda: worker.did["handled"])
        await bus.publish(f"agents.cancel.worker.{run.id}")
        await bus.flush()
        go.set()
        assert await run.result(10) == "done"


async def test_a_run_that_waits_is_cancelled_and_its_ticket_is_gone(
    own_server: NatsServer, bus: Bus, runs: Runs
) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.wait_for("go")

    worker = CountingAgent(work)
    async with team(own_server, worker) as runtime:
        run = await runtime.inject_event("worker", {"type": "work"})
        await waiting(runs, 1)
        assert [(agent, ticket.run) async for agent, ticket in runs.waiting()] == [("worker", run.id)]
        await runs.cancel("worker", run.id)

        async def gone() -> bool:
            return not (await bus.api("STREAM.INFO.WAKES"))["state"]["messages"]

        await until(gone)
        await runtime.event_bus.emit("go")
    assert worker.did == {"handled": 1}


async def test_a_run_that_sleeps_looks_at_once_and_sleeps_on(own_server: NatsServer, bus: Bus, runs: Runs) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.sleep(3600)

    worker = CountingAgent(work)
    async with team(own_server, worker) as runtime:
        run = await runtime.inject_event("worker", {"type": "work"})
        await waiting(runs, 1)
        await runs.resume("worker", run.id)
        await until(lambda: worker.did["handled"] == 2)
        await waiting(runs, 1)
        assert await kinds(runtime) == ["begun", "sleep", "started", "interrupted"]


async def test_a_dead_run_goes_on_behind_what_it_has_finished(own_server: NatsServer, bus: Bus, runs: Runs) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.step("first", worker.did.update, ["first"])
        if not mended:
            raise ValueError("a bug")
        return [event.data["n"], event.attempt]

    mended, worker = list[bool](), CountingAgent(work)
    async with team(own_server, worker, max_attempts=2) as runtime:
        run = await runtime.inject_event("worker", {"type": "work", "n": 5})
        with pytest.raises(RunFailedError, match="a bug"):
            await run.result(10)
        mended.append(True)
        await runs.resume("worker", run.id)
        assert await run.result(10) == [5, 3]
        assert await dead_letters(bus) == []
        with pytest.raises(ConfigError, match="is done"):
            await runs.resume("worker", run.id)
        found = await kinds(runtime)
    assert found == ["begun", "step", "failed", "started", "dead", "resumed", "started", "done"]
    assert worker.did == {"handled": 3, "first": 1}


async def test_a_cancelled_run_goes_on(own_server: NatsServer, bus: Bus, runs: Runs) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        return (await ctx.wait_for("go")).data

    async with team(own_server, CountingAgent(work)) as runtime:
        run = await runtime.inject_event("worker", {"type": "work"})
        await waiting(runs, 1)
        await runs.cancel("worker", run.id)
        await waiting(runs, 0)
        await runtime.event_bus.emit("go", "now")
        await runs.resume("worker", run.id)
        assert await run.result(10) == "now"


async def test_what_cannot_go_on_is_told(own_server: NatsServer, bus: Bus, runs: Runs) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        if event.type == "step":
            await ctx.step("first", lambda: None)
            await asyncio.Event().wait()
        raise ValueError("no")

    worker = CountingAgent(work)
    async with team(own_server, worker, max_attempts=1) as runtime:
        dead = await runtime.inject_event("worker", {"type": "work"})
        with pytest.raises(RunFailedError):
            await dead.result(10)
        for run in (dead.id, "unknown"):
            with pytest.raises(ConfigError, match="has journaled no step, sleep or wait"):
                await runs.resume("worker", run)
        busy = await runtime.inject_event("worker", {"type": "step"})

        async def stepped() -> list[Entry]:
            return [entry async for entry in runtime.journal.entries("worker", kind="step")]

        await until(stepped)
        with pytest.raises(ConfigError, match="does not wait: it goes on"):
            await runs.resume("worker", busy.id)
        await runs.cancel("worker", busy.id)
