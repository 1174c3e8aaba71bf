"""The only codec: payloads to and from bytes, and the `Natterjack` header.

A payload is JSON; UTF-8 that is no JSON is text. Everything here takes hostile input.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from enum import Enum
from itertools import accumulate
from typing import Any, Final
from urllib.parse import quote, unquote

import orjson
from pydantic import BaseModel

from natterjack.errors import PayloadError
from natterjack.messages import Envelope

HEADER: Final = "Natterjack"
MSG_ID: Final = "Nats-Msg-Id"
EVENT_ID: Final = "Natterjack-Id"
"""Header with the id of an event whose deduplication id is another, or is gone because it was held for a time."""
ERROR: Final = "Nats-Service-Error"
ERROR_CODE: Final = "Nats-Service-Error-Code"

MAX_DEPTH: Final = 64
"""Nesting a payload may have; deeper is hostile or a mistake, and breaks many JSON readers."""

_MAX_INT64: Final = 2**63


def is_deletion(headers: Mapping[str, str]) -> bool:
    """Tell whether a message of a bucket's stream takes its key away, rather than give it a value (ADR-8)."""
    return headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers


def id_in(headers: Mapping[str, str]) -> str:
    """Return the id that an event's sender gave it, or an empty text."""
    return headers.get(EVENT_ID) or headers.get(MSG_ID, "")


def encode(value: object) -> bytes:
    """Return a value as JSON.

    Raises:
        PayloadError: It holds something JSON has no form for, or nests deeper than 64.
    """
    try:
        data = orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, RecursionError) as error:  # orjson.JSONEncodeError is a TypeError
        kind = type(value).__name__
        msg = f"{kind} cannot be sent as JSON ({error}); send dicts, lists, text, numbers or pydantic models"
        raise PayloadError(msg) from error
    _check_depth(data)
    if b"null" in data and not _is_plainly_finite(value):  # orjson writes it for what JSON has no number for
        _check_numbers(value)
    return data


def text_of(value: object) -> str:
    """Return a value as text: text as it is, nothing as an empty text, all else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else encode(value).decode()


_NUMBERLESS: Final = frozenset({str, int, bool, type(None)})


def _is_plainly_finite(value: object) -> bool:
    """Tell of the commonest values, at a tenth of the cost, that no number in them is NaN or infinite."""
    if type(value) is not dict:
        return type(value) in _NUMBERLESS or (type(value) is float and math.isfinite(value))
    for item in value.values():  # noqa: SIM110 - `all` would call a function for each
        if type(item) not in _NUMBERLESS and not _is_plainly_finite(item):
            return False
    return True


def _check_numbers(value: object) -> None:
    """Raise for a number that is not finite, by the standard library's encoder: it alone refuses them."""
    try:
        _STRICT.encode(value)
    except ValueError as error:
        msg = "NaN and infinity cannot be sent as JSON; send a finite number, text or None"
        raise PayloadError(msg) from error


def _parts(value: object) -> object:
    """Return what may hold numbers; all else that orjson can write holds none."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Enum):
        return value.value
    return _plain(value) if isinstance(value, BaseModel | set | frozenset) else None


_STRICT: Final = json.JSONEncoder(allow_nan=False, skipkeys=True, check_circular=False, default=_parts)


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    raise TypeError(f"Type is not JSON serializable: {type(value).__name__}")  # noqa: EM102 - orjson's own wording


def decode(data: bytes) -> Any:
    """Return the JSON value of a payload, or its text where it is not JSON; `None` for an empty one.

    Raises:
        PayloadError: Not UTF-8, or nested deeper than 64.
    """
    if not data:
        return None
    _check_depth(data)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return decode_text(data)


def decode_text(data: bytes) -> str:
    """Return a payload as text.

    Raises:
        PayloadError: Not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        msg = f"the payload is not UTF-8 text (byte {error.start} is {data[error.start]:#04x}); send JSON or UTF-8"
        raise PayloadError(msg) from error


# Possessive, and an open string goes to the end: linear, whatever comes.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEPS: Final = bytes.maketrans(b"[{]}", b"\2\2\0\0")


def _check_depth(data: bytes) -> None:
    if len(data) <= MAX_DEPTH or data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    steps = _STRING.sub(b"", data).translate(_STEPS, _NO_BRACKETS)
    if max(accumulate(steps, lambda depth, step: depth + step - 1, initial=0)) > MAX_DEPTH:
        msg = f"the payload nests deeper than {MAX_DEPTH} levels; send it flatter"
        raise PayloadError(msg)


_PLACES: Final = {key: place for place, key in enumerate("scdtrqukav")}
"""Where in an envelope stands what a header calls by its letter."""
_NUMBERS: Final[dict[int, type[int | float]]] = {2: int, 3: float, 4: int}
"""Which of these places hold numbers, and of what kind."""
_SPECIAL: Final = re.compile(r"[;%\s\x00-\x20\x7f]")  # whoever reads headers strips white space of any kind
_PLAIN: Final = "/:@+=,"
_EMPTY: Final = Envelope()


def pack(envelope: Envelope) -> str:
    """Return an envelope as the text of the `Natterjack` header, e.g. `s=analyst;d=2;r=17`."""
    source, cause, depth, timeout, revision, request, run, key, approval, talk = envelope
    if _SPECIAL.search(source + cause + request + run + key + approval + talk):
        texts = (source, cause, request, run, key, approval, talk)
        source, cause, request, run, key, approval, talk = map(_quoted, texts)
    text = f";s={source}" if source else ""
    if cause:
        text += f";c={cause}"
    if depth:
        text += f";d={depth}"
    if timeout:
        text += f";t={timeout:g}"
    if revision:
        text += f";r={revision}"
    if request:
        text += f";q={request}"
    if run:
        text += f";u={run}"
    for letter, value in (("k", key), ("a", approval), ("v", talk)):
        if value:
            text += f";{letter}={value}"
    return text[1:]


def _quoted(value: str) -> str:
    """An event's id may hold what separates fields."""
    return quote(value, safe=_PLAIN) if _SPECIAL.search(value) else value


def unpack(text: str | None) -> Envelope:
    """Read a `Natterjack` header; fields it does not know are left alone, so that newer senders are understood.

    Raises:
        PayloadError: It is malformed.
    """
    if not text:
        return _EMPTY
    fields: list[Any] = [*_EMPTY]
    for part in text.split(";"):
        key, _, value = part.partition("=")
        place = _PLACES.get(key)
        if place is None and (place := _PLACES.get(key.strip())) is None:
            continue
        if place in _NUMBERS:
            fields[place] = _number(place, value, text)
        else:
            fields[place] = unquote(value) if "%" in value else value
    return Envelope._make(fields)


def _number(place: int, value: str, text: str) -> int | float:
    try:
        read = _NUMBERS[place](value)
    except ValueError:
        read = -1
    if not 0 <= read < _MAX_INT64:
        name = Envelope._fields[place]
        msg = f"the {HEADER} header {text[:200]!r} is malformed: {name} must be a number, not {value[:40]!r}"
        raise PayloadError(msg)
    return read
