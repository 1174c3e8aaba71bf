"""The event bus: events say what happened, messages go to a topic, and both are stored before `emit` returns."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from natterjack import codec, subjects
from natterjack.bus import Bus, Message, Place, Stored, Subscription
from natterjack.cloudevents import read_cloudevent, time_of
from natterjack.errors import (
    BrokerError,
    ConfigError,
    ConflictError,
    DisconnectedError,
    PayloadError,
    RefusedError,
)
from natterjack.guards import Guards
from natterjack.messages import Envelope, Event
from natterjack.rights import Verb
from natterjack.schedules import TARGET, held, seconds_of

log = logging.getLogger("natterjack.events")

MAX_LAG: Final = 10_000
"""Live events that may wait in a subscription before it ends with an error."""

_KEYS: Final = subjects.key("", "").removesuffix(".")
_MAIN: Final = subjects.key(subjects.CONTEXT_BUCKET, "")
_LONGEST_ID: Final = 128
_FIRST_MOMENT: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ID = re.compile(rf"[!-~]{{1,{_LONGEST_ID}}}\Z")


def read_event(message: Message, place: Place) -> tuple[Event, Envelope]:
    """Return the event in a stored message, or the one that a context's change is, and its envelope.

    Raises:
        PayloadError: Payload or header cannot be read.
    """
    when = datetime.fromtimestamp(place.time / 1e9, UTC)
    if message.subject.startswith(_KEYS):
        return _change(message, place.sequence, when)
    return _event(message, message.subject, place.sequence, when)


def _change(message: Message, sequence: int, when: datetime) -> tuple[Event, Envelope]:
    headers = message.headers or {}
    envelope = codec.unpack(headers.get(codec.HEADER))
    deleted = codec.is_deletion(headers)
    _, key = subjects.split_stored(message.subject)
    value = None if deleted else codec.decode(message.data)
    data = {"key": key, "value": value, "revision": sequence, "writer": envelope.source, "deleted": deleted}
    event = Event(event_id(message, sequence), key, data, envelope.source, when, sequence, headers=headers)
    return event, envelope._replace(revision=sequence if message.subject.startswith(_MAIN) else 0)


def payload_of(message: Message, place: Place) -> bytes:
    """Return what brings the event of a stored message again, from the inbox."""
    if message.subject.startswith(_KEYS):
        try:
            return codec.encode(read_event(message, place)[0].data)
        except PayloadError:  # as it will say there, too
            return message.data
    return message.data


def read_live(message: Message) -> Event:
    """Return the event in a live copy; one that cannot be read arrives as its bytes, decoded leniently."""
    return _lenient(message, message.subject)


def read_stored(message: Message) -> Event:
    """Return the event in a message that was got from its stream; leniently, too."""
    return _lenient(message, (message.headers or {})["Nats-Subject"])


def _lenient(message: Message, subject: str) -> Event:
    headers = message.headers or {}
    moment = headers.get("Nats-Time-Stamp", "")
    when = datetime.fromisoformat(moment) if moment else datetime.now(UTC)
    sequence = int(headers.get("Nats-Sequence", 0))
    try:
        return _event(message, subject, sequence, when)[0]
    except PayloadError:
        principal, kind = subjects.split_stored(subject)
        return Event(str(sequence), kind, message.data.decode(errors="replace"), principal, when, sequence, 1, headers)


Since = datetime | timedelta | int
"""Where a replay begins: at a time, so long ago, or at a stream sequence."""


def beginning(since: Since | None) -> tuple[int, datetime | None]:
    """Return the sequence, or the time in UTC, from which to read.

    Raises:
        ConfigError: The time has no zone.
    """
    if isinstance(since, timedelta):
        now = datetime.now(UTC)
        return 1, now - min(since, now - _FIRST_MOMENT)
    if isinstance(since, datetime):
        if since.tzinfo is None:
            msg = f"{since!r} has no time zone; write e.g. datetime(2026, 11, 22, 10, tzinfo=UTC)"
            raise ConfigError(msg)
        return 1, since.astimezone(UTC)
    return max(1, since or 1), None


def authored(id: str, principal: str) -> str:
    """Return an id that is of one principal alone, if the broker attests principals: nobody takes another's."""
    return id if principal in ("", subjects.ANYONE) else f"{principal}\n{id}"


def identity_of(message: Message, sequence: int) -> str:
    """Return what no other event of its stream has: where authors are attested, none but its author can make it."""
    # No header begins with a line break: an event of the id "42" is not taken for number 42, which has none.
    identity = codec.id_in(message.headers or {}) or f"\n{sequence}"
    return authored(identity, subjects.split_stored(message.subject)[0])


def event_id(message: Message, sequence: int) -> str:
    """Return the deduplication id of an event, else its sequence; one of extreme length goes by its digest."""
    return _id_in(message.headers or {}, sequence)


def _id_in(headers: Mapping[str, str], sequence: int) -> str:
    return bounded(codec.id_in(headers)) or str(sequence)


def bounded(id: str) -> str:
    """Return an id, which travels on as a cause in headers, of which the server takes 64 KiB; a long one's digest."""
    return id if len(id) <= _LONGEST_ID else hashlib.blake2b(id.encode(), digest_size=16).hexdigest()


def _event(message: Message, subject: str, sequence: int, when: datetime) -> tuple[Event, Envelope]:
    headers = message.headers or {}
    envelope = codec.unpack(headers.get(codec.HEADER))
    principal, kind = subjects.split_stored(subject)
    source = envelope.source if principal == subjects.ANYONE else principal
    # Ours have an envelope and an id, and no more: they need not be looked at for what strangers' may have.
    if headers and (len(headers) > 2 or codec.HEADER not in headers):
        found = read_cloudevent(headers, message.data)
        if found is not None:
            given, data = found
            when, source = time_of(given) or when, source or given["ce-source"]
            return Event(
                bounded(given["ce-id"]), kind, data, source, when, sequence, headers={**headers, **given}
            ), envelope
    data = codec.decode(message.data)
    return Event(_id_in(headers, sequence), kind, data, source, when, sequence, 1, headers), envelope


class EventBus:
    """Emits events and publishes messages as one principal.

    Args:
        bus: Its connection.
        guards: Asked before anything is sent.
        revision: Returns the context revision to carry along [R7].
        awaited: Patterns of events that the team waits for; emitting another logs one line.
        delays: Patterns of events that may be emitted with a delay.
    """

    def __init__(
        self,
        bus: Bus,
        guards: Guards,
        revision: Callable[[], int] = lambda: 0,
        awaited: Sequence[str] | None = None,
        delays: Sequence[str] = (">",),
    ) -> None:
        self._bus, self._guards, self._revision = bus, guards, revision
        self.awaited, self._heard, self._delays = awaited, set[str](), delays

    async def emit(
        self, type: str, data: Any = None, *, id: str | None = None, delay: float | timedelta | None = None
    ) -> int:
        """Store an event and return its stream sequence.

        Args:
            type: What happened, e.g. `research.complete`.
            data: JSON data.
            id: Deduplication id: an event of this id that is already stored is not stored again.
            delay: Seconds until it happens, by this machine's clock. Until then the broker holds it, whatever becomes
                of this process; the sequence is that of where it is held.

        Raises:
            ConfigError: It is no delay.
            InvalidNameError: The type is malformed.
            PayloadError: The data cannot be sent.
            RefusedError: A guard or the broker refuses.
            ConflictError: The id belongs to another event.
            StreamError: The stream is full; nothing was dropped.
        """
        return (await self.send("emit", type, data, Envelope(), id, delay=delay)).sequence

    async def publish(self, topic: str, data: Any = None, *, id: str | None = None) -> int:
        """Store a message for a topic and return its stream sequence; arguments and errors as for `emit`."""
        return (await self.send("publish", topic, data, Envelope(), id)).sequence

    async def send(
        self,
        verb: Verb,
        kind: str,
        data: Any,
        envelope: Envelope,
        id: str | None,
        *,
        delay: float | timedelta | None = None,
        repeats: bool = False,
    ) -> Stored:
        """Store an event (`emit`), a message (`publish`) or one agent's event (`inject`, `<agent>.<type>`).

        Arguments and errors as for `emit`; what `repeats` an earlier try may have other data, and that one stands.
        """
        subjects.check_type(kind, "topic" if verb == "publish" else "event type")
        if id is not None and not _ID.match(id):
            msg = f"{id!r} is no valid event id: use 1 to 128 printable ASCII characters without blanks"
            raise PayloadError(msg)
        self._guards.check(self._bus.principal, verb, kind)
        if verb == "emit" and self.awaited is not None and kind not in self._heard:
            self._note_unheard(kind, self.awaited)
        root, stream = _PLACES[verb]
        subject, payload = f"{root}.{kind}", codec.encode(data)
        envelope = envelope._replace(source=self._bus.principal, revision=self._revision())
        headers = {codec.HEADER: codec.pack(envelope)}
        if delay and (seconds := seconds_of(delay)):
            return await self._hold(kind, payload, headers, id or self._bus.new_id(), seconds, repeats=repeats)
        sealed = id
        if id is not None and self._bus.server.attests:
            sealed, headers[codec.EVENT_ID] = self._bus.seal(id), id
        stored = await self._bus.store(subject, payload, headers=headers, id=sealed)
        if stored.duplicate and id is not None:
            await self._check_ours(stream, stored, subject, None if repeats else payload, id)
        return stored

    async def _hold(
        self, kind: str, payload: bytes, headers: dict[str, str], id: str, seconds: float, *, repeats: bool
    ) -> Stored:
        """Have the broker hold an event until it is due; one of this id that it holds already stays as it is."""
        principal = self._bus.principal
        if not any(subjects.matches(pattern, kind) for pattern in self._delays):
            msg = f"{principal!r} may not emit {kind!r} with a delay: add it to `delays` of its table, then provision"
            raise RefusedError(msg)
        subject, more = held(principal, kind, id, seconds)
        stream = subjects.delay_stream(principal)
        try:
            stored = await self._bus.store(subject, payload, headers=headers | more, id=id, expect=0, stream=stream)
        except ConflictError:
            stored = Stored(0, duplicate=True)
        if stored.duplicate and (found := await self._bus.last(stream, subject)) is not None:
            there = found.headers or {}
            stored = Stored(int(there["Nats-Sequence"]), duplicate=True)
            if there.get(TARGET) != more[TARGET] or not (repeats or found.data == payload):
                msg = f"id {id!r} already belongs to another event that {principal!r} emitted with a delay"
                raise ConflictError(msg)
        return stored

    def _note_unheard(self, kind: str, awaited: Sequence[str]) -> None:
        self._heard.add(kind)
        if not any(subjects.matches(pattern, kind) for pattern in awaited):
            log.info("%s emits %r, which no agent of the team waits for", self._bus.principal, kind)

    async def _check_ours(
        self, stream: str, stored: Stored, subject: str, payload: bytes | None, event_id: str
    ) -> None:
        """Deduplication ids are stream-wide: make sure that the stored message is this one [R6].

        Where the broker attests authors, the id is this one's in any case, and the last of its own on this subject is
        all that it may read: one that came after it, or was handled and is gone, is not compared.
        """
        place, attested = subjects.stored_as(subject, self._bus.author), self._bus.server.attests
        found = await (self._bus.last(stream, place) if attested else self._bus.at(stream, stored.sequence))
        headers = (found and found.headers) or {}
        sequence = int(headers.get("Nats-Sequence", 0))
        if sequence != stored.sequence and (not attested or stream == subjects.INBOX or sequence > stored.sequence):
            return
        source = codec.unpack(headers.get(codec.HEADER)).source
        same = headers.get("Nats-Subject") == place and found and payload in (None, found.data)
        if not same or sequence != stored.sequence or source != self._bus.principal:
            msg = f"id {event_id!r} already belongs to another event (sequence {stored.sequence}, from {source!r})"
            raise ConflictError(msg)

    def subscribe(self, pattern: str = ">") -> LiveEvents:
        """Return an async iterator of events as they happen. `async with` it to be sure when it begins.

        Raises:
            PatternError: The pattern is malformed.
        """
        return LiveEvents(self._bus, subjects.feed_events(subjects.check_pattern(pattern)))

    async def replay(self, pattern: str = ">", *, since: Since | None = None) -> AsyncIterator[Event]:
        """Yield the stored events that match a pattern, oldest first, until those of now.

        Args:
            pattern: Of their types.
            since: From when on: an aware `datetime`, a `timedelta` ago, or a stream sequence (no number of
                seconds); None: all there are.

        Raises:
            PatternError: The pattern is malformed.
            ConfigError: The time has no zone.
            RefusedError: A guard or the broker refuses.
        """
        self._guards.check(self._bus.principal, "replay", subjects.check_pattern(pattern))
        start, moment = beginning(since)
        async for message in self._bus.read(
            subjects.EVENTS, subjects.stored_events(pattern), start=start, since=moment
        ):
            yield read_stored(message)

    def subscribe_topic(self, pattern: str = ">") -> LiveEvents:
        """Return an async iterator of messages as they are published.

        Raises:
            PatternError: The pattern is malformed.
        """
        return LiveEvents(self._bus, subjects.feed_messages(subjects.check_pattern(pattern)))


_PLACES: Final[dict[Verb, tuple[str, str]]] = {
    "emit": ("events", subjects.EVENTS),
    "publish": ("messages", subjects.MESSAGES),
    "inject": ("inbox", subjects.INBOX),
}


class LiveEvents:
    """An async iterator and context manager over a live feed.

    Iterating raises `BrokerError` when the reader fell 10,000 events behind and missed some, `DisconnectedError` when
    the connection is gone for good, and `RefusedError` when the broker does not allow it.
    """

    def __init__(self, bus: Bus, subject: str) -> None:
        self._bus, self._subject = bus, subject
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(MAX_LAG)
        self._subscription: Subscription | None = None
        self._missed = self._ended = False

    async def __aenter__(self) -> Self:
        self._ended = False
        if self._subscription is None:
            self._subscription = await self._bus.subscribe(self._subject, self._receive, on_lost=self._lost)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it; an iteration that waits ends, too."""
        self._ended = True
        self._wake()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._ended:
            raise StopAsyncIteration
        await self.__aenter__()
        if self._missed and self._queue.empty():
            await self.aclose()
            if self._bus.closed.is_set():
                raise DisconnectedError(self._bus.reason)
            msg = f"this subscription to {self._subject!r} fell {MAX_LAG:,} events behind and missed some; read faster"
            raise BrokerError(msg)
        event = await self._queue.get()
        if event is None:
            return await self.__anext__()
        return event

    async def _receive(self, message: Message) -> None:
        if self._missed:
            return
        try:
            self._queue.put_nowait(read_live(message))
        except asyncio.QueueFull:
            self._missed = True

    def _lost(self) -> None:
        self._missed = True
        self._wake()

    def _wake(self) -> None:
        if self._queue.empty():
            self._queue.put_nowait(None)
