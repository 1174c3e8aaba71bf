"""What both sides of an ask agree on: codes, limits, and the messages of a streamed answer.

Streamed asks follow the Synadia Agent Protocol 0.3. A request is text, or JSON with `prompt` and `attachments`
(section 5). The answer comes as JSON objects of `type` and `data`: first `status` `ack`, then `response` with text,
`query` for a question to the asker, `ack` again when nothing else was said for long; an error as headers; and last
an empty message without headers (sections 6 to 9). Types that one does not know are skipped; one is our own: `flow`
asks a Natterjack asker to say when it has read so far, on the subject that the `Natterjack` header of the first `ack`
tells (`agents.answer.<agent>.<q>`).
"""

from __future__ import annotations

import binascii
import os
import re
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson

from natterjack import codec, subjects
from natterjack.bus import FAR
from natterjack.errors import PayloadError
from natterjack.messages import Attachment, Envelope

MAX_DEPTH: Final = 16
"""How many events and asks may lead to one another before it is called a loop."""
ASK_TIMEOUT: Final = 60.0
LONGEST: Final = 86_400.0
"""Seconds one ask may take, whatever its header says."""

DRAINING: Final = 503
"""Code of an agent that is about to stop: another replica may answer."""
CANCELLED: Final = 499
EXPIRED: Final = 408
LATE: Final = "no answer within the deadline"

ACK: Final = b'{"type":"status","data":"ack"}'
FLOW: Final = b'{"type":"flow"}'
READ: Final = b"read"
"""What an asker sends once it has read up to a `flow`."""
TERMINATOR: Final = b""
_NO_SUBJECT: Final = re.compile(r"[*> \t\r\n]")


class Prompt(NamedTuple):
    """What is asked."""

    text: str
    attachments: Sequence[Attachment] = ()


@dataclass(frozen=True, slots=True)
class QueryChunk:
    """A question in the middle of an answer, and where its answer is awaited."""

    id: str
    reply_subject: str
    prompt: str


def write_prompt(text: str) -> bytes:
    """Return a request, or the answer to a query."""
    return orjson.dumps({"prompt": text})


def read_prompt(data: bytes) -> Prompt:
    """Read a request, or the answer to a query; fields it does not know are left alone.

    Raises:
        PayloadError: It is empty, not UTF-8, or its JSON is not a request.
    """
    if not data:
        msg = "the request is empty; send text, or JSON with 'prompt'"
        raise PayloadError(msg)
    if not data.lstrip(b" \t\r\n").startswith(b"{"):
        return Prompt(codec.decode_text(data))
    body = codec.decode(data)
    if not isinstance(body, dict) or not isinstance(body.get("prompt"), str):
        msg = 'the request starts like JSON and is none with a text \'prompt\', e.g. {"prompt": "hello"}'
        raise PayloadError(msg)
    attachments = body.get("attachments")
    return Prompt(body["prompt"], () if attachments is None else _read_attachments(attachments))


def _read_attachments(given: Any) -> tuple[Attachment, ...]:
    try:
        return tuple(_read_attachment(each["filename"], each["content"]) for each in given)
    except (TypeError, LookupError, ValueError, binascii.Error) as error:
        msg = "the attachments cannot be read; each is an object with 'filename' and 'content', standard base64"
        raise PayloadError(msg) from error


def _read_attachment(filename: object, content: object) -> Attachment:
    if not isinstance(filename, str) or not isinstance(content, str):
        raise TypeError
    return Attachment(filename, b64decode(content, validate=True))


def write_response(text: str) -> bytes:
    """Return a chunk of an answer."""
    return orjson.dumps({"type": "response", "data": text})


def write_query(query: QueryChunk) -> bytes:
    """Return a question to the asker."""
    return orjson.dumps({"type": "query", "data": query})


def read_chunk(data: bytes) -> str | QueryChunk | None:
    """Return the text of a chunk, or a query, or None for all else, such as an ack.

    Raises:
        PayloadError: It is no chunk.
    """
    body = codec.decode(data)
    kind, content = (body.get("type"), body.get("data")) if isinstance(body, dict) else (None, None)
    if kind == "response":
        content = content.get("text") if isinstance(content, dict) else content
        if isinstance(content, str):
            return content
    elif kind == "query":
        names = ("id", "reply_subject", "prompt")
        fields = [str(content[name]) for name in names if isinstance(content, dict) and name in content]
        if len(fields) == len(names):
            return QueryChunk(*fields)
    elif isinstance(kind, str):
        return None
    msg = f"{data[:100]!r} is no chunk of the agent protocol"
    raise PayloadError(msg)


def may_reply(subject: str, agent: str = "") -> bool:
    """Tell whether a stranger may make us send to a subject: to an inbox, or where an agent hears answers."""
    own = subjects.answer(agent, "") if agent else "_INBOX."
    return subject.startswith(("_INBOX.", FAR, own)) and not _NO_SUBJECT.search(subject)


def random_ids(size: int = 16) -> Iterator[str]:
    """Yield ids of so many random bytes, without end. The system is asked for many at once, at a tenth of the cost."""
    while True:
        digits = os.urandom(size * 256).hex()
        yield from (digits[at : at + 2 * size] for at in range(0, len(digits), 2 * size))


def loop_message(envelope: Envelope) -> str:
    """Return what to say about an envelope that is too deep."""
    return (
        f"{envelope.depth} events and asks led to one another, more than {MAX_DEPTH}: this looks like a loop; "
        f"the last cause was {envelope.cause!r}"
    )
