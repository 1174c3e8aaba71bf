"""Schedules: what the broker's own clock brings, whoever is there by then (ADR-51).

An event that is emitted with a delay is held in a small stream of its principal's. When it is due, the broker stores it
there once more, under its type, and EVENTS takes it from there. Whoever may write schedules to a stream can make the
server publish on any subject of it, or cancel what others have there: therefore a stream each, whose subjects are the
types that its principal may delay, and nothing else [R13].
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from natterjack import codec, subjects
from natterjack.errors import ConfigError

MAX_DELAY: Final = 3650 * 86_400.0
"""Seconds by which an event can be delayed."""
WHEN: Final = "Nats-Schedule"
TARGET: Final = "Nats-Schedule-Target"

_TTL: Final = "Nats-Schedule-TTL"
_KEPT: Final = "168h"
"""How long what is due stays in its first stream: while EVENTS is full, it waits there."""


def seconds_of(delay: float | timedelta) -> float:
    """Return a delay in seconds.

    Raises:
        ConfigError: It is negative, or longer than ten years.
    """
    seconds: object = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_DELAY:
        msg = f"{delay!r} is no delay; give seconds from 0 to {MAX_DELAY:,.0f} (ten years), or a timedelta"
        raise ConfigError(msg)
    return seconds


def moment(at: float) -> str:
    """Return a time in Unix seconds as the server reads it, rounded up to a microsecond."""
    return datetime.fromtimestamp(math.ceil(at * 1e6) / 1e6, UTC).isoformat().replace("+00:00", "Z")


def held(principal: str, kind: str, id: str, seconds: float) -> tuple[str, dict[str, str]]:
    """Return where an event is published that is due in so many seconds, and what its headers say about that."""
    name = hashlib.blake2b(id.encode(), digest_size=12).hexdigest()
    headers = {
        WHEN: f"@at {moment(time.time() + seconds)}",
        TARGET: subjects.due(principal, kind),
        _TTL: _KEPT,
        codec.EVENT_ID: id,  # the server takes the deduplication id away when it is due
    }
    return subjects.delay(principal, name), headers


def delay_stream(principal: str, patterns: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """Return name and configuration of the stream that holds a principal's delayed events, of these types."""
    return subjects.delay_stream(principal), {
        "subjects": [subjects.delay(principal), *(subjects.due(principal, each) for each in subjects.widest(patterns))],
        "storage": "file",
        "allow_msg_schedules": True,
        "allow_msg_ttl": True,
        "allow_direct": True,
        "discard": "old",  # the server allows no other; there is no limit by which anything would be
        "duplicate_window": 120 * 10**9,
    }


def delay_source(stream: str) -> dict[str, Any]:
    """Return how EVENTS takes what is due, the same for all types: after a change the server takes all of it again."""
    principal = stream.removeprefix(subjects.delay_stream(""))
    transform = {"src": subjects.due(principal, ">"), "dest": subjects.stored_events(">", subjects.ANYONE)}
    return {"name": stream, "subject_transforms": [transform]}
