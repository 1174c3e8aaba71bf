"""Durable runs: what a step has finished is done once, in whatever order, however often its handler is repeated."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, ClassVar, NamedTuple

import pytest

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    ConfigError,
    Entry,
    Event,
    EventTrigger,
    PeerError,
    RunContext,
    RunFailedError,
    WaitTimeoutError,
)
from natterjack.bus import Bus
from natterjack.bus.rawclient import RawClient
from natterjack.codec import encode, id_in
from natterjack.dead import dead_letters
from natterjack.subjects import journal
from natterjack.testing import NatsServer, until
from natterjack.testing.agents import ScriptedAgent

Handle = Callable[[Event, RunContext], Awaitable[Any]]


class Worker(Agent):
    """Does what the test says, and counts what it did."""

    def __init__(self, work: Handle) -> None:
        super().__init__()
        self.work = work
        self.done = Counter[str]()

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        return await self.work(event, ctx)

    def do(self, what: str, result: Any = None) -> Any:
        self.done[what] += 1
        return what if result is None else result


def add(runtime: AgentRuntime, work: Handle, **settings: Any) -> Worker:
    worker = Worker(work)
    runtime.add_process(AgentProcess("worker", agent=worker, retry_delay=0.05, **settings))
    return worker


async def run(runtime: AgentRuntime, timeout: float = 20) -> Any:
    """What an event comes to that the worker is given."""
    started = await runtime.inject_event("worker", {"type": "work"})
    return await started.result(timeout)


async def entries(runtime: AgentRuntime, **only: Any) -> list[Entry]:
    return [entry async for entry in runtime.journal.entries("worker", **only)]


def kinds(found: list[Entry]) -> list[str]:
    return [entry.kind for entry in found]


async def test_what_a_step_has_finished_is_not_done_again(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        first = await ctx.step("first", worker.do, "first")
        second = await ctx.step("second", worker.do, "second", result=[first])
        if event.attempt < 3:
            raise ValueError("not now")
        return second

    worker = add(runtime, work)
    async with runtime:
        assert await run(runtime) == ["first"]
        found = await entries(runtime)
    assert worker.done == {"first": 1, "second": 1}
    assert kinds(found) == ["begun", "step", "step", "failed", "started", "failed", "started", "done"]
    step = found[1].data
    assert (step["position"], step["name"], step["result"]) == ("1", "first", "first")
    assert 0 <= step["seconds"] < 5


@pytest.mark.open_mode(reason="it is stored there without the name of its sender")
async def test_nothing_is_written_before_the_first_step_and_then_all_that_the_run_needs(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        if event.data["n"] == 1:
            await ctx.step("only", worker.do, "only")
        assert ctx.version == 1

    worker = add(runtime, work, triggers=[EventTrigger("job")])
    async with runtime:
        await runtime.event_bus.emit("job", {"n": 0})
        await runtime.event_bus.emit("job", {"n": 1})
        await until(lambda: worker.done)

        async def ended() -> list[Entry]:
            found = await entries(runtime)
            return found if kinds(found).count("done") == 2 else []

        found = await until(ended)
    assert Counter(kinds(found)) == {"begun": 1, "step": 1, "done": 2}
    (begun,) = [entry.data for entry in found if entry.kind == "begun"]
    assert len(bytes.fromhex(begun.pop("seed"))) == 16
    assert begun.pop("headers")["Natterjack"] == "s=operator"
    assert abs(begun.pop("stored") / 1e9 - time.time()) < 60
    assert begun == {
        "version": 1,
        "depth": 0,
        "trigger": "event-job",
        "subject": "stored.events.anyone.job",
        "payload": '{"n":1}',
        "stream": "EVENTS",
        "sequence": 2,
    }


async def test_steps_go_on_at_once_and_are_journaled_as_they_finish(runtime: AgentRuntime) -> None:
    second_is_done = asyncio.Event()

    async def slow() -> Any:
        await second_is_done.wait()
        return worker.do("slow")

    async def work(event: Event, ctx: RunContext) -> Any:
        both = ctx.step("slow", slow), ctx.step("fast", worker.do, "fast")
        waiting = asyncio.gather(*both)
        await until(lambda: worker.done["fast"])
        second_is_done.set()
        results = await waiting
        if event.attempt == 1:
            raise ValueError("not now")
        return results

    worker = add(runtime, work)
    async with runtime:
        assert await run(runtime) == ["slow", "fast"]
        steps = await entries(runtime, kind="step")
    assert [(step.data["name"], step.data["position"]) for step in steps] == [("fast", "2"), ("slow", "1")]
    assert worker.done == {"slow": 1, "fast": 1}


async def test_a_step_beside_one_that_fails_is_finished_first(runtime: AgentRuntime) -> None:
    failed = asyncio.Event()

    def fail() -> None:
        failed.set()
        raise ValueError("not now")

    async def dear() -> Any:
        await failed.wait()
        return worker.do("dear")

    async def work(event: Event, ctx: RunContext) -> Any:
        cheap = fail if event.attempt == 1 else lambda: "cheap"
        return await asyncio.gather(ctx.step("dear", dear), ctx.step("cheap", cheap))

    worker = add(runtime, work)
    async with runtime:
        assert await run(runtime) == ["dear", "cheap"]
        assert kinds(await entries(runtime)) == ["begun", "step", "failed", "started", "step", "done"]
    assert worker.done == {"dear": 1}


async def test_branches_are_counted_apart_whichever_comes_first(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        async def branch(name: str, wait_for: asyncio.Event, then: asyncio.Event) -> Any:
            first = await ctx.step("search", worker.do, f"{name}1")
            if event.attempt == 1:
                await wait_for.wait()
            second = await ctx.step("search", worker.do, f"{name}2")
            then.set()
            return [first, second]

        free, other, last = asyncio.Event(), asyncio.Event(), asyncio.Event()
        free.set()
        # The first time the second branch overtakes the first, and the second time it does not.
        found = await asyncio.gather(branch("a", other, last), branch("b", free, other))
        end = await ctx.step("end", worker.do, "end")
        if event.attempt == 1:
            raise ValueError("not now")
        return [*found, end]

    worker = add(runtime, work)
    async with runtime:
        assert await run(runtime) == [["a1", "a2"], ["b1", "b2"], "end"]
        steps = await entries(runtime, kind="step")
    assert [step.data["position"] for step in steps] == ["branch#1.1", "branch#2.1", "branch#2.2", "branch#1.2", "1"]
    assert set(worker.done.values()) == {1}


async def test_a_branch_is_its_own_though_others_fail_before_their_first_call(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        async def library() -> None: ...

        async def branch(name: str) -> Any:
            if name == "a" and event.attempt == 1:
                raise ValueError("not now")
            return await ctx.step("search", worker.do, name)

        tasks = [asyncio.create_task(branch("a"))]
        if event.attempt > 1:
            await asyncio.create_task(library())
        return await asyncio.gather(*tasks, branch("b"))

    worker = add(runtime, work)
    async with runtime:
        assert await run(runtime) == ["a", "b"]
        steps = await entries(runtime, kind="step")
    assert {step.data["result"]: step.data["position"] for step in steps} == {"a": "branch#1.1", "b": "branch#2.1"}


async def test_tasks_that_a_step_or_a_wait_starts_are_not_counted_with_the_handlers(runtime: AgentRuntime) -> None:
    async def search(what: str) -> str:
        await asyncio.sleep(0)
        return what

    async def search_both() -> list[str]:
        return list(await asyncio.gather(search("this"), search("that")))

    async def work(event: Event, ctx: RunContext) -> Any:
        async def search(what: str) -> Any:
            return await ctx.step("look", worker.do, what)

        async def wait(what: str) -> Any:  # called as what a wait starts
            return await ctx.step("look", worker.do, what)

        found = await ctx.step("both", search_both)
        with pytest.raises(WaitTimeoutError):
            await ctx.wait_for("never", timeout=0.2)
        found += await asyncio.gather(search("more"), wait("most"))
        if event.attempt < 3:
            raise ValueError("not now")
        return found

    worker = add(runtime, work, waits=["never"])
    async with runtime:
        assert await run(runtime) == ["this", "that", "more", "most"]
    assert worker.done == {"more": 1, "most": 1}


async def test_a_call_in_a_task_of_somebody_else_says_so(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        queue.put_nowait(ctx)
        return await replies.get()

    async def stranger() -> None:
        ctx = await queue.get()
        with pytest.raises(ConfigError) as refused:
            await ctx.step("search", worker.do, "x")
        replies.put_nowait([str(refused.value), await ctx.emit("told", "by a stranger")])

    queue, replies = asyncio.Queue[RunContext](), asyncio.Queue[Any]()
    worker = add(runtime, work)
    async with runtime, asyncio.TaskGroup() as group:
        group.create_task(stranger())
        text, sequence = await run(runtime)
    assert "step 'search' is called in a task that was not started by the handler" in text
    assert sequence > 0
    assert asyncio.get_running_loop().get_task_factory() is None


async def test_a_result_is_what_json_gives_back_both_times(runtime: AgentRuntime) -> None:
    seen = []

    async def work(event: Event, ctx: RunContext) -> Any:
        seen.append(await ctx.step("pair", lambda: {1: ("a", None)}))
        if event.attempt == 1:
            raise ValueError("not now")

    add(runtime, work)
    async with runtime:
        await run(runtime)
    assert seen == [{"1": ["a", None]}] * 2


async def test_a_large_result_goes_by_reference(runtime: AgentRuntime) -> None:
    text = "x" * 3_000_000

    async def work(event: Event, ctx: RunContext) -> Any:
        found = await ctx.step("large", worker.do, "large", text)
        if event.attempt == 1:
            raise ValueError("not now")
        return len(found)

    worker = add(runtime, work)
    async with runtime:
        assert await run(runtime) == len(text)
    assert worker.done == {"large": 1}


async def test_a_result_that_is_no_json_is_dead_at_once(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.step("odd", worker.do, "odd", object())

    worker = add(runtime, work)
    async with runtime:
        with pytest.raises(RunFailedError, match="the result of step 'odd' cannot be journaled: object cannot be sent"):
            await run(runtime)
    assert worker.done == {"odd": 1}


async def test_what_a_step_raises_fails_the_attempt_and_is_tried_again(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        async def fail() -> None:
            worker.do("tried")
            if event.attempt < 4:
                raise OSError("away")

        await ctx.step("first", worker.do, "first")
        await ctx.step("flaky", fail)

    worker = add(runtime, work)
    async with runtime:
        await run(runtime)
        failed = await entries(runtime, kind="failed")
    assert worker.done == {"first": 1, "tried": 4}
    assert [entry.data["cause"] for entry in failed] == ["OSError: away"] * 3


async def test_attempts_are_counted_from_where_the_run_last_made_progress(runtime: AgentRuntime) -> None:
    calls, seen = Counter[str](), list[int]()

    async def work(event: Event, ctx: RunContext) -> Any:
        seen.append(event.attempt)

        def flaky(name: str) -> None:
            calls[name] += 1
            if calls[name] < 3:
                raise OSError("away")

        for name in "abcde":
            await ctx.step(name, flaky, name)
        raise ValueError("never")

    add(runtime, work, max_attempts=3)
    async with runtime:
        with pytest.raises(RunFailedError, match="never"):
            await run(runtime)
    assert set(calls.values()) == {3}
    assert seen == list(range(1, 14))


# The order of calls


@pytest.mark.parametrize("then", ["step", "order"])
async def test_other_calls_than_those_journaled_are_an_error_that_is_not_tried_again(
    runtime: AgentRuntime, bus: Bus, then: str
) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        names = ["fetch", "store"]
        if event.attempt > 1:
            names = {"step": ["get", "store"], "order": ["store", "fetch"]}[then]
        for name in names:
            await ctx.step(name, worker.do, name)
        raise ValueError("not now")

    worker = add(runtime, work)
    async with runtime:
        with pytest.raises(RunFailedError) as failed:
            await run(runtime)
        (letter,) = await dead_letters(bus)
    called = {"step": "step 'get'", "order": "step 'store'"}[then]
    assert f"has journaled step 'fetch' as its call 1, and the handler calls {called} there now" in str(failed.value)
    assert "raise `version` of the agent's class" in letter.cause
    assert letter.attempts == 2
    assert worker.done == {"fetch": 1, "store": 1}


@pytest.mark.parametrize("then", ["ends", "goes on", "fails"])
async def test_a_handler_that_hides_that_it_makes_other_calls_changes_nothing(
    runtime: AgentRuntime, bus: Bus, then: str
) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        if event.attempt == 1:
            await ctx.step("fetch", worker.do, "fetch")
            raise ValueError("not now")
        with suppress(Exception):
            await ctx.step("get", worker.do, "get")
        if then == "goes on":
            await ctx.step("store", worker.do, "store")
        if then == "fails":
            raise ValueError("again")
        return "as if nothing were"

    worker = add(runtime, work)
    async with runtime:
        with pytest.raises(RunFailedError, match=r"journaled step 'fetch' as its call 1, .* step 'get' there now"):
            await run(runtime)
        assert len(await dead_letters(bus)) == 1
    assert worker.done == {"fetch": 1}


async def test_fewer_calls_than_those_journaled_are_an_error(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.step("fetch", worker.do, "fetch")
        if event.attempt == 1:
            await ctx.step("store", worker.do, "store")
            raise ValueError("not now")

    worker = add(runtime, work)
    async with runtime:
        with pytest.raises(
            RunFailedError, match=r"step 'store' as its call 2, and the handler calls nothing there now"
        ):
            await run(runtime)


async def test_a_task_that_a_handler_stops_may_have_got_further_before(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        async def poll() -> None:
            for number in range(100):
                await ctx.step("poll", worker.do, str(number))
                polled.set()

        polled = asyncio.Event()
        polling = asyncio.create_task(poll())
        if event.attempt == 1:
            await polled.wait()
        polling.cancel()
        await asyncio.wait([polling])
        await ctx.step("end", worker.do, "end")
        if event.attempt == 1:
            raise ValueError("not now")
        return "ended"

    worker = add(runtime, work)
    async with runtime:
        assert await run(runtime) == "ended"
    assert worker.done["0"] == worker.done["end"] == 1


async def test_an_answer_that_makes_other_calls_is_an_error(runtime: AgentRuntime) -> None:
    class Changed(Agent):
        seen = 0

        async def answer(self, question: str, ctx: RunContext) -> str:
            self.seen += 1
            if self.seen == 1:
                await ctx.step("fetch", lambda: None)
                raise ValueError("not now")
            return "as if nothing were"

    async def work(event: Event, ctx: RunContext) -> Any:
        return await ctx.step("ask", ctx.ask_peer, "changed", "how?")

    add(runtime, work, max_attempts=2)
    runtime.add_process(AgentProcess("changed", agent=Changed()))
    async with runtime:
        with pytest.raises(RunFailedError, match="NondeterminismError"):
            await run(runtime)


async def test_a_run_keeps_the_version_that_it_began_with(own_server: NatsServer) -> None:
    seen: list[tuple[int, int]] = []

    class Old(Agent):
        async def handle(self, event: Event, ctx: RunContext) -> Any:
            await ctx.step("fetch", lambda: None)
            seen.append((1, ctx.version))
            failed.set()
            raise ValueError("not now")

    class New(Agent):
        version: ClassVar[int] = 2

        async def handle(self, event: Event, ctx: RunContext) -> Any:
            if ctx.version >= 2:
                await ctx.step("look", lambda: None)
            await ctx.step("fetch", lambda: None)
            seen.append((2, ctx.version))

    failed = asyncio.Event()
    for agent in (Old(), New()):
        runtime = AgentRuntime(own_server.url)
        runtime.add_process(AgentProcess("worker", agent=agent, retry_delay=0.3))
        async with runtime:
            if isinstance(agent, Old):
                started = await runtime.inject_event("worker", {"type": "work"})
                await failed.wait()
                await until_failed(runtime, started.id)
            else:
                await until(lambda: seen[1:])
                await run(runtime)
    assert seen == [(1, 1), (2, 1), (2, 2)]


async def until_failed(runtime: AgentRuntime, run_id: str) -> None:
    async def has_failed() -> bool:
        return "failed" in kinds(await entries(runtime, run=run_id))

    await until(has_failed)


async def test_a_step_inside_a_step_is_an_error_that_says_so(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        async def outer() -> None:
            await ctx.step("inner", lambda: None)

        await ctx.step("outer", outer)

    add(runtime, work)
    async with runtime:
        with pytest.raises(RunFailedError, match="step 'inner' is inside the step at 1: a step is one piece"):
            await run(runtime)


@pytest.mark.parametrize("name", ["", None, 3])
async def test_a_step_needs_a_name(runtime: AgentRuntime, name: Any) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        with pytest.raises(ConfigError, match="is no name of a step"):
            await ctx.step(name, lambda: None)
        return "told"

    add(runtime, work)
    async with runtime:
        assert await run(runtime) == "told"


async def test_a_step_that_a_handler_leaves_behind_is_cancelled(runtime: AgentRuntime) -> None:
    begun, late = asyncio.Event(), list[BaseException]()

    async def forever() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def later(ctx: RunContext, step: Awaitable[Any]) -> None:
        try:
            await step
        finally:
            with pytest.raises(ConfigError, match="step 'more' comes too late") as error:
                await ctx.step("more", lambda: None)
            late.append(error.value)

    async def work(event: Event, ctx: RunContext) -> Any:
        tasks.append(asyncio.create_task(later(ctx, ctx.step("left", forever))))
        await begun.wait()
        return "gone"

    tasks: list[asyncio.Task[None]] = []
    add(runtime, work)
    async with runtime:
        assert await run(runtime) == "gone"
        await until(tasks[0].done)
    assert tasks[0].cancelled()
    assert len(late) == 1


# What is sent


async def test_what_was_sent_is_sent_once_however_late_it_is_repeated(runtime: AgentRuntime, bus: Bus) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        sent = [await ctx.emit("before"), await ctx.publish("topic", 1), await ctx.emit("before", 2)]
        sent.append(await ctx.step("inside", ctx.emit, "inside"))
        sent.append(await ctx.emit("after", id="mine"))
        sent.append(await ctx.step("more", lambda: None) or 0)
        await ctx.emit("open", event.attempt)
        if event.attempt < 3:
            raise ValueError("not now")
        return sent

    add(runtime, work)
    async with runtime:
        sent = await run(runtime)
        found = await entries(runtime)
        stored = [event async for event in runtime.event_bus.replay()]
        assert [event.type for event in stored] == ["before", "before", "inside", "after", "open"]
        assert [event.sequence for event in stored][:4] == [sent[0], sent[2], sent[3], sent[4]]
        assert stored[-1].data == 1
        state = (await bus.api("STREAM.INFO.MESSAGES"))["state"]
    assert state["messages"] == 1
    began, inside, more, failed = found[:4]
    assert [(note["verb"], note["what"]) for note in began.data["before"]] == [
        ("emit", "before"),
        ("publish", "topic"),
        ("emit", "before"),
    ]
    assert [note["what"] for note in inside.data["did"]] == ["inside"]
    assert [note["id"] for note in more.data["before"]] == ["mine"]
    assert [note["what"] for note in failed.data["before"]] == ["open"]
    ids = [id_in(event.headers) for event in stored]
    assert ids[2] == inside.data["did"][0]["id"]
    assert len(ids[2]) == 32


async def test_a_step_that_died_half_way_sends_again_under_the_same_id(runtime: AgentRuntime) -> None:
    calls = Counter[str]()

    async def work(event: Event, ctx: RunContext) -> Any:
        async def report() -> int:
            calls["report"] += 1
            first = await ctx.emit("report", calls["report"])
            second = await ctx.emit("report", "and more")
            if calls["report"] == 1:
                raise OSError("the step dies before it is journaled")
            return [first, second]  # type: ignore[return-value]

        return await ctx.step("report", report)

    add(runtime, work)
    async with runtime:
        sequences = await run(runtime)
        stored = [event async for event in runtime.event_bus.replay()]
    assert [event.sequence for event in stored] == sequences
    assert [event.data for event in stored] == [1, "and more"]


async def test_two_runs_never_send_under_one_id(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        await ctx.step("say", ctx.emit, "said")

    add(runtime, work)
    async with runtime:
        await run(runtime)
        await run(runtime)
        stored = [event async for event in runtime.event_bus.replay()]
    assert len({id_in(event.headers) for event in stored}) == 2


async def test_a_step_says_whom_it_asked(runtime: AgentRuntime) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        return await ctx.step("ask", ctx.ask_peer, "peer", "how?", timeout=5)

    add(runtime, work)
    runtime.add_process(AgentProcess("peer", agent=ScriptedAgent(answers="so")))
    async with runtime:
        assert await run(runtime) == "so"
        (step,) = await entries(runtime, kind="step")
    (asked,) = step.data["did"]
    assert (asked["verb"], asked["what"]) == ("ask", "peer")
    assert len(asked["run"]) == 30
    assert asked["seconds"] <= step.data["seconds"]


# Replicas and asks


async def test_another_replica_that_works_on_the_run_makes_this_one_stop(
    runtime: AgentRuntime, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        if event.attempt == 1 and not worker.done:
            worker.do("taken over")
            await ctx.step("first", lambda: None)
            await bus.store(f"journal.worker.{ctx.run_id}.3", b'{"kind":"started","data":{"attempt":2},"time":1}')
        await ctx.step("second", worker.do, "second")

    worker = add(runtime, work)
    caplog.set_level("INFO")
    async with runtime:
        started = await runtime.inject_event("worker", {"type": "work"})
        await until(lambda: "another replica of 'worker' works on run" in caplog.text)
        steps = await entries(runtime, run=started.id, kind="step")
    assert [step.data["name"] for step in steps] == ["first"]
    assert "ERROR" not in caplog.text


async def test_steps_of_an_answer_are_journaled_under_its_run(runtime: AgentRuntime) -> None:
    class Adder(Agent):
        async def answer(self, question: str, ctx: RunContext) -> Any:
            total = await ctx.step("add", lambda: 3)
            if question == "fail":
                raise ValueError("not today")
            return total

    runtime.add_process(AgentProcess("worker", agent=Adder()))
    async with runtime:
        answer = await runtime.ask_peer("worker", "how many?")
        found = await entries(runtime, run=answer.run_id)
        with pytest.raises(PeerError):
            await runtime.ask_peer("worker", "fail")
        failed = await entries(runtime, kind="failed")
    assert answer == "3"
    assert kinds(found) == ["begun", "step", "done"]
    assert (found[0].data["question"], found[0].data["caller"]) == ("how many?", "operator")
    assert found[2].data["result"] == "3"
    assert [entry.data["cause"] for entry in failed] == ["ValueError: not today"]


class Cost(NamedTuple):
    """What one attempt of a run took: messages that its process sent, and seconds of processor time."""

    messages: int
    seconds: float


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The subjects of all that this process publishes."""
    subjects = list[str]()

    def write(client: RawClient, subject: str, *args: Any, **more: Any) -> None:
        subjects.append(subject)
        write_out(client, subject, *args, **more)

    write_out = RawClient.write
    monkeypatch.setattr(RawClient, "write", write)
    return subjects


async def replayed(runtime: AgentRuntime, steps: int, sent: list[str]) -> tuple[Cost, Cost]:
    """What a run of so many steps took, and what its repetition took."""
    costs = list[Cost]()

    async def work(event: Event, ctx: RunContext) -> Any:
        before, began = len(sent), time.process_time()
        for start in range(0, steps, 100):
            names = range(start, start + 100)
            assert await asyncio.gather(*(ctx.step(str(n), worker.do, str(n), n) for n in names)) == list(names)
        costs.append(Cost(len(sent) - before, time.process_time() - began))
        if event.attempt == 1:
            raise ValueError("not now")

    worker = add(runtime, work)
    async with runtime:
        await run(runtime, timeout=50)
    assert set(worker.done.values()) == {1}
    first, again = costs
    return first, again


async def test_replaying_writes_nothing_again(runtime: AgentRuntime, sent: list[str]) -> None:
    first, again = await replayed(runtime, 2_000, sent)
    assert first.messages >= 2_000
    assert again.messages < 20, "what keeps a run alive may be among them"


@pytest.mark.full  # a time that only a quiet machine shows
async def test_ten_thousand_steps_are_replayed_at_once(runtime: AgentRuntime, sent: list[str]) -> None:
    first, again = await replayed(runtime, 10_000, sent)
    assert again.seconds < min(2.0, first.seconds / 2)  # measured 0.03 of it


@pytest.mark.parametrize("data", [{}, {"omitted": "gone"}, {"version": 1, "seed": "no hex"}, {"before": [1]}])
async def test_a_corrupt_beginning_strands_no_run(runtime: AgentRuntime, bus: Bus, data: dict[str, Any]) -> None:
    async def work(event: Event, ctx: RunContext) -> Any:
        if event.attempt == 1:
            await bus.store(journal("worker", ctx.run_id, 2), encode({"kind": "begun", "data": data, "time": 1}))
            raise ValueError("not now")
        return await ctx.step("only", worker.do, "only")

    worker = add(runtime, work)
    async with runtime:
        assert await run(runtime) == "only"
        assert kinds(await entries(runtime)) == ["begun", "failed", "started", "begun", "step", "done"]
