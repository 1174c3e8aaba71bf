"""Bodies of requests: JSON, forms and text become the data of an event."""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import parse_qsl

import orjson

MAX_DEPTH: Final = 64
"""Nesting that the payload of an event may have."""
MAX_FIELDS: Final = 1000

Media = Literal["json", "form", "text"]


class BodyError(ValueError):
    """A body cannot be read as what it says it is."""


def media_of(content_type: str) -> Media | None:
    """Return what a body is by its content type, or None for what cannot become an event."""
    media, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charsets = [each.partition("=")[2].strip("\"' ") for each in parameters if each.startswith("charset")]
    if any(charset not in ("utf-8", "utf8", "us-ascii") for charset in charsets):
        return None
    if media == "application/json" or (media.startswith("application/") and media.endswith("+json")):
        return "json"
    return {"application/x-www-form-urlencoded": "form", "text/plain": "text"}.get(media)  # type: ignore[return-value]


def read_body(body: bytes, media: Media, *, unwrap: bool = False) -> tuple[Any, bytes]:
    """Return the value of a body, and the payload of an event that brings exactly this value.

    Args:
        body: As it came; an empty one is the value None.
        media: What it is.
        unwrap: Whether a form's field `payload` is JSON, and all that counts.

    Raises:
        BodyError: It is malformed.
    """
    if not body:
        return None, b""
    if media == "json":
        return _json(body), body
    try:
        text = body.decode()
        value: Any = text if media == "text" else _form(text)
    except ValueError as error:
        msg = f"the body is no {'UTF-8 text' if media == 'text' else 'form in UTF-8'}"
        raise BodyError(msg) from error
    if unwrap and media == "form" and isinstance(inner := value.get("payload"), str):
        return _json(inner.encode()), inner.encode()
    return value, orjson.dumps(value)


def _json(body: bytes) -> Any:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        msg = "the body is no JSON"
        raise BodyError(msg) from error
    if _is_deeper(value, MAX_DEPTH):
        msg = f"the body nests deeper than {MAX_DEPTH} levels"
        raise BodyError(msg)
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_is_deeper(each, levels - 1) for each in inner))


def _form(text: str) -> dict[str, str | list[str]]:
    """Return the fields of a form; one that is there more than once has a list."""
    fields: dict[str, list[str]] = {}
    for name, value in parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"):
        fields.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in fields.items()}
