"""The codec against whatever a stranger sends, and against whatever an agent wants to send."""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import nats
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client

from natterjack import codec
from natterjack.errors import PayloadError
from natterjack.messages import Envelope
from natterjack.testing import NatsServer

text = st.text(st.characters(exclude_categories=["Cs"]))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=30,
)


@dataclass
class Reading:
    value: Any


class Level(Enum):
    HIGH = math.inf
    LOW = 0.5


@dataclass(frozen=True)
class Boxed:
    """A value as an agent may hold it, and what it is in JSON."""

    given: Any
    plain: Any


boxed = st.recursive(
    json_values.map(lambda value: Boxed(value, value))
    | st.sampled_from(Level).map(lambda each: Boxed(each, each.value)),
    lambda inner: st.one_of(
        st.lists(inner).map(lambda all_: Boxed(tuple(each.given for each in all_), [each.plain for each in all_])),
        inner.map(lambda each: Boxed(Reading(each.given), {"value": each.plain})),
        st.dictionaries(text, inner).map(
            lambda all_: Boxed(
                {key: each.given for key, each in all_.items()}, {key: each.plain for key, each in all_.items()}
            )
        ),
    ),
    max_leaves=5,
)


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from numbers(item)


@given(boxed)
@example(Boxed({"null": math.nan}, {"null": math.nan}))
@example(Boxed((None, Level.HIGH), [None, math.inf]))
def test_what_is_sent_is_what_arrives_or_it_is_not_sent(value: Boxed) -> None:
    if all(math.isfinite(number) for number in numbers(value.plain)):
        assert codec.decode(codec.encode(value.given)) == value.plain
    else:
        with pytest.raises(PayloadError, match="NaN and infinity"):
            codec.encode(value.given)


@given(json_values, st.data())
def test_damaged_json_is_read_or_refused(value: Any, data: st.DataObject) -> None:
    sent = bytearray(json.dumps(value).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = codec.decode(bytes(sent))
    except PayloadError as error:
        assert "not UTF-8" in str(error)  # noqa: PT017 - most damaged ones are read, as text
    else:
        assert codec.decode(codec.encode(found)) == found  # what could be read can be passed on


def depth_of(value: Any) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if items is None else 1 + max(map(depth_of, items), default=0)


brackets = st.text('[]{}"\\a', max_size=8)


@given(json_values.filter(lambda value: all(map(math.isfinite, numbers(value)))), brackets, st.integers(55, 66))
def test_depth_is_told_whatever_stands_between_the_brackets(value: Any, between: str, levels: int) -> None:
    for _ in range(levels):
        value = [between, value, {between: []}]
    sent = json.dumps(value).encode()
    if depth_of(value) > codec.MAX_DEPTH:
        with pytest.raises(PayloadError, match="deeper than 64"):
            codec.decode(sent)
    else:
        assert depth_of(codec.decode(sent)) == depth_of(value)


@pytest.mark.parametrize("piece", [b"[", b'"', b"\\", b'\\"', b'["', b'"[', b'{"a":', b"[]", b'"\\', b"null,", b"\xff"])
@pytest.mark.parametrize("start", [b"", b"[" * 70, b"[" * 70 + b'"'])
def test_a_megabyte_of_anything_is_read_in_no_time(piece: bytes, start: bytes) -> None:
    data = start + piece * (1_000_000 // len(piece))
    began = time.process_time()
    try:
        codec.decode(data)
    except PayloadError as error:
        assert len(str(error)) < 200  # noqa: PT017 - or it is text, and read
    assert time.process_time() - began < 2  # in quadratic time it takes hours


# The header, over a real server


@pytest.fixture
async def stranger(nats_server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


@settings(max_examples=settings().max_examples // 2, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.builds(
        Envelope,
        source=text,
        cause=text,
        depth=st.integers(0, 2**63 - 1),
        timeout=st.floats(0, 1e9),
        revision=st.integers(0, 2**63 - 1),
        request=text,
        run=text,
    )
)
@example(Envelope(source=" a ", cause="\x85\u2028", request="%41;s=b\r\nX: y", run="ü"))
@example(Envelope(run="\xa0"))
async def test_an_envelope_arrives_as_it_was_sent(stranger: Client, envelope: Envelope) -> None:
    inbox = stranger.new_inbox()
    subscription = await stranger.subscribe(inbox)
    await stranger.publish(inbox, b"", headers={codec.HEADER: codec.pack(envelope)})
    message = await subscription.next_msg(5)
    await subscription.unsubscribe()
    found = codec.unpack((message.headers or {}).get(codec.HEADER))
    sent = {name: getattr(envelope, name) for name in Envelope._fields}
    assert math.isclose(found.timeout, envelope.timeout, rel_tol=1e-5)  # six digits of a duration travel
    assert found == Envelope(**{**sent, "timeout": found.timeout})
