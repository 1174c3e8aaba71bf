"""Events and messages: stored with their sender before `emit` returns, live at once, and from any NATS client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest

from natterjack import Agent, AgentProcess, AgentRuntime, Event, EventTrigger, MessageTrigger, RunContext
from natterjack import events as events_module
from natterjack.bus import Bus
from natterjack.errors import (
    BrokerError,
    ConflictError,
    DisconnectedError,
    InvalidNameError,
    PatternError,
    PayloadError,
    StreamError,
)
from natterjack.events import EventBus
from natterjack.guards import Guards
from natterjack.server import Server
from natterjack.testing import NatsServer, until


class Listener(Agent):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    async def handle(self, event: Event, ctx: RunContext) -> None:
        self.events.append(event)

    @property
    def seen(self) -> list[tuple[str, Any]]:
        return [(event.type, event.data) for event in self.events]


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
async def runtime(own_server: NatsServer, listener: Listener) -> AsyncIterator[AgentRuntime]:
    runtime = AgentRuntime(own_server.url)
    triggers = [
        EventTrigger("tale.*"),
        EventTrigger("hello"),
        EventTrigger("deep.>"),
        MessageTrigger(topic="reports.*"),
    ]
    runtime.add_process(AgentProcess(name="listener", agent=listener, triggers=triggers))
    async with runtime:
        yield runtime


@pytest.fixture
async def bus(own_server: NatsServer, runtime: AgentRuntime) -> AsyncIterator[Bus]:
    bus = await Bus.connect(Server(own_server.url), principal="tester")
    yield bus
    await bus.close()


@pytest.fixture
def events(bus: Bus) -> EventBus:
    return EventBus(bus, Guards(()))


# Storing


@pytest.mark.open_mode(reason="nobody says there who sends")
async def test_emit_returns_the_sequence_and_stores_the_principal(bus: Bus, events: EventBus) -> None:
    assert await events.emit("quiet.a", {"n": 1}) == 1
    assert await events.emit("quiet.b") == 2
    stored = await bus.at("EVENTS", 1)
    assert stored is not None
    assert stored.headers is not None
    assert stored.data == b'{"n":1}'
    assert stored.headers["Nats-Subject"] == "stored.events.anyone.quiet.a"
    assert stored.headers["Natterjack"].startswith("s=tester")


async def test_windowed_emits_all_arrive(listener: Listener, events: EventBus) -> None:
    sequences = await asyncio.gather(*(events.emit("tale.many", n) for n in range(500)))
    assert sorted(sequences) == list(range(1, 501))
    await until(lambda: len(listener.events) == 500)
    assert sorted(event.data for event in listener.events) == list(range(500))


@pytest.mark.parametrize("wrong", ["", "a b", "a..b", ".a", "a.*", ">", "ä", "a\r\nPUB x 0", "x" * 300, None])
async def test_malformed_types_are_refused(events: EventBus, wrong: Any) -> None:
    for call in (events.emit, events.publish):
        with pytest.raises(InvalidNameError, match="is no valid"):
            await call(wrong)


@pytest.mark.parametrize("wrong", ["", "a b", "a..b", ">.a", "a*", None])
async def test_malformed_patterns_are_refused(events: EventBus, wrong: Any) -> None:
    with pytest.raises(PatternError, match="is no valid pattern"):
        events.subscribe(wrong)


@pytest.mark.parametrize("wrong", ["", " ", "a b", "x" * 129, "ä", "a\n"])
async def test_malformed_ids_are_refused(events: EventBus, wrong: str) -> None:
    with pytest.raises(PayloadError, match="no valid event id"):
        await events.emit("quiet.id", id=wrong)


async def test_what_cannot_be_sent_is_refused(events: EventBus) -> None:
    deep: Any = []
    for _ in range(70):
        deep = [deep]
    for data in (object(), deep, "x" * 2_000_000, "\ud800"):
        with pytest.raises(PayloadError):
            await events.emit("quiet.data", data)


async def test_a_full_stream_is_an_error_and_drops_nothing(bus: Bus, events: EventBus) -> None:
    await events.emit("quiet.first")
    config = (await bus.api("STREAM.INFO.EVENTS"))["config"]
    await bus.api("STREAM.UPDATE.EVENTS", config | {"max_msgs": 1})
    with pytest.raises(StreamError, match="maximum messages exceeded"):
        await events.emit("quiet.second")
    first = await bus.at("EVENTS", 1)
    assert first is not None


# Ids


async def test_an_id_is_stored_once(listener: Listener, events: EventBus) -> None:
    first = await events.emit("tale.once", {"n": 1}, id="order-17")
    assert await events.emit("tale.once", {"n": 1}, id="order-17") == first
    await events.emit("tale.end")
    await until(lambda: ("tale.end", None) in listener.seen)
    assert listener.seen.count(("tale.once", {"n": 1})) == 1
    assert listener.events[0].id == "order-17"


@pytest.mark.parametrize(("kind", "data"), [("quiet.one", 2), ("quiet.other", 1), ("other.quiet.one", 1)])
async def test_an_id_of_another_event_is_a_conflict(events: EventBus, kind: str, data: int) -> None:
    await events.emit("quiet.one", 1, id="taken")
    with pytest.raises(ConflictError, match="'taken' already belongs to another event"):
        await events.emit(kind, data, id="taken")


@pytest.mark.open_mode(reason="nobody makes the ids of another there")
async def test_an_id_of_another_sender_is_a_conflict(own_server: NatsServer, events: EventBus) -> None:
    await events.emit("quiet.one", 1, id="taken")
    thief = await Bus.connect(Server(own_server.url), principal="thief")
    with pytest.raises(ConflictError, match="from 'tester'"):
        await EventBus(thief, Guards(())).emit("quiet.one", 1, id="taken")
    await thief.close()


# Triggers


async def test_wildcards_topics_and_what_is_not_meant(listener: Listener, events: EventBus) -> None:
    for kind in ("tale", "tale.a", "tale.a.b", "deep", "deep.a.b.c", "hello", "other"):
        await events.emit(kind)
    await events.publish("reports.daily", {"pages": 3})
    await events.publish("tale.a")
    await events.emit("hello", "end")
    await until(lambda: ("hello", "end") in listener.seen and ("reports.daily", {"pages": 3}) in listener.seen)
    expected = [("deep.a.b.c", None), ("hello", None), ("hello", "end"), ("tale.a", None)]
    assert sorted(found for found in map(str, listener.seen)) == sorted(
        map(str, [*expected, ("reports.daily", {"pages": 3})])
    )


async def test_what_an_event_says(listener: Listener, events: EventBus) -> None:
    await events.emit("tale.one", {"n": 1})
    await until(lambda: listener.events)
    event = listener.events[0]
    assert (event.type, event.source, event.sequence, event.attempt) == ("tale.one", "tester", 1, 1)
    assert event.time.utcoffset() is not None
    assert len(event.id) > 20


@pytest.mark.parametrize(
    ("payload", "data"),
    [
        (b'{"a":1}', {"a": 1}),
        (b"hello world", "hello world"),
        (b"42", 42),
        (b"", None),
        (b"{not json", "{not json"),
        ("grüße".encode(), "grüße"),
        (b'"text"', "text"),
    ],
)
@pytest.mark.open_mode(reason="nobody says there who sends")
async def test_any_client_may_publish(
    own_server: NatsServer, runtime: AgentRuntime, listener: Listener, payload: bytes, data: Any
) -> None:
    client = await nats.connect(own_server.url)
    await client.publish("events.hello", payload)
    await until(lambda: listener.events)
    event = listener.events[0]
    assert (event.data, event.source, event.id, event.headers) == (data, "", "1", {})
    await client.close()


# Live


async def test_the_live_feed(events: EventBus) -> None:
    async with events.subscribe("tale.*") as live, events.subscribe_topic() as topics:
        sequence = await events.emit("tale.live", {"n": 1})
        await events.emit("other")
        await events.publish("anything.at.all", "text")
        event = await anext(live)
        assert (event.type, event.data, event.source, event.sequence) == ("tale.live", {"n": 1}, "tester", sequence)
        assert event.time.utcoffset() is not None
        message = await anext(topics)
        assert (message.type, message.data) == ("anything.at.all", "text")


async def test_live_payloads_that_cannot_be_read_are_shown_leniently(
    own_server: NatsServer, runtime: AgentRuntime, events: EventBus
) -> None:
    client = await nats.connect(own_server.url)
    forged = {"Natterjack": "d=x", "Nats-Sequence": "x", "Nats-Time-Stamp": "x"}
    async with events.subscribe() as live:
        await client.publish("events.raw", b"\xff\xfe")
        await client.publish("events.raw", b"{}", headers=forged)
        first, second = await anext(live), await anext(live)
    assert first.data == "\ufffd\ufffd"
    assert (second.data, second.sequence) == ("{}", 2)
    await client.close()


async def test_a_reader_that_is_too_slow_is_told(events: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MAX_LAG", 10)
    async with events.subscribe("flood") as live:
        live._queue = asyncio.Queue(10)
        await asyncio.gather(*(events.emit("flood", n) for n in range(30)))
        await until(lambda: live._missed)
        got = [(await anext(live)).data for _ in range(10)]
        assert len(got) == 10
        with pytest.raises(BrokerError, match="fell 10 events behind and missed some"):
            await anext(live)


async def test_a_feed_ends_with_its_connection(bus: Bus, events: EventBus) -> None:
    async with events.subscribe() as live:
        waiting = asyncio.ensure_future(anext(live))
        await asyncio.sleep(0)
        await bus.close()
        with pytest.raises(DisconnectedError, match="the connection was closed"):
            await asyncio.wait_for(waiting, 1)


async def test_closing_a_feed_ends_an_iteration_that_waits(events: EventBus) -> None:
    live = await events.subscribe().__aenter__()

    async def read() -> list[Event]:
        return [event async for event in live]

    reading = asyncio.create_task(read())
    await events.emit("one")
    await asyncio.sleep(0)
    await live.aclose()
    assert len(await asyncio.wait_for(reading, 1)) <= 1
    with pytest.raises(StopAsyncIteration):
        await anext(live)


async def test_a_feed_goes_on_after_a_restart_of_the_server(own_server: NatsServer, bus: Bus, events: EventBus) -> None:
    async with events.subscribe("tale.>") as live:
        own_server.kill()
        await until(lambda: not bus.connected)
        own_server.start()
        await events.emit("tale.after")
        assert (await asyncio.wait_for(anext(live), 5)).type == "tale.after"


async def test_emitting_what_nobody_waits_for_logs_one_line(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "natterjack.events")
    events = EventBus(bus, Guards(()), awaited=["tale.*"])
    for kind in ("tale.heard", "unheard", "unheard"):
        await events.emit(kind)
    assert caplog.text.count("no agent of the team waits for") == 1
