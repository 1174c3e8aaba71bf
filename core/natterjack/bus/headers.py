"""Header blocks, as they stand before a payload; nats-py's writer and reader of them cost more than all the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from natterjack import codec
from natterjack.errors import PayloadError
from natterjack.messages import Envelope

_LINE: Final = "NATS/1.0"
_OURS: Final = f"{_LINE}\r\n{codec.HEADER}: "
_NAME: Final = re.compile(r"[!-9;-~]+\Z")
_BREAKS: Final = re.compile(r"[\r\n]+")


def encode(headers: Mapping[str, str] | None) -> bytes:
    """Return the block of some headers, empty for none. A line break in a value becomes a space.

    Raises:
        PayloadError: A name has other characters than a header's may have.
    """
    if not headers:
        return b""
    lines = [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join(lines)
    if text.count("\r") >= len(lines) or text.count("\n") >= len(lines) or not _are_names(*headers):
        text = "\r\n".join(_safe(name, value) for name, value in headers.items())
    return f"NATS/1.0\r\n{text}\r\n\r\n".encode(errors="replace")


@lru_cache
def _are_names(*names: str) -> bool:
    """Tell whether headers may have these names; few sets of them occur."""
    return all(map(_NAME.match, names))


def _safe(name: str, value: str) -> str:
    if not _NAME.match(name):
        msg = f"{name!r} cannot be the name of a header; use letters, digits and '-'"
        raise PayloadError(msg)
    return f"{name}: {_BREAKS.sub(' ', value)}"


def of_envelope(envelope: Envelope) -> bytes:
    """Return the block of the one header of an envelope, which never needs a second look."""
    return f"{_OURS}{codec.pack(envelope)}\r\n\r\n".encode(errors="replace")


def decode(block: bytes) -> dict[str, str] | None:
    """Return the headers of a block, the last of each name, or None for none; no bytes are too bad.

    A status that the server put in place of a payload is the header `Status`, its text `Description`.
    """
    text = block.decode("utf-8", "replace")
    if text.startswith(_OURS):
        value, _, others = text[len(_OURS) :].partition("\r\n")
        if others == "\r\n":  # most often there are none
            return {codec.HEADER: value.strip()}
    first, *lines = text.split("\r\n")
    headers = {}
    if len(first) > len(_LINE):
        status = first[len(_LINE) :].strip()
        if status[:3].isdigit():
            headers["Status"] = status[:3]
        if status[3:]:
            headers["Description"] = status[3:].strip()
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip()] = value.strip()
    return headers or None
