"""Bodies of requests, what senders call them, and where secrets are: properties and corners."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from natterjack_webhook.bodies import MAX_DEPTH, MAX_FIELDS, BodyError, media_of, read_body
from natterjack_webhook.senders import is_type, naming
from natterjack_webhook.signatures import Given

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars.filter(lambda each: each not in (float("inf"), -float("inf"))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_json_comes_as_it_is(value: Any) -> None:
    body = orjson.dumps(value)
    assert read_body(body, "json") == (value, body)


@given(st.text(min_size=1))
def test_text_comes_as_text(text: str) -> None:
    value, payload = read_body(text.encode(), "text")
    assert value == text == json.loads(payload)


@given(st.binary(max_size=300), st.sampled_from(["json", "form", "text"]), st.booleans())
def test_any_body_is_data_or_a_clear_error(body: bytes, media: Any, unwrap: bool) -> None:
    try:
        value, payload = read_body(body, media, unwrap=unwrap)
    except BodyError as error:
        value, payload = str(error), orjson.dumps(str(error))
        assert value.startswith("the body ")
    assert (orjson.loads(payload) if payload else None) == value


@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 1])
def test_nesting(levels: int) -> None:
    body = b'{"a":[' * (levels // 2) + b"[" * (levels % 2) + b"]" * (levels % 2) + b"]}" * (levels // 2)
    if levels <= MAX_DEPTH:
        assert read_body(body, "json")[1] == body
    else:
        with pytest.raises(BodyError, match="deeper than 64"):
            read_body(body, "json")


def test_a_form_of_too_many_fields() -> None:
    assert len(read_body(b"&".join(b"a%d=1" % n for n in range(MAX_FIELDS)), "form")[0]) == MAX_FIELDS
    with pytest.raises(BodyError, match="no form"):
        read_body(b"&".join(b"a=1" for _ in range(MAX_FIELDS + 1)), "form")


@pytest.mark.parametrize(
    ("content_type", "media"),
    [
        ("application/json", "json"),
        ("Application/JSON;charset=UTF-8", "json"),
        ("application/vnd.github+json", "json"),
        ('text/plain; charset="utf-8"', "text"),
        ("application/x-www-form-urlencoded", "form"),
        ("text/plain; charset=utf-16", None),
        ("text/html", None),
        ("image/svg+json", None),
        ("", None),
        (";;;", None),
    ],
)
def test_content_types(content_type: str, media: str | None) -> None:
    assert media_of(content_type) == media


# Names


schemes: Any = st.sampled_from(["github", "stripe", "slack", "standard", None])


@given(schemes, st.dictionaries(st.text(max_size=5), st.text()), values, st.binary(max_size=20), st.booleans())
def test_any_request_has_a_sound_name(
    scheme: Any, headers: dict[str, str], data: Any, body: bytes, timed: bool
) -> None:
    named = naming(scheme, headers, data, body, Given(time=1 if timed else None), "x-id")
    assert named.type is None or is_type(named.type)
    assert named.id is None or (named.id.isascii() and 0 < len(named.id) <= 128 and " " not in named.id)
    assert named.id is not None or not timed


@given(schemes, st.text(), st.text(max_size=300))
def test_names_and_ids_of_senders(scheme: Any, kind: str, id: str) -> None:
    headers = {"x-github-event": kind, "x-github-delivery": id, "webhook-id": id}
    data = {"type": kind, "id": id, "event_id": id}
    one = naming(scheme, headers, data, b"a", Given(), None)
    assert one == naming(scheme, headers, data, b"a", Given(), None)
    assert one.type == (kind if scheme and is_type(kind) else None)
    assert (one.id is None) == (not id or scheme is None)
    other = naming(scheme, headers, data, b"b", Given(), None)
    # An id that nobody signed does not stand for another body.
    assert (one.id == other.id) == (scheme != "github" or not id)


def test_the_same_request_is_known_by_what_is_signed() -> None:
    first = naming("slack", {}, {"command": "/x"}, b"a", Given((), b"v0:1:", 1), None)
    later = naming("slack", {}, {"command": "/x"}, b"a", Given((), b"v0:2:", 2), None)
    assert first.id
    assert first.id != later.id
    assert naming({}, {}, {}, b"a", Given(), None).id is None  # type: ignore[arg-type]
