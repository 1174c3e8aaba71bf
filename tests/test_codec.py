"""The codec: round trips, and hostile bytes that end in one kind of error."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from natterjack import codec
from natterjack.errors import PayloadError
from natterjack.messages import Envelope, run_id

values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


class Point(BaseModel):
    x: int
    at: datetime


# Payloads


@given(values)
def test_round_trip(value: Any) -> None:
    assert codec.decode(codec.encode(value)) == value


@given(st.binary())
@example(b"\xff")
@example(b"[" * 100_000)
@example(b'{"a":' * 65)
@example(b'"\\')
@example(b"\x00")
@example(b"9" * 400)
@example(b"1e999")
@example(b'"\\ud800"')
@example(b"NaN")
@example(b"\xef\xbb\xbf{}")
def test_hostile_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        value = codec.decode(data)
    except PayloadError as error:
        event(f"refused: {str(error)[:25]}")
    else:
        assert codec.decode(codec.encode(value)) == value  # what could be read can be passed on


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_text_that_is_no_json_is_text(text: str) -> None:
    data = f"hello {text}".encode()
    assert codec.decode(data) == codec.decode_text(data) == f"hello {text}"


def test_an_empty_payload_is_none() -> None:
    assert codec.decode(b"") is None


def test_the_place_of_bad_utf8_is_named() -> None:
    with pytest.raises(PayloadError, match="byte 2 is 0xff"):
        codec.decode(b"ab\xff")


@pytest.mark.parametrize("size", [10_000_000])
def test_large_payloads(size: int) -> None:
    text = "x" * size
    assert codec.decode(codec.encode([text])) == [text]


@given(st.integers(1, 200), st.sampled_from([("[", "]"), ('{"k":', "}")]))
@example(64, ("[", "]"))
@example(65, ("[", "]"))
def test_depth_is_bounded(depth: int, brackets: tuple[str, str]) -> None:
    opened, closed = brackets
    data = (opened * depth + "1" + closed * depth).encode()
    if depth > codec.MAX_DEPTH:
        with pytest.raises(PayloadError, match="deeper than 64"):
            codec.decode(data)
    else:
        assert codec.encode(codec.decode(data)) == data


@pytest.mark.parametrize("text", ["[" * 100, '\\"' + "{" * 100, "[]{}" * 100, '"[' * 100])
def test_brackets_within_strings_and_beside_each_other_are_no_depth(text: str) -> None:
    assert codec.decode(codec.encode({"text": text, "list": [[]] * 100})) == {"text": text, "list": [[]] * 100}


def test_nesting_too_deep_is_not_sent() -> None:
    value: list[Any] = []
    for _ in range(100):
        value = [value]
    with pytest.raises(PayloadError, match="deeper"):
        codec.encode(value)


def test_a_cycle_is_not_sent() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(PayloadError):
        codec.encode(value)


def test_models_sets_tuples_times_and_keys_that_are_no_text() -> None:
    at = datetime(2030, 1, 2, tzinfo=UTC)
    sent = {"point": Point(x=1, at=at), "set": {3}, "tuple": (1, 2), "at": at, 5: "five"}
    assert codec.decode(codec.encode(sent)) == {
        "point": {"x": 1, "at": "2030-01-02T00:00:00Z"},
        "set": [3],
        "tuple": [1, 2],
        "at": "2030-01-02T00:00:00+00:00",
        "5": "five",
    }


@pytest.mark.parametrize("value", [object(), b"bytes", 2**70, "\ud800", {object(): 1}, len, 1j])
def test_what_has_no_json_form_is_refused(value: object) -> None:
    with pytest.raises(PayloadError, match="cannot be sent as JSON"):
        codec.encode(value)


@pytest.mark.parametrize("value", [float("nan"), {"a": [None, float("inf")]}, (1.5, {float("-inf")})])
def test_numbers_that_json_lacks_are_not_turned_into_null(value: object) -> None:
    with pytest.raises(PayloadError, match="finite number"):
        codec.encode(value)


def test_null_is_no_number() -> None:
    assert codec.encode({"a": [None, 1.5, "null"]}) == b'{"a":[null,1.5,"null"]}'


def test_errors_quote_little_of_what_was_received() -> None:
    with pytest.raises(PayloadError) as caught:
        codec.unpack("d=" + "x" * 100_000)
    assert len(str(caught.value)) < 400


# The header

names = st.from_regex(r"[A-Za-z0-9_.:=-]{0,30}", fullmatch=True)
counts = st.integers(0, 2**63 - 1)
envelopes = st.builds(
    Envelope,
    source=names,
    cause=names,
    depth=counts,
    timeout=st.floats(0, 1e9),
    revision=counts,
    request=names,
    run=names,
)


@given(envelopes)
def test_header_round_trip(envelope: Envelope) -> None:
    read = codec.unpack(codec.pack(envelope))
    assert math.isclose(read.timeout, envelope.timeout, rel_tol=1e-5)  # six digits of a duration travel
    assert read == Envelope(**{**_fields(envelope), "timeout": read.timeout})


def _fields(envelope: Envelope) -> dict[str, Any]:
    return {name: getattr(envelope, name) for name in Envelope._fields}


def test_the_header_is_short() -> None:
    assert codec.pack(Envelope()) == ""
    assert codec.pack(Envelope(source="analyst", depth=2, revision=17)) == "s=analyst;d=2;r=17"
    odd = Envelope(source="a;d=9", cause="order;t=x%20 \r\nd=5", depth=2)
    assert codec.unpack(codec.pack(odd)) == odd
    assert "\r" not in codec.pack(odd)
    assert codec.unpack(None) == codec.unpack("") == Envelope()


def test_fields_of_newer_senders_are_left_alone() -> None:
    assert codec.unpack("s=a;zz=1;;d=2;new") == Envelope(source="a", depth=2)


@given(st.text() | st.text(alphabet="scdtrqu=;-.e0123456789naif", max_size=20))
@example("t=nan")
@example("t=inf")
@example("d=-1")
@example("d=1e3")
@example("d=" + "9" * 5000)
@example("r=9223372036854775808")
def test_hostile_headers_are_read_or_refused(text: str) -> None:
    try:
        envelope = codec.unpack(text)
    except PayloadError:
        event("refused")
    else:
        assert 0 <= envelope.depth < 2**63
        assert 0 <= envelope.revision < 2**63
        assert 0 <= envelope.timeout < 2**63


# Run ids


@given(st.tuples(st.text(), st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text(), st.text()))
def test_run_ids_differ_where_their_events_do(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    try:
        ids = run_id(*one), run_id(*other)
    except UnicodeEncodeError:
        assert any(0xD800 <= ord(letter) <= 0xDFFF for part in (*one, *other) for letter in part)
        return
    if not any("\0" in part for part in (*one, *other)):  # which no name on the wire can hold
        assert (ids[0] == ids[1]) == (one == other)


def test_run_ids_are_stable_and_fit_into_subjects() -> None:
    first = run_id("EVENTS", "17", "writer", "event")
    assert first == "ce20d5ed0b80e0c3ef8200d24604d3"
    assert len({run_id("EVENTS", str(number), "writer", "event") for number in range(10_000)}) == 10_000
