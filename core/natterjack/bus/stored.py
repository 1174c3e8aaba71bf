"""What a stream answers to a publish."""

from __future__ import annotations

from typing import Final, NamedTuple

import orjson

from natterjack.bus.headers import encode
from natterjack.bus.mailbox import NO_RESPONDERS, Message, status_of
from natterjack.errors import (
    BrokerError,
    ConflictError,
    DisconnectedError,
    NoRespondersError,
    RequestTimeoutError,
    StreamError,
)

AWAY: Final = (RequestTimeoutError, DisconnectedError, NoRespondersError)
"""What a store meets while its server is away, or its stream's leader is being elected: it is tried again."""

REPLY: Final = 5.0
"""Seconds a server has to acknowledge one try."""

EXPECT: Final = "Nats-Expected-Last-Subject-Sequence"
WRONG_LAST: Final = (10071, 10164)

_NOT_YET: Final = (10158, 10167)
"""A try before this one is not yet on enough servers of a cluster; or more was sent than the stream can take in."""
_STORE_FAILED: Final = 10077


class Stored(NamedTuple):
    """The server's acknowledgement of a store.

    Attributes:
        sequence: Sequence in its stream.
        duplicate: Whether the stream already had a message of this id.
    """

    sequence: int
    duplicate: bool


def is_full(error: Exception) -> bool:
    """Tell whether a stream refused something because it has no room for more bytes."""
    return isinstance(error, StreamError) and error.code == _STORE_FAILED and "bytes" in error.description


def expecting(last: int) -> bytes:
    """Return the header block of a publish that shall be stored only if its subject has this last sequence."""
    return encode({EXPECT: str(last)})


def stored(subject: str, reply: Message) -> Stored:
    """Read what a stream answered to a publish.

    Raises:
        NoRespondersError: No stream captures the subject, or its leader is being elected.
        RequestTimeoutError: It is to be tried again: see `_NOT_YET`.
        ConflictError: An expectation did not hold.
        StreamError: The stream refuses.
        BrokerError: Somebody else answered.
    """
    if not reply.data and status_of(reply) == NO_RESPONDERS:
        raise NoRespondersError(subject)
    try:
        ack = orjson.loads(reply.data)
        problem = ack.get("error")
        if problem is None:
            return Stored(int(ack["seq"]), bool(ack.get("duplicate", False)))
        refusal = StreamError.read(problem, subject)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        msg = f"{subject!r} is answered by somebody else than JetStream: {reply.data[:80]!r}"
        raise BrokerError(msg) from error
    if refusal.code in WRONG_LAST:
        msg = f"{subject!r} was written by somebody else meanwhile ({refusal.description})"
        raise ConflictError(msg)
    if refusal.code in _NOT_YET:
        raise RequestTimeoutError(subject, REPLY)
    raise refusal
