"""Stores: the streams and buckets of a team, as the server knows them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from natterjack import subjects
from natterjack.bus import Bus
from natterjack.conversations import MAX_DAYS
from natterjack.schedules import delay_source, delay_stream
from natterjack.tickets import WAKES_STREAM

_DAY: Final = 86_400 * 10**9
_MINUTE: Final = 60 * 10**9
_GIB: Final = 1024**3
MAX_CONSUMERS: Final = 100_000
"""Of one stream; without a number of its own the server stops at 1,000, and one agent has one at least."""

_LOG: Final[dict[str, Any]] = {
    "storage": "file",
    "allow_direct": True,
    "discard": "new",
    "duplicate_window": 2 * _MINUTE,
}
_BUCKET: Final[dict[str, Any]] = {
    "storage": "file",
    "max_msgs_per_subject": 16,  # with less, paged snapshots lose keys under load [R8]
    "allow_direct": True,
    "deny_delete": True,
    "deny_purge": True,  # a rollup or purge of one's own key could erase the whole bucket
    "discard": "new",
}


_LIMITS: Final[dict[str, Any]] = {
    "subjects": [subjects.key(subjects.LIMITS_BUCKET, ">")],
    "storage": "memory",
    "max_msgs_per_subject": 1,
    "max_age": _DAY,
    "max_bytes": _GIB // 16,
    "discard": "new",  # what others have counted must not go
    "allow_direct": True,
}


_CONVERSATIONS: Final[dict[str, Any]] = {
    "subjects": [subjects.key(subjects.CONVERSATIONS_BUCKET, ">")],
    "storage": "file",
    "max_msgs_per_subject": 1,
    "max_age": MAX_DAYS * _DAY,
    "max_bytes": _GIB,  # then what nobody has gone on with for the longest is forgotten
    "allow_direct": True,
    "deny_delete": True,
    "deny_purge": True,
}


def _stored(root: str) -> dict[str, Any]:
    """A stream of what anybody publishes on `<root>.>`, stored and fed with the principal in its subject."""
    return _LOG | {
        "subjects": [f"{root}.>"],
        "subject_transform": {"src": f"{root}.>", "dest": f"stored.{root}.{subjects.ANYONE}.>"},
        "republish": {"src": f"stored.{root}.>", "dest": f"feed.{root}.>"},
        "max_age": 30 * _DAY,
        "max_bytes": 2 * _GIB,
        "max_consumers": MAX_CONSUMERS,
    }


def attested(stream: dict[str, Any]) -> dict[str, Any]:
    """Such a stream where principals have accounts: these put who publishes into the subject, which stays as it is."""
    (published,) = stream["subjects"]
    return stream | {"subjects": [published, f"stored.{published}"]}


def _objects(bucket: str, max_age: int) -> dict[str, Any]:
    """A bucket of the object store; its objects never change, so nothing needs a rollup or a purge."""
    return {
        "subjects": [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
        "storage": "file",
        "allow_direct": True,
        "discard": "old",
        "max_age": max_age,
        "max_bytes": 2 * _GIB,
        "deny_delete": True,
        "deny_purge": True,
    }


def context_stream(name: str = "", *, transactions: bool = True) -> tuple[str, dict[str, Any]]:
    """Return name and configuration of the stream behind a context's bucket.

    Args:
        name: The bucket's; empty for the main context.
        transactions: Whether it takes atomic batches. The server holds 50 of them at most, and what somebody begins
            and abandons counts for 10 s: so only where writers are trusted [R12].
    """
    bucket = subjects.context_bucket(name)
    keys = subjects.key(bucket, ">")
    republish = {"src": keys, "dest": subjects.feed_context(">", bucket)}
    own = {"subjects": [keys], "republish": republish, "allow_atomic": transactions}
    own |= {"max_bytes": _GIB // 4 if name else _GIB, "max_consumers": MAX_CONSUMERS}
    return subjects.bucket_stream(bucket), _BUCKET | own


_OPERATORS: Final = delay_stream(subjects.OPERATOR, (">",))  # who may emit any event, and so delay any
STREAMS: Final[dict[str, dict[str, Any]]] = (
    dict([_OPERATORS])
    | {
        subjects.EVENTS: _stored("events") | {"sources": [delay_source(_OPERATORS[0])]},
        subjects.MESSAGES: _stored("messages"),
        subjects.INBOX: _LOG
        | {
            "subjects": ["inbox.*.>"],
            "subject_transform": {"src": "inbox.*.>", "dest": f"stored.inbox.{{{{wildcard(1)}}}}.{subjects.ANYONE}.>"},
            "retention": "workqueue",
            "max_consumers": MAX_CONSUMERS,
            "max_age": 30 * _DAY,
            "max_bytes": _GIB,
            "max_msgs_per_subject": 100_000,
            "discard_new_per_subject": True,  # one dead agent cannot block the others
        },
        subjects.JOURNAL: _LOG
        | {
            "subjects": ["journal.*.*.*"],
            "republish": {"src": "journal.>", "dest": "feed.journal.>"},
            "discard": "old",
            "max_age": 30 * _DAY,
            "max_bytes": 4 * _GIB,
            "deny_delete": True,
            "deny_purge": True,
        },
        subjects.object_stream(subjects.JOURNAL_OBJECTS): _objects(subjects.JOURNAL_OBJECTS, 30 * _DAY),
        subjects.WAKES: _LOG | WAKES_STREAM | {"max_bytes": _GIB // 4, "max_consumers": MAX_CONSUMERS},
        subjects.AUDIT: _LOG
        | {
            "subjects": [subjects.audit("*", "*", "*")],
            "discard": "old",
            "max_age": 90 * _DAY,
            "max_bytes": _GIB,
            "max_msg_size": 16_384,
            "max_msgs_per_subject": 1_000,  # who writes down without end pushes out nothing but its own
            "deny_delete": True,
            "deny_purge": True,
        },
        subjects.DEAD: _LOG
        | {"subjects": ["dead.*.*"], "republish": {"src": "dead.>", "dest": "feed.dead.>"}, "max_bytes": _GIB},
        subjects.bucket_stream(subjects.LIMITS_BUCKET): _LIMITS,
        subjects.bucket_stream(subjects.CONVERSATIONS_BUCKET): _CONVERSATIONS,
        subjects.bucket_stream(subjects.TEAM_BUCKET): _BUCKET | {"subjects": [subjects.key(subjects.TEAM_BUCKET, ">")]},
    }
    | dict([context_stream()])
)
ATTESTED: Final = (subjects.EVENTS, subjects.MESSAGES, subjects.INBOX)
"""Streams of what principals publish by their names."""
REFUSED: Final = "natterjack.refused"
"""In a stream's metadata: who is refused there, because it has stored more than its share."""
SIZE: Final = "natterjack.size"
"""In the same place: how many bytes it may have, where not all of its room is open."""


BEAT: Final = 10.0
"""Seconds after which who enforces shares says again that it does."""


async def is_watched(bus: Bus) -> bool:
    """Tell whether somebody sees to it that nobody fills the streams for others."""
    key = subjects.key(subjects.TEAM_BUCKET, subjects.REFUSED_KEY)
    last = await bus.last(subjects.bucket_stream(subjects.TEAM_BUCKET), key)
    if last is None:
        return False
    told = datetime.fromisoformat((last.headers or {})["Nats-Time-Stamp"])
    return (datetime.now(UTC) - told).total_seconds() < 3 * BEAT


def noted(config: Mapping[str, Any], name: str) -> str:
    """Return what stands under a name in a stream's metadata; nothing where nobody wrote it."""
    return str((config.get("metadata") or {}).get(name, ""))


def is_opened(config: Mapping[str, Any], held: int) -> bool:
    """Tell whether somebody opens a stream's room step by step, so that a quarter to three quarters of it are open.

    Args:
        config: The stream's.
        held: Bytes in it.
    """
    left = int(noted(config, SIZE) or 0) - held
    return 0 < left // 4 <= int(config["max_bytes"]) - held <= left * 3 // 4
