"""Server-sent events (WHATWG HTML, section 9.2): a name, and JSON as data, so that no text can break its line."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Final

import orjson

MEDIA: Final = "text/event-stream"
ASKED, CHUNK, DONE, PROBLEM = "asked", "chunk", "done", "problem"
"""Names: the id by which it can be cancelled; a part of the answer; its end; why there is none."""
KEEP_ALIVE: Final = b": still at work\n\n"
"""A comment, for proxies that close what is silent."""
MAX_EVENT: Final = 16_000_000
"""Bytes of one event."""


_BREAKS: Final = {char.encode(): f"\\u{ord(char):04x}".encode() for char in "\x85\u2028\u2029"}
"""What ends no line of a stream, but does for readers that split as Python does, httpx among them."""


def write(name: str, data: Any) -> bytes:
    """Return an event."""
    content = orjson.dumps(data)
    for character, escaped in _BREAKS.items():
        content = content.replace(character, escaped)
    return b"event: %s\ndata: %s\n\n" % (name.encode(), content)


async def read(stream: AsyncIterable[bytes]) -> AsyncIterator[tuple[str, Any]]:
    """Yield name and data of each event that `write` made, comments left out.

    Raises:
        ValueError: It is none, or too long.
    """
    kept = b""
    async for part in stream:
        *events, kept = (kept + part.replace(b"\r\n", b"\n")).split(b"\n\n")
        for event in events:
            fields = dict(_field(line) for line in event.split(b"\n"))
            if b"data" in fields:
                yield fields.get(b"event", b"message").decode(), orjson.loads(fields[b"data"])
        if len(kept) > MAX_EVENT:
            msg = f"an event has more than {MAX_EVENT:,} bytes"
            raise ValueError(msg)


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name, value.removeprefix(b" ")
