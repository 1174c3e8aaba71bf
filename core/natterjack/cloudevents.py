"""CloudEvents 1.0 as they come over NATS: structured JSON, or `ce-…` headers beside the data.

Either way the attributes stand in the event's headers as `ce-id`, `ce-type`, …; what the subject says of the type
goes before `ce-type`, and a principal that the broker attests before `ce-source`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import unquote

from natterjack import codec
from natterjack.errors import PayloadError

_REQUIRED: Final = ("specversion", "id", "source", "type")
_STRUCTURED: Final = "application/cloudevents"
_PREFIX: Final = "ce-"


def read_cloudevent(headers: Mapping[str, str], payload: bytes) -> tuple[dict[str, str], Any] | None:
    """Return attributes (`ce-id`, …) and data of a CloudEvent, or None if it is none.

    Raises:
        PayloadError: It is malformed, or in a form other than JSON.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    content = lower.get("content-type", "").strip().lower()
    if content.startswith(_STRUCTURED):
        return _structured(content, payload)
    attributes = {name: unquote(value) for name, value in lower.items() if name.startswith(_PREFIX)}
    return (_checked(attributes), codec.decode(payload)) if attributes else None


def time_of(attributes: Mapping[str, str]) -> datetime | None:
    """Return when a CloudEvent says that it happened, if it does, in UTC; raise `PayloadError` for no time or zone."""
    text = attributes.get("ce-time")
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None or not 1 < moment.year < 9999:  # in those years, no zone is outside the calendar
        msg = f"its time {text[:80]!r} is no RFC 3339 time with a zone"
        raise _malformed(msg)
    return moment.astimezone(UTC)


def _structured(content: str, payload: bytes) -> tuple[dict[str, str], Any]:
    if content.partition(";")[0].rstrip() != f"{_STRUCTURED}+json":
        msg = f"{content[:80]!r} is not understood; send application/cloudevents+json, one at a time"
        raise _malformed(msg)
    value = codec.decode(payload)
    if not isinstance(value, dict):
        msg = "structured JSON must be an object"
        raise _malformed(msg)
    data = _base64(value["data_base64"]) if "data_base64" in value else value.get("data")
    named = {f"{_PREFIX}{key}": _text(item) for key, item in value.items() if key not in ("data", "data_base64")}
    return _checked(named), data


def _checked(attributes: dict[str, str]) -> dict[str, str]:
    for name in _REQUIRED:
        if not attributes.get(_PREFIX + name):
            msg = f"it lacks {name!r}"
            raise _malformed(msg)
    if attributes["ce-specversion"] != "1.0":
        msg = f"its specversion is {attributes['ce-specversion'][:40]!r}, and not 1.0"
        raise _malformed(msg)
    return attributes


def _text(value: Any) -> str:
    return value if isinstance(value, str) else codec.encode(value).decode()


def _base64(text: Any) -> Any:
    try:
        return codec.decode(base64.b64decode(text, validate=True))
    except (TypeError, ValueError, binascii.Error) as error:
        reason = error if isinstance(error, PayloadError) else "it is no base64"
        msg = f"data_base64: {reason}"
        raise _malformed(msg) from error


def _malformed(what: str) -> PayloadError:
    return PayloadError(f"this CloudEvent is malformed: {what}")
