"""Delivery: attempts, backoff, deadlines, dead letters, loops and causality."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import nats
import pytest

from natterjack import Agent, AgentContext, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext
from natterjack.bus import Bus, Message
from natterjack.components import Entry
from natterjack.dead import DeadLetter, dead_letters
from natterjack.errors import (
    ConfigError,
    DisconnectedError,
    NatterjackError,
    PayloadError,
    RequestTimeoutError,
    RunFailedError,
)
from natterjack.events import authored
from natterjack.journal import StreamJournal
from natterjack.messages import run_id
from natterjack.middleware import Middleware
from natterjack.plugins import Plugins
from natterjack.testing import NatsServer, until

Handle = Callable[[Event, RunContext], Awaitable[Any]]
SETTING: ContextVar[str] = ContextVar("SETTING", default="none")


class Worker(Agent):
    """Does what a test says, and keeps what it got."""

    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self._handle = handle
        self.events: list[Event] = []

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        self.events.append(event)
        return await self._handle(event, ctx)

    async def answer(self, question: str, ctx: RunContext) -> str:
        return question


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "natterjack")


@asynccontextmanager
async def running(
    server: NatsServer, worker: Agent, *, patterns: tuple[str, ...] = ("job.>",), name: str = "worker", **settings: Any
) -> AsyncIterator[AgentRuntime]:
    settings = {"retry_delay": 0.01, "max_attempts": 3} | settings
    runtime = AgentRuntime(server.url)
    triggers = [EventTrigger(pattern) for pattern in patterns]
    runtime.add_process(AgentProcess(name=name, agent=worker, triggers=triggers, **settings))
    async with runtime:
        yield runtime


async def letters(bus: Bus, count: int) -> list[DeadLetter]:
    """Return the dead letters once there are so many."""

    async def enough() -> list[DeadLetter] | None:
        found = await dead_letters(bus)
        return found if len(found) >= count else None

    return await until(enough)  # type: ignore[arg-type]  # mypy cannot solve plain or async


async def settled(bus: Bus, stream: str = "EVENTS", durable: str = "worker=event-job+@@") -> None:
    """Wait until nothing is left for the worker."""

    async def empty() -> bool:
        info = await bus.api(f"CONSUMER.INFO.{stream}.{durable}")
        return (info["num_pending"], info["num_ack_pending"]) == (0, 0)

    await until(empty, 20)


async def give_back(bus: Bus, count: int) -> None:
    """Take so many messages from the worker's consumer, and hand them back."""
    taken = 0

    async def nak(message: Message) -> None:
        nonlocal taken
        if message.reply:
            taken += 1
            await bus.publish(message.reply, b"-NAK")

    inbox = f"_INBOX.{bus.principal}.pull"
    subscription = await bus.subscribe(inbox, nak)
    request = b'{"batch":%d}' % count
    await bus.publish(f"{bus.server.prefix}.CONSUMER.MSG.NEXT.EVENTS.worker=event-job+@@", request, reply=inbox)
    await until(lambda: taken >= count)
    await subscription.drain()


async def fine(_event: Event, _ctx: RunContext) -> str:
    return "fine"


# Attempts


async def test_attempts_back_off_and_end_dead(own_server: NatsServer, bus: Bus) -> None:
    times: list[float] = []

    async def fail(event: Event, _ctx: RunContext) -> None:
        times.append(time.monotonic())
        raise ValueError(f"no {event.attempt}")

    worker = Worker(fail)
    async with running(own_server, worker, retry_delay=0.1) as runtime:
        sequence = await runtime.event_bus.emit("job.a", {"n": 1})
        (letter,) = await letters(bus, 1)
        assert [event.attempt for event in worker.events] == [1, 2, 3]
        assert times[1] - times[0] > 0.09
        assert times[2] - times[1] > 0.19
        assert letter.cause == "ValueError: no 3"
        assert letter.data == b'{"n":1}'
        assert (letter.agent, letter.trigger, letter.attempts) == ("worker", "event-job+@@", 3)
        assert (letter.stream, letter.sequence, letter.type) == ("EVENTS", sequence, "job.a")
        await settled(bus)


class LaterError(NatterjackError):
    """Knows when it is worth another try."""

    retry_after = 0.3


async def test_a_failure_may_say_how_long_to_wait(own_server: NatsServer) -> None:
    times: list[float] = []

    async def fail_once(event: Event, _ctx: RunContext) -> None:
        times.append(time.monotonic())
        if event.attempt == 1:
            raise LaterError("not yet")

    async with running(own_server, Worker(fail_once), retry_delay=0.01) as runtime:
        await runtime.event_bus.emit("job.a")
        await until(lambda: len(times) == 2)
    assert times[1] - times[0] > 0.29


async def test_a_later_attempt_succeeds(own_server: NatsServer, bus: Bus) -> None:
    async def second(event: Event, _ctx: RunContext) -> str:
        if event.attempt == 1:
            raise ValueError("not yet")
        return "done"

    worker = Worker(second)
    async with running(own_server, worker) as runtime:
        await runtime.event_bus.emit("job.a")
        await until(lambda: len(worker.events) == 2)
        await settled(bus)
    assert await dead_letters(bus) == []


@pytest.mark.parametrize("error", [ConfigError("wrong"), SystemExit(3), asyncio.CancelledError()])
async def test_what_cannot_help_again_and_what_is_no_ordinary_error(
    own_server: NatsServer, bus: Bus, error: BaseException
) -> None:
    async def fail(event: Event, _ctx: RunContext) -> str:
        if event.type == "job.bad":
            raise error
        return "fine"

    worker = Worker(fail)
    async with running(own_server, worker) as runtime:
        await runtime.event_bus.emit("job.bad")
        await runtime.event_bus.emit("job.good")
        (letter,) = await letters(bus, 1)
        assert letter.cause.startswith(type(error).__name__)
        assert letter.attempts == (1 if isinstance(error, ConfigError) else 3)
        await settled(bus)


class MuteError(Exception):
    def __str__(self) -> str:
        raise LookupError


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (MuteError(), "MuteError: it cannot say what is wrong (LookupError)"),
        (ValueError("\ud800"), "ValueError: ?"),
        (ValueError("x" * 2_000_000), "ValueError: " + "x" * 1988),
    ],
)
async def test_an_error_that_cannot_be_told_as_it_is_is_told_once(
    own_server: NatsServer, bus: Bus, error: Exception, cause: str
) -> None:
    async def fail(_event: Event, _ctx: RunContext) -> None:
        raise error

    worker = Worker(fail)
    async with running(own_server, worker, max_attempts=2) as runtime:
        run = await runtime.inject_event("worker", {"type": "x"})
        with pytest.raises(RunFailedError):
            await run.result(5)
        await settled(bus, "INBOX", "worker=inbox")
    (letter,) = await dead_letters(bus)
    assert (letter.cause, letter.attempts, len(worker.events)) == (cause, 2, 2)


async def test_a_broker_error_is_no_attempt(own_server: NatsServer, bus: Bus) -> None:
    async def away(event: Event, _ctx: RunContext) -> str:
        assert event.attempt == 1
        if len(worker.events) < 8:
            raise DisconnectedError("away")
        return "fine"

    worker = Worker(away)
    async with running(own_server, worker, max_attempts=2) as runtime:
        run = await runtime.inject_event("worker", {"type": "x"})
        assert await run.result(10) == "fine"
    assert len(worker.events) == 8
    assert await dead_letters(bus) == []


async def test_a_request_that_the_server_never_takes_is_an_attempt(own_server: NatsServer, bus: Bus) -> None:
    async def too_large(_event: Event, ctx: RunContext) -> None:
        await ctx.publish("large", "x" * 2000)

    worker = Worker(too_large)
    async with running(own_server, worker, max_attempts=2) as runtime:
        config = (await bus.api("STREAM.INFO.MESSAGES"))["config"]
        await bus.api("STREAM.UPDATE.MESSAGES", config | {"max_msg_size": 1000})
        await runtime.event_bus.emit("job.a")
        (letter,) = await letters(bus, 1)
        await settled(bus)
    assert "message size exceeds maximum" in letter.cause
    assert (letter.attempts, len(worker.events)) == (2, 2)


async def test_a_stream_that_is_full_for_a_while_is_no_attempt(own_server: NatsServer, bus: Bus) -> None:
    async def publish(_event: Event, ctx: RunContext) -> str:
        await ctx.publish("more")
        return "fine"

    worker = Worker(publish)
    async with running(own_server, worker, max_attempts=2) as runtime:
        config = (await bus.api("STREAM.INFO.MESSAGES"))["config"]
        await runtime.event_bus.publish("full")
        await bus.api("STREAM.UPDATE.MESSAGES", config | {"max_msgs": 1})
        run = await runtime.inject_event("worker", {"type": "x"})
        await until(lambda: len(worker.events) > 4)
        await bus.api("STREAM.UPDATE.MESSAGES", config)
        assert await run.result(10) == "fine"
    assert await dead_letters(bus) == []


async def test_a_handler_that_hangs_ends_at_its_deadline(own_server: NatsServer, bus: Bus) -> None:
    async def hang(event: Event, ctx: RunContext) -> str:
        if event.type == "job.hang":
            assert 0 < ctx.deadline - time.time() <= 0.1
            await asyncio.Event().wait()
        return "fine"

    worker = Worker(hang)
    async with running(own_server, worker, timeout=0.1, max_attempts=2, concurrency=1) as runtime:
        await runtime.event_bus.emit("job.hang")
        await runtime.event_bus.emit("job.good")
        (letter,) = await letters(bus, 1)
        assert letter.cause == "TimeoutError: it did not end within 0.1 s"
        await settled(bus)


async def test_a_drain_is_no_attempt(own_server: NatsServer, bus: Bus) -> None:
    """Stopped ten times in the middle of an event, the agent still handles it as if for the first time."""
    started = asyncio.Event()

    async def hang(event: Event, _ctx: RunContext) -> str:
        assert event.attempt == 1
        started.set()
        if len(worker.events) < 6:
            await asyncio.Event().wait()
        return "fine"

    worker = Worker(hang)
    for _ in range(5):
        started.clear()
        async with running(own_server, worker, max_attempts=2) as runtime:
            if not worker.events:
                await runtime.event_bus.emit("job.a")
            await asyncio.wait_for(started.wait(), 3)  # at once, not after the ack wait
            await runtime.stop_all(0)
    async with running(own_server, worker, max_attempts=2):
        await until(lambda: len(worker.events) == 6)
        await settled(bus)
    assert await dead_letters(bus) == []


async def test_a_drain_waits_for_what_runs(own_server: NatsServer, bus: Bus) -> None:
    gate, started = asyncio.Event(), asyncio.Event()

    async def wait(_event: Event, _ctx: RunContext) -> str:
        started.set()
        await gate.wait()
        return "fine"

    worker = Worker(wait)
    async with running(own_server, worker) as runtime:
        await runtime.event_bus.emit("job.a")
        await started.wait()
        stopping = asyncio.create_task(runtime.stop_all(5))
        await asyncio.sleep(0)
        gate.set()
        await stopping
    await settled(bus)
    assert len(worker.events) == 1


async def test_redeliveries_without_a_start_are_no_attempts(own_server: NatsServer, bus: Bus) -> None:
    """[R2] Counted as attempts, they once stranded 470 of 1,000 events that nobody had run."""
    seen: Counter[int] = Counter()

    async def count(event: Event, _ctx: RunContext) -> None:
        assert event.attempt == 1
        seen[event.data] += 1

    worker = Worker(count)
    async with running(own_server, worker):
        pass  # provisions the consumer
    emitting = (bus.store("events.job.n", b"%d" % n) for n in range(1000))
    await asyncio.gather(*emitting)
    for _ in range(4):
        await give_back(bus, 1000)
    async with running(own_server, worker, max_attempts=2):
        await until(lambda: len(seen) == 1000, 20)
        await settled(bus)
    assert await dead_letters(bus) == []
    assert max(seen.values()) == 1


# Poison

POISON: dict[str, tuple[bytes, dict[str, str], str]] = {
    "not utf-8": (b"\xff\xfe", {}, "not UTF-8"),
    "nested": (b"[" * 70 + b"]" * 70, {}, "nests deeper than 64"),
    "bomb": (b"[" * 500_000, {}, "nests deeper than 64"),
    "too deep a chain": (b"1", {"Natterjack": "d=999"}, "looks like a loop"),
    "no number": (b"1", {"Natterjack": "d=x"}, "is malformed"),
    "negative": (b"1", {"Natterjack": "d=-1"}, "is malformed"),
    "huge number": (b"1", {"Natterjack": "r=" + "9" * 30}, "is malformed"),
    "many digits": (b"1", {"Natterjack": "d=" + "9" * 10_000}, "is malformed"),
    "not a number": (b"1", {"Natterjack": "t=nan"}, "is malformed"),
}
HARMLESS: dict[str, tuple[bytes, dict[str, str]]] = {
    "long": (b"1", {"Natterjack": "s=" + "x" * 10_000}),
    "junk": (b"1", {"Natterjack": ";;=;=x;unknown=1"}),
    "future revision": (b"1", {"Natterjack": "r=9223372036854775807"}),
    "status": (b"1", {"Status": "503"}),
    "large": (b'"' + b"x" * 1_000_000 + b'"', {}),
    "delivered": (b"1", {"Nats-Sequence": "x", "Nats-Subject": "a", "Nats-Time-Stamp": "x"}),
}


async def test_poison_ends_dead_with_its_cause_and_the_rest_gets_through(own_server: NatsServer, bus: Bus) -> None:
    worker = Worker(fine)
    async with running(own_server, worker, concurrency=4) as runtime:
        client = await nats.connect(own_server.url)
        for payload, headers, _ in POISON.values():
            await client.publish("events.job.poison", payload, headers=headers)
        for payload, headers in HARMLESS.values():
            await client.publish("events.job.fine", payload, headers=headers)
        line = b"NATS/1.0 \xff\xff\xff\r\n\r\n"
        await client._send_command(b"HPUB events.job.fine %d %d\r\n%s1\r\n" % (len(line), len(line) + 1, line))
        await client.flush()
        await runtime.event_bus.emit("job.last")
        found = await letters(bus, len(POISON))
        await until(lambda: len(worker.events) == len(HARMLESS) + 2)
        await settled(bus)
        await client.close()
    found.sort(key=lambda letter: letter.sequence)
    for letter, (name, (payload, _, reason)) in zip(found, POISON.items(), strict=True):
        assert reason in letter.cause, name
        assert letter.data == payload
    assert sorted(event.type for event in worker.events) == ["job.fine"] * (len(HARMLESS) + 1) + ["job.last"]


async def test_a_payload_as_large_as_the_server_takes(own_server: NatsServer, bus: Bus) -> None:
    """There is no room for the cause beside it: the letter refers to the original."""
    async with running(own_server, Worker(fine)):
        client = await nats.connect(own_server.url)
        await client.publish("events.job.large", b"\xff" * client.max_payload)
        (letter,) = await letters(bus, 1)
        assert (letter.data, letter.size) == (b"", client.max_payload)
        assert "not UTF-8" in letter.cause
        await settled(bus)
        await client.close()


# Results


async def test_a_large_result_is_kept_whole(own_server: NatsServer) -> None:
    large = "x" * 2_000_000

    async def give(_event: Event, _ctx: RunContext) -> object:
        return large

    async with running(own_server, Worker(give)) as runtime:
        first = await runtime.inject_event("worker", {"type": "x"})
        assert await first.result(10) == large  # told by the live copy, or
        assert await first.result(10) == large  # by what is stored


@pytest.mark.parametrize("result", [object(), "x" * 70_000_000])
async def test_a_result_that_cannot_be_kept_ends_the_run_all_the_same(
    own_server: NatsServer, bus: Bus, result: object
) -> None:
    async def give(_event: Event, _ctx: RunContext) -> object:
        return result

    worker = Worker(give)
    async with running(own_server, worker) as runtime:
        run = await runtime.inject_event("worker", {"type": "x"})
        with pytest.raises(PayloadError, match="done, but its result could not be kept"):
            await run.result(5)
        await settled(bus, "INBOX", "worker=inbox")
        journal = StreamJournal()
        journal.attach(bus)
        (entry,) = await journal.read("worker", run.id)
        assert "cannot be sent" in entry.data["omitted"] or "is larger than" in entry.data["omitted"]
    assert len(worker.events) == 1


async def test_results_as_an_event(own_server: NatsServer, bus: Bus) -> None:
    async def give(event: Event, _ctx: RunContext) -> Any:
        return {"was": event.data}

    served = running(own_server, Worker(give), result_event="job-done")
    async with served as runtime, runtime.event_bus.subscribe("job-done") as live:
        await runtime.event_bus.emit("job.a", 17)
        event = await asyncio.wait_for(anext(live), 5)
    assert (event.data, event.source) == ({"was": 17}, "worker")


async def test_run_results(own_server: NatsServer) -> None:
    gate = asyncio.Event()

    async def answer(event: Event, _ctx: RunContext) -> Any:
        if event.type == "fail":
            raise ConfigError("never")
        if event.type == "slow":
            await gate.wait()
        return event.data["n"]

    async with running(own_server, Worker(answer)) as runtime:
        run = await runtime.inject_event("worker", {"type": "quick", "n": 1})
        assert await run.result(5) == 1
        assert await run.result(0.5) == 1  # finished already

        failed = await runtime.inject_event("worker", {"type": "fail"})
        with pytest.raises(RunFailedError, match="ConfigError: never"):
            await failed.result(5)

        slow = await runtime.inject_event("worker", {"type": "slow", "n": 2})
        with pytest.raises(RequestTimeoutError):
            await slow.result(0.05)
        gate.set()
        assert await slow.result(5) == 2


async def test_a_result_is_awaited_several_times_and_over_a_restart(own_server: NatsServer, bus: Bus) -> None:
    over = asyncio.Event()

    async def wait(_event: Event, ctx: RunContext) -> None:
        await over.wait()

    async with running(own_server, Worker(wait)) as runtime:
        run = await runtime.inject_event("worker", {"type": "slow"})
        results = [asyncio.create_task(run.result(20)) for _ in range(3)]
        await until(lambda: len(runtime.event_bus._bus._on_slow) == 3)  # one for each
        journal = StreamJournal()
        journal.attach(bus)
        config = (await bus.api("STREAM.INFO.JOURNAL"))["config"]
        del config["republish"]
        await bus.api("STREAM.UPDATE.JOURNAL", config)  # the live copy is lost, as in a reconnect
        await journal.write(Entry("worker", run.id, 1, "done", {"result": 7}, 0.0))
        own_server.kill()
        own_server.start()
        assert await asyncio.gather(*results) == [7, 7, 7]
        over.set()


# Loops


async def test_an_event_that_causes_itself_ends_dead(own_server: NatsServer, bus: Bus) -> None:
    async def again(event: Event, ctx: RunContext) -> None:
        await ctx.emit("job.again", event.data + 1)

    worker = Worker(again)
    async with running(own_server, worker) as runtime:
        await runtime.event_bus.emit("job.again", 0)
        (letter,) = await letters(bus, 1)
        assert letter.attempts == 1
        assert "number 17 in a chain of events and asks" in letter.cause
        assert "looks like a loop" in letter.cause
        await settled(bus)
    assert [event.data for event in worker.events] == list(range(17))


async def test_one_run_may_not_flood(own_server: NatsServer, bus: Bus) -> None:
    async def flood(_event: Event, ctx: RunContext) -> None:
        await asyncio.gather(*(ctx.publish("flood", n) for n in range(1001)))

    async with running(own_server, Worker(flood)) as runtime:
        await runtime.event_bus.emit("job.flood")
        (letter,) = await letters(bus, 1)
        assert "may send 1000 events" in letter.cause


# Causality


async def test_a_handler_reads_what_was_written_before_the_event(own_server: NatsServer, bus: Bus) -> None:
    """[R7] Without carrying the revision, up to five in a hundred handlers read something older."""
    late: list[tuple[int, Any]] = []
    seen: set[int] = set()

    async def read(event: Event, ctx: RunContext) -> None:
        found = ctx.shared.get(f"n.{event.data % 20}")
        seen.add(event.data)
        if found is None or found < event.data:
            late.append((event.data, found))

    async def write(event: Event, ctx: RunContext) -> None:
        for n in range(event.data, 1000, 20):
            await ctx.shared.set(f"n.{event.data}", n)
            await ctx.emit("job.read", n)

    reader = running(own_server, Worker(read), concurrency=20)
    writer = running(own_server, Worker(write), patterns=("go.>",), name="writer", concurrency=20)
    async with reader, writer as runtime:
        for n in range(20):
            await runtime.event_bus.emit("go.go", n)
        await until(lambda: len(seen) == 1000, 30)
        await settled(bus)
    assert late == []


# Middleware


class Brackets(Middleware):
    """Puts brackets around everything."""

    name = "brackets"

    async def handle(self, event: Event, ctx: RunContext, call: Any) -> Any:
        return f"[{await call(event, ctx)}]"

    async def answer(self, question: str, ctx: RunContext, call: Any) -> Any:
        return f"[{await call(f'<{question}>', ctx)}]"

    async def emit(self, event_type: str, data: Any, ctx: RunContext, call: Any) -> int:
        return int(await call(event_type, f"[{data}]"))


class Braces(Brackets):
    """Puts braces around it, nearer the work."""

    name = "curly"

    async def handle(self, event: Event, ctx: RunContext, call: Any) -> Any:
        return f"{{{await call(event, ctx)}}}"


async def test_middleware_stands_around_handle_answer_and_emit(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def emit(event: Event, ctx: RunContext) -> str:
        await ctx.emit("said", event.data["word"])
        return "done"

    load = Plugins.load

    def with_middleware() -> Plugins:
        plugins = load()
        plugins.middleware.update(brackets=Brackets, curly=Braces)
        return plugins

    monkeypatch.setattr(Plugins, "load", staticmethod(with_middleware))
    async with running(own_server, Worker(emit)) as runtime, runtime.event_bus.subscribe("said") as live:
        run = await runtime.inject_event("worker", {"type": "x", "word": "hi"})
        assert await run.result(5) == "[{done}]"
        assert (await anext(live)).data == "[[hi]]"
        assert await runtime.ask_peer("worker", "why?", timeout=5) == "[[<<why?>>]]"


# Ids


async def test_an_id_that_is_a_number_is_not_the_event_of_that_number(own_server: NatsServer, bus: Bus) -> None:
    gate = asyncio.Event()

    async def wait(_event: Event, _ctx: RunContext) -> None:
        await gate.wait()

    worker, raw = Worker(wait), await nats.connect(own_server.url)
    async with running(own_server, worker) as runtime:
        await runtime.event_bus.emit("job.a", id="2")
        await raw.publish("events.job.b", b"")
        await until(lambda: len(worker.events) == 2)
        assert [event.id for event in worker.events] == ["2", "2"]
        gate.set()
        await settled(bus)
    await raw.close()


async def test_ids_of_any_kind_travel_as_causes(own_server: NatsServer, bus: Bus) -> None:
    async def go_on(event: Event, ctx: RunContext) -> None:
        if event.type == "job.first":
            await ctx.emit("job.second")

    ids = ["order;t=x", "50%;d=99", "é", "long" * 15_000]
    worker, raw = Worker(go_on), await nats.connect(own_server.url)
    async with running(own_server, worker):
        for event_id in ids:
            await raw.publish("events.job.first", b"", headers={"Nats-Msg-Id": event_id})
        await until(lambda: len(worker.events) == 2 * len(ids))
        await settled(bus)
        assert await dead_letters(bus) == []
        first = [event for event in worker.events if event.type == "job.first"]
        assert [event.id for event in first][:3] == ids[:3]
        await raw.publish("events.job.first", b"\xff", headers={"Nats-Msg-Id": "é" * 20_000})
        (letter,) = await letters(bus, 1)
        assert "not UTF-8" in letter.cause
        await settled(bus)
    await raw.close()


@pytest.mark.parametrize("awaits", [True, False])
async def test_a_handler_that_cancels_itself_has_failed(own_server: NatsServer, bus: Bus, awaits: bool) -> None:
    async def cancel(_event: Event, _ctx: RunContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if awaits:
            await asyncio.sleep(0)

    worker = Worker(cancel)
    async with running(own_server, worker) as runtime:
        await runtime.event_bus.emit("job.a")
        (letter,) = await letters(bus, 1)
        await settled(bus)
    assert (letter.cause, letter.attempts, len(worker.events)) == ("CancelledError", 3, 3)


# Without a task for each


async def test_handlers_that_wait_do_not_hold_up_the_others(own_server: NatsServer, bus: Bus) -> None:
    gate, order = asyncio.Event(), list[int]()

    async def work(event: Event, _ctx: RunContext) -> None:
        if event.data % 3 == 0:
            await gate.wait()
        order.append(event.data)
        if len(order) == 20:
            gate.set()

    worker = Worker(work)
    async with running(own_server, worker):
        pass  # provisions the consumer
    for n in range(30):
        await bus.store("events.job.n", b"%d" % n)
    async with running(own_server, worker, concurrency=30):
        await settled(bus)
    assert order[:20] == [n for n in range(30) if n % 3]
    assert sorted(order) == list(range(30))


async def test_context_variables_of_one_handler_are_not_those_of_the_next(own_server: NatsServer, bus: Bus) -> None:
    seen: list[str] = []

    async def work(_event: Event, _ctx: RunContext) -> None:
        seen.append(SETTING.get())
        SETTING.set("of another")

    async with running(own_server, Worker(work)) as runtime:
        await asyncio.gather(*(runtime.event_bus.emit("job.n", n) for n in range(20)))
        await settled(bus)
    assert seen == ["none"] * 20


# The last entry of a run, for which nobody waits [R18]


async def test_an_end_that_the_server_did_not_take_is_written_again(own_server: NatsServer, bus: Bus) -> None:
    killed = asyncio.Event()

    async def kill(_event: Event, _ctx: RunContext) -> str:
        own_server.kill()
        killed.set()
        return "fine"

    worker = Worker(kill)
    async with running(own_server, worker) as runtime:
        await runtime.event_bus.emit("job.a")
        await killed.wait()
        await until(lambda: not bus.connected)
        own_server.start()
        await bus.until_connected(10)
        await settled(bus)
        assert (await bus.api("STREAM.INFO.JOURNAL"))["state"]["messages"] == 1
    assert len(worker.events) == 1


async def test_an_end_that_comes_second_acks_nothing(own_server: NatsServer, bus: Bus) -> None:
    """[R4] Another replica has taken the run over, and what becomes of the event is its business."""
    journal = StreamJournal()
    journal.attach(bus)
    run = run_id("EVENTS", authored("raced", bus.author), "worker", "event-job+@@")

    async def lose(_event: Event, _ctx: RunContext) -> str:
        await journal.write(Entry("worker", run, 1, "started", {"attempt": 1}, 0.0))
        return "too late"

    worker = Worker(lose)
    async with running(own_server, worker) as runtime:
        await runtime.event_bus.emit("job.a", id="raced")
        (delivery,) = [each for host in runtime._hosts for each in host._deliveries if each._label == "event-job+@@"]
        await until(lambda: worker.events and not delivery._work.tasks and not delivery._ends)
        info = await bus.api("CONSUMER.INFO.EVENTS.worker=event-job+@@")
        assert info["num_ack_pending"] == 1
    assert [entry.kind for entry in await journal.read("worker", run)] == ["started"]


async def test_a_drain_waits_for_the_ends(own_server: NatsServer, bus: Bus) -> None:
    worker = Worker(fine)
    async with running(own_server, worker):
        pass  # provisions the consumer
    await asyncio.gather(*(bus.store("events.job.n", b"%d" % n) for n in range(500)))
    async with running(own_server, worker, concurrency=50) as runtime:
        await until(lambda: worker.events)
        await runtime.stop_all(10)
    handled = len(worker.events)
    info = await bus.api("CONSUMER.INFO.EVENTS.worker=event-job+@@")
    assert info["ack_floor"]["stream_seq"] == handled  # and the others were given back
    journal = (await bus.api("STREAM.INFO.JOURNAL"))["state"]
    assert journal["messages"] == handled


# Redelivered and replicated


async def test_an_event_that_was_handled_is_not_handled_again(own_server: NatsServer, bus: Bus) -> None:
    """A crash between the journal's `done` and the ack costs no second run."""
    worker = Worker(fine)
    async with running(own_server, worker):
        pass
    journal = StreamJournal()
    journal.attach(bus)
    done = run_id("EVENTS", authored("seen", bus.author), "worker", "event-job+@@")
    await journal.write(Entry("worker", done, 1, "done", {"result": 1}, 0.0))
    await bus.store("events.job.a", b"", id="seen")
    await give_back(bus, 1)
    async with running(own_server, worker):
        await settled(bus)
    assert worker.events == []


async def test_replicas_share_and_lose_nothing(own_server: NatsServer, bus: Bus) -> None:
    one, two = Worker(fine), Worker(fine)
    async with running(own_server, one, concurrency=2), running(own_server, two, concurrency=2) as runtime:
        await asyncio.gather(*(runtime.event_bus.emit("job.n", n) for n in range(100)))
        await settled(bus)
    assert sorted(event.data for event in one.events + two.events) == list(range(100))
    assert one.events
    assert two.events


async def test_a_message_delivered_again_while_it_runs_is_run_once(own_server: NatsServer, bus: Bus) -> None:
    gate = asyncio.Event()

    async def wait(_event: Event, _ctx: RunContext) -> str:
        await gate.wait()
        return "fine"

    worker = Worker(wait)
    async with running(own_server, worker) as runtime:
        await runtime.event_bus.emit("job.a")
        await until(lambda: worker.events)
        (consumer,) = [d._consumer for host in runtime._hosts for d in host._deliveries if d._consumer._held]
        (message,) = consumer._held.values()
        await bus.publish(message.reply, b"-NAK")  # e.g. a restart of the server forgot that it is out
        await bus.flush()
        gate.set()
        await settled(bus)
    assert len(worker.events) == 1


async def test_the_context_is_shared(own_server: NatsServer) -> None:
    async def count(event: Event, ctx: RunContext) -> int:
        return int(await ctx.shared.update("count", lambda value: value + event.data["by"]))

    runtime = AgentRuntime(own_server.url, context=AgentContext(initial_state={"count": 1}))
    runtime.add_process(AgentProcess(name="worker", agent=Worker(count)))
    async with runtime:
        run = await runtime.inject_event("worker", {"type": "add", "by": 2})
        assert await run.result(5) == 3


# Logs


async def test_the_log_shows_the_handlers_frames_once(
    own_server: NatsServer, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_event: Event, _ctx: RunContext) -> None:
        raise ValueError("this is mine")

    caplog.set_level(logging.ERROR, "natterjack")
    async with running(own_server, Worker(fail)) as runtime:
        run = await runtime.inject_event("worker", {"type": "x"})
        with pytest.raises(RunFailedError):
            await run.result(5)
    traces = [record.exc_info for record in caplog.records if record.exc_info]
    assert len(caplog.records) == 3
    ((_, error, traceback),) = traces
    assert str(error) == "this is mine"
    assert traceback is not None
    assert traceback.tb_frame.f_code.co_filename == __file__
