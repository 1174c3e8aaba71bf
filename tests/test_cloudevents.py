"""CloudEvents in: structured and binary, and what is malformed."""

import asyncio
import base64
import json
from datetime import timedelta, timezone
from typing import Any

import pytest

from natterjack import Agent, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext
from natterjack.bus import Bus
from natterjack.cloudevents import read_cloudevent, time_of
from natterjack.dead import dead_letters
from natterjack.errors import PayloadError
from natterjack.testing import NatsServer, until

FULL = {"specversion": "1.0", "id": "e-1", "source": "/shop", "type": "com.shop.placed", "time": "2026-01-02T03:04:05Z"}
STRUCTURED = {"Content-Type": "application/cloudevents+json; charset=utf-8"}


def headers(**changed: str) -> dict[str, str]:
    return {f"ce-{name}": value for name, value in (FULL | changed).items() if value}


class Keeper(Agent):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Event] = []

    async def handle(self, event: Event, ctx: RunContext) -> None:
        self.seen.append(event)


@pytest.mark.open_mode(reason="their source is a claim")
async def test_both_forms_are_events(own_server: NatsServer, bus: Bus) -> None:
    keeper, runtime = Keeper(), AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("keeper", agent=keeper, triggers=[EventTrigger("order.placed")]))
    async with runtime, runtime.event_bus.subscribe() as live:
        await bus.store("events.order.placed", json.dumps(FULL | {"data": {"n": 1}}).encode(), headers=STRUCTURED)
        await bus.store("events.order.placed", b'{"n": 2}', headers=headers(id="e%202"))
        await until(lambda: len(keeper.seen) == 2)
        assert [(await anext(live)).id for _ in range(2)] == ["e-1", "e 2"]
    one, two = sorted(keeper.seen, key=lambda event: event.sequence)
    assert (one.data, two.data) == ({"n": 1}, {"n": 2})
    assert {event.type for event in keeper.seen} == {"order.placed"}  # the subject's
    assert {event.headers["ce-type"] for event in keeper.seen} == {"com.shop.placed"}
    assert {event.source for event in keeper.seen} == {"/shop"}
    assert {event.time.isoformat() for event in keeper.seen} == {"2026-01-02T03:04:05+00:00"}


async def test_what_is_malformed_is_a_dead_letter(own_server: NatsServer, bus: Bus) -> None:
    keeper, runtime = Keeper(), AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("keeper", agent=keeper, triggers=[EventTrigger("a")]))
    async with runtime:
        await bus.store("events.a", b"[]", headers=STRUCTURED)
        (letter,) = await until(lambda: dead_letters(bus))
    assert letter.cause == "this CloudEvent is malformed: structured JSON must be an object"
    assert (letter.attempts, keeper.seen) == (0, [])


def test_other_headers_make_no_cloudevent() -> None:
    assert read_cloudevent({"Content-Type": "application/json", "Nats-Msg-Id": "1"}, b"{}") is None


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ({"data": [1]}, [1]),
        ({}, None),
        ({"data_base64": base64.b64encode(b'{"a":1}').decode()}, {"a": 1}),
        ({"data_base64": base64.b64encode(b"text").decode()}, "text"),
    ],
)
def test_data_of_structured_ones(value: dict[str, Any], data: Any) -> None:
    found = read_cloudevent({"content-type": "application/cloudevents+json"}, json.dumps(FULL | value).encode())
    assert found is not None
    assert found[1] == data


@pytest.mark.parametrize(
    ("given", "payload", "problem"),
    [
        (headers(id=""), b"", "it lacks 'id'"),
        (headers(source=""), b"", "it lacks 'source'"),
        (headers(type=""), b"", "it lacks 'type'"),
        (headers(specversion=""), b"", "it lacks 'specversion'"),
        (headers(specversion="0.3"), b"", "its specversion is '0.3'"),
        ({"ce-foo": "x"}, b"", "it lacks 'specversion'"),
        ({"Content-Type": "application/cloudevents-batch+json"}, b"[]", "is not understood; send application"),
        ({"Content-Type": "application/cloudevents+avro"}, b"", "is not understood"),
        (STRUCTURED, b"text", "must be an object"),
        (STRUCTURED, json.dumps(FULL | {"data_base64": "!"}).encode(), "data_base64: it is no base64"),
        (STRUCTURED, json.dumps(FULL | {"data_base64": "/w=="}).encode(), "data_base64: the payload is not UTF-8"),
    ],
)
def test_malformed_ones_say_why(given: dict[str, str], payload: bytes, problem: str) -> None:
    with pytest.raises(PayloadError, match=f"this CloudEvent is malformed: .*{problem}"):
        read_cloudevent(given, payload)


@pytest.mark.parametrize(
    "text", ["soon", "2026-01-02T03:04:05", "", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]
)
def test_a_time_needs_a_zone(text: str) -> None:
    with pytest.raises(PayloadError, match="is no RFC 3339 time with a zone"):
        time_of({"ce-time": text})


def test_a_time_is_in_utc_and_can_be_shown_anywhere() -> None:
    moment = time_of({"ce-time": "2026-01-02T03:04:05+02:00"})
    assert moment is not None
    assert moment.isoformat() == "2026-01-02T01:04:05+00:00"
    assert moment.astimezone(timezone(timedelta(hours=-23))).day == 1


async def test_an_id_of_extreme_length_does_not_spoil_what_follows_from_it(own_server: NatsServer, bus: Bus) -> None:
    class Relay(Agent):
        async def handle(self, event: Event, ctx: RunContext) -> int:
            return await ctx.emit("next", event.id)

    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("relay", agent=Relay(), triggers=[EventTrigger("a")]))
    async with runtime, runtime.event_bus.subscribe("next") as live:
        await bus.store("events.a", json.dumps(FULL | {"id": "x" * 70_000}).encode(), headers=STRUCTURED)
        async with asyncio.timeout(10):
            assert len((await anext(live)).data) == 32
