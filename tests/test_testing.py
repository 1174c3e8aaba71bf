"""What `natterjack.testing` gives: a clock that a test moves, an agent whose part it writes, a runtime."""

import asyncio
import time

import pytest

from natterjack import AgentProcess, AgentRuntime, Clock, EventTrigger, PeerError, Trigger, TriggerContext
from natterjack.testing import ScriptedAgent, ScriptedClock

HOUR = 3600.0


class Hourly(Trigger):
    """Fires every hour."""

    name = "hourly"

    async def run(self, ctx: TriggerContext) -> None:
        while True:
            await ctx.clock.sleep(HOUR)
            await ctx.fire(ctx.clock.now())


async def test_real_clock_is_the_time() -> None:
    clock = Clock()
    began = clock.now()
    await clock.sleep(0.01)
    assert 0.009 < clock.now() - began < 5
    assert abs(clock.now() - time.time()) < 5


async def test_a_trigger_of_hours_is_tested_at_once(runtime: AgentRuntime, clock: ScriptedClock) -> None:
    agent, began, real = ScriptedAgent(), clock.now(), time.monotonic()
    runtime.add_process(AgentProcess("sleeper", agent=agent, triggers=[Hourly()]))
    async with runtime:
        await clock.advance(2.5 * HOUR)
        fired = [event.data for event in await agent.handled(2)]
        assert sorted(fired) == [began + HOUR, began + 2 * HOUR]
        assert clock.now() == began + 2.5 * HOUR
        await clock.advance(0.5 * HOUR)
        assert len(await agent.handled(3)) == 3
    assert time.monotonic() - real < 20


async def test_clock_wakes_in_order_of_time() -> None:
    clock, woken = ScriptedClock(start=0), []

    async def nap(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((seconds, clock.now()))

    async with asyncio.TaskGroup() as group:
        for seconds in (3, 1, 2, 0):
            group.create_task(nap(seconds))
        await clock.advance(2)
        assert woken == [(0, 0), (1, 1), (2, 2)]
        await clock.advance(1)
    assert woken[-1] == (3, 3)


async def test_clock_says_when_nobody_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.testing.clock.PATIENCE", 0.02)
    with pytest.raises(AssertionError, match=r"does it await `ctx\.clock\.sleep`"):
        await ScriptedClock().advance(1)


async def test_clock_says_who_does_not_sleep_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.testing.clock.PATIENCE", 0.05)
    clock = ScriptedClock()

    async def sleep_once() -> None:
        await clock.sleep(1)
        await asyncio.Event().wait()

    sleeping = asyncio.create_task(sleep_once())
    with pytest.raises(AssertionError, match=r"sleep_once.* sleeps again"):
        await clock.advance(1)
    sleeping.cancel()


async def test_who_is_cancelled_sleeps_no_more() -> None:
    clock = ScriptedClock()
    sleeping = [asyncio.create_task(clock.sleep(seconds)) for seconds in (1, 2)]
    await asyncio.sleep(0)
    sleeping[0].cancel()
    await clock.advance(2)
    assert (sleeping[0].cancelled(), sleeping[1].done()) == (True, True)


async def test_agent_plays_its_script(runtime: AgentRuntime) -> None:
    async def later(question: str) -> str:
        await asyncio.sleep(0)
        return question.upper()

    agent = ScriptedAgent(results=[ValueError("not now"), lambda event: event.attempt], answers=["yes", later])
    due = [EventTrigger("work.due")]
    runtime.add_process(AgentProcess("worker", agent=agent, triggers=due, retry_delay=0.01))
    async with runtime:
        run = await runtime.inject_event("worker", {"type": "work"})
        assert await run.result(timeout=10) == 2
        assert [event.attempt for event in await agent.handled(2)] == [1, 2]
        assert [await runtime.ask_peer("worker", "a"), await runtime.ask_peer("worker", "b")] == ["yes", "B"]
        with pytest.raises(PeerError):
            await runtime.ask_peer("worker", "c")
        assert agent.questions == ["a", "b", "c"]
        assert [ctx.agent for ctx in agent.contexts] == ["worker"] * 5


async def test_agent_without_a_script_says_nothing(runtime: AgentRuntime) -> None:
    agent = ScriptedAgent()
    runtime.add_process(AgentProcess("worker", agent=agent))
    await runtime.start_all()  # the fixture stops it
    assert await runtime.ask_peer("worker", "a") == ""
    with pytest.raises(AssertionError, match="0 of 1 events came"):
        await agent.handled(timeout=0.01)
