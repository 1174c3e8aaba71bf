"""Schedules: what the broker's own clock brings, whoever is there by then (ADR-51).

An event that is emitted with a delay is held in a small stream of its principal's. When it is due, the broker stores it
there once more, under its type, and EVENTS takes it from there. Whoever may write schedules to a stream can make the
server publish on any subject of it, or cancel what others have there: therefore a stream each, whose subjects are the
types that its principal may delay, and nothing else [R13]. The schedules of triggers stand in one stream, because only
provisioning writes there.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from natterjack import codec, subjects
from natterjack.bus import Bus, Message
from natterjack.errors import ConfigError, InvalidNameError, NotProvisionedError, StreamError
from natterjack.messages import Firing, Schedule
from natterjack.specs import ScheduleSpec

MAX_DELAY: Final = 3650 * 86_400.0
"""Seconds by which an event can be delayed."""
MAX_HELD: Final = 128 * 1024**2
"""Bytes of events that one principal may have held: of more, the oldest would go, which are its own."""
WHEN: Final = "Nats-Schedule"
TARGET: Final = "Nats-Schedule-Target"
ZONE: Final = "Nats-Schedule-Time-Zone"
OLDEST: Final = (2, 14)
"""The oldest nats-server that knows more of schedules than `@at`."""

SCHEDULES_STREAM: Final[dict[str, Any]] = {
    "subjects": [subjects.schedule("*", "*"), subjects.fired("*", "*")],
    "storage": "file",
    "allow_msg_schedules": True,
    "allow_direct": True,
    "discard": "old",
    "max_msgs_per_subject": 1000,  # firings that nobody takes; a schedule replaces the one before it
    "duplicate_window": 120 * 10**9,
}

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
        "discard": "old",  # the server allows no other
        "max_bytes": MAX_HELD,
        "duplicate_window": 120 * 10**9,
    }


def delay_source(stream: str, *, attested: bool = False) -> dict[str, Any]:
    """Return how EVENTS takes what is due, the same for all types: after a change the server takes all of it again.

    Args:
        stream: Where a principal's delayed events are.
        attested: Whether nobody else can publish there, so that the principal is known.
    """
    principal = stream.removeprefix(subjects.delay_stream(""))
    author = principal if attested else subjects.ANYONE
    transform = {"src": subjects.due(principal, ">"), "dest": subjects.stored_events(">", author)}
    return {"name": stream, "subject_transforms": [transform]}


# The schedules of triggers


def _headers_of(spec: ScheduleSpec) -> dict[str, str]:
    zone = {ZONE: spec.zone} if spec.zone else {}
    return {WHEN: spec.when, TARGET: subjects.fired(spec.agent, spec.name), **zone}


def check_version(bus: Bus, specs: Iterable[ScheduleSpec]) -> None:
    """Raise `ConfigError` if there are schedules, and the server is older than they are."""
    agents = sorted({spec.agent for spec in specs})
    if agents and bus.version < OLDEST:
        runs, wanted = (".".join(map(str, version)) for version in (bus.version, OLDEST))
        msg = (
            f"{bus.server} runs nats-server {runs}, but {', '.join(map(repr, agents))} is to be woken by the"
            f" server's own clock: that needs {wanted} or newer"
        )
        raise ConfigError(msg)


async def write(bus: Bus, spec: ScheduleSpec) -> str:
    """Write a schedule as provisioning does, and return `kept`, `created` or `updated`.

    One that is there and equal stays, so that an interval goes on; what has fired at its one moment is over.

    Raises:
        ConfigError: The server cannot read it.
    """
    subject, headers = subjects.schedule(spec.agent, spec.name), _headers_of(spec)
    found = await bus.last(subjects.SCHEDULES, subject)
    if found is not None and _told(found.headers or {}) == headers:
        return "kept"
    if spec.when.startswith("@at ") and await bus.last(subjects.SCHEDULES, headers[TARGET]) is not None:
        return "kept"
    try:
        await bus.store(subject, b"", headers=headers)
    except StreamError as error:
        zone = f" in {spec.zone}" if spec.zone else ""
        msg = f"the server takes no schedule {spec.when!r}{zone} for {spec.agent!r}: {error.description}"
        raise ConfigError(msg) from error
    return "updated" if found is not None else "created"


def _told(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in (WHEN, TARGET, ZONE) if name in headers}


async def remove_others(bus: Bus, wanted: Iterable[ScheduleSpec]) -> list[str]:
    """Remove the schedules that no trigger wants any more, and what they fired; return them as `<agent>.<trigger>`."""
    kept = {subject for spec in wanted for subject in (subjects.schedule(spec.agent, spec.name), spec.consumer.filter)}
    try:
        found = await bus.subjects_in(subjects.SCHEDULES, ">")
    except NotProvisionedError:
        return []
    others = sorted(set(found) - kept)
    for subject in others:
        await bus.api(f"STREAM.PURGE.{subjects.SCHEDULES}", {"filter": subject})
    return [subject.partition(".")[2] for subject in others if subject.count(".") == 2]


# Looking, and cancelling


def read_firing(headers: Mapping[str, str], time: datetime, sequence: int, *, missed: bool = False) -> Firing:
    """Return what the headers of a message say that the broker has put there."""
    next = headers.get("Nats-Schedule-Next", "purge")
    return Firing(sequence, time, None if next == "purge" else datetime.fromisoformat(next), missed)


def _stored(message: Message) -> tuple[Mapping[str, str], datetime]:
    headers = message.headers or {}
    return headers, datetime.fromisoformat(headers["Nats-Time-Stamp"])


def _read(message: Message) -> Schedule:
    headers, since = _stored(message)
    _, owner, name = headers["Nats-Subject"].split(".")
    event = headers.get(TARGET, "").removeprefix(subjects.due(owner, ""))
    kind = "" if event == subjects.fired(owner, name) else event
    return Schedule(owner, name, headers.get(WHEN, ""), headers.get(ZONE, ""), since, kind)


async def schedule(bus: Bus, agent: str, name: str) -> Schedule | None:
    """Return how a trigger's schedule stands; None: there is none, or it has fired at its one moment.

    Raises:
        NotProvisionedError: No trigger of the team has any.
    """
    found = await bus.last(subjects.SCHEDULES, subjects.schedule(agent, name))
    return None if found is None else await _with_last(bus, _read(found))


async def _with_last(bus: Bus, schedule: Schedule) -> Schedule:
    found = await bus.last(subjects.SCHEDULES, subjects.fired(schedule.owner, schedule.name))
    if found is None:
        return schedule
    headers, time = _stored(found)
    return replace(schedule, last=read_firing(headers, time, int(headers["Nats-Sequence"])))


async def schedules(bus: Bus) -> list[Schedule]:
    """Return all that the broker will do: the triggers' schedules, and the events that are held.

    Raises:
        NotProvisionedError: The team has not been provisioned.
    """
    found: list[Schedule] = []
    for stream in sorted(await bus.streams(subjects.schedule("*", "*"))):
        found += [await _with_last(bus, _read(each)) async for each in bus.read(stream, subjects.schedule("*", "*"))]
    for stream in sorted(await bus.streams(subjects.delay("*"))):
        found += [_read(each) async for each in bus.read(stream, subjects.delay("*"))]
    return found


async def cancel(bus: Bus, owner: str, name: str) -> None:
    """Remove a trigger's schedule until the next provisioning, or an event that is held.

    Raises:
        InvalidNameError: It is no name.
        NotProvisionedError: There is none of this name.
    """
    kind, full = "schedule", f"{owner}.{name}".rstrip(".")
    if not owner or not name or set(owner + name) & set("*> ."):
        raise InvalidNameError(kind, full, "write it as `natterjack schedule list` shows it")
    places = (
        (subjects.SCHEDULES, subjects.schedule(owner, name)),
        (subjects.delay_stream(owner), subjects.delay(owner, name)),
    )
    for stream, subject in places:
        try:
            if (await bus.api(f"STREAM.PURGE.{stream}", {"filter": subject}))["purged"]:
                return
        except NotProvisionedError:
            continue
    what = f"a schedule {full}"
    raise NotProvisionedError(what, "`natterjack schedule list` shows what there is.")
