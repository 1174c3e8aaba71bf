"""Holdings: who stored how much in a stream."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from natterjack.bus import Bus, Message
from natterjack.cli.places import Place
from natterjack.stores import REFUSED, SIZE, is_opened, noted

SHARE: Final = 0.25
"""Part of a stream, or of the room that it has left, that a principal may store in an hour."""
MOST: Final = 0.5
"""Part of a stream that a principal may hold, where nothing makes room."""
_HOUR, _MINUTE = 3600, 60
_PAGE: Final[dict[str, Any]] = {"next_by_subj": ">", "batch": 512, "max_bytes": 4 * 1024**2}
_SLICE: Final = 0.5
"""Seconds that are read at most in one look: other streams are to be looked at, too."""
_REST: Final = 5
"""Times as long as the reading of a whole stream took, until it is read again."""
_OF_THE_ANSWER: Final = frozenset(
    ("Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence")
)


@dataclass(frozen=True, slots=True)
class Store:
    """A stream as it was looked at.

    Attributes:
        name: Its name.
        config: Its configuration.
        held: Bytes in it.
        stored: Bytes that each principal stored in the last hour, by name; of a stream whose messages go, or are
            replaced, only what is still there.
        total: Bytes that each principal has there; where the oldest make room, of the last hour as well.
        complete: Whether all was read by now; otherwise it is that much at least.
    """

    name: str
    config: dict[str, Any]
    held: int
    stored: Counter[str]
    total: Counter[str]
    complete: bool

    @property
    def size(self) -> int:
        """Bytes that it may have when all of its room is open; 0: any number."""
        return max(0, int(self.config["max_bytes"]), int(noted(self.config, SIZE) or 0))

    @property
    def makes_room(self) -> bool:
        """Whether the oldest go when it is full."""
        return bool(self.config["discard"] == "old")

    @property
    def is_log(self) -> bool:
        """Whether what is stored stays for a time, and no later message takes its place."""
        return bool(self.config["retention"] == "limits" and self.config["max_msgs_per_subject"] <= 0)

    @property
    def open(self) -> int:
        """Bytes that it is to take by now: half of the room that is left, so that no flood is too quick for a look."""
        if not self.size or self.makes_room or is_opened(self.config, self.held):
            return int(self.config["max_bytes"])
        left = self.size - self.held
        return self.size if left < self.size // 64 else self.held + left // 2

    @property
    def allowed(self) -> float:
        """Bytes that a principal may store in an hour."""
        if not self.size:
            return math.inf
        return SHARE * (self.size if self.makes_room else max(0, self.size - self.held))

    @property
    def refused(self) -> list[str]:
        """Who is refused there."""
        return noted(self.config, REFUSED).split()

    def over(self) -> list[str]:
        """Return who is to be refused: who was already is so until there is half of what is allowed."""
        over = {who for who in {*self.stored, *self.total} if self._is_over(who)}
        return sorted(over if self.complete else over | {*self.refused})

    def _is_over(self, who: str) -> bool:
        ease = 0.5 if who in self.refused else 1.0
        if self.stored[who] > self.allowed * ease:
            return True
        return bool(self.size) and not self.makes_room and self.total[who] > MOST * self.size


class Counts:
    """Bytes by who stored them and when."""

    def __init__(self) -> None:
        self._minutes: dict[int, Counter[str]] = {}
        self._hours: dict[int, Counter[str]] = {}

    def add(self, who: str, message: Message) -> None:
        """Count a message."""
        headers = message.headers or {}
        size = len(headers["Nats-Subject"]) + len(message.data)
        size += sum(len(name) + len(headers[name]) for name in headers if name not in _OF_THE_ANSWER)
        at = int(datetime.fromisoformat(headers["Nats-Time-Stamp"]).timestamp())
        for counts, length in ((self._minutes, _MINUTE), (self._hours, _HOUR)):
            counts.setdefault(at // length, Counter())[who] += size

    def forget(self, oldest: float, now: float) -> None:
        """Forget what is older than the oldest message, and for the last hour, what is older than that."""
        self._hours = {at: counts for at, counts in self._hours.items() if at >= oldest // _HOUR}
        self._minutes = {at: counts for at, counts in self._minutes.items() if at >= (now - _HOUR) // _MINUTE}

    @property
    def stored(self) -> Counter[str]:
        """Of the last hour."""
        return sum(self._minutes.values(), Counter())

    @property
    def total(self) -> Counter[str]:
        """Of all that is there."""
        return sum(self._hours.values(), Counter())


class Look:
    """Looks at one stream again and again.

    Args:
        bus: The operator's connection.
        place: The stream, and whose is what in it.
        now: Tells the time, in Unix seconds.
    """

    def __init__(self, bus: Bus, place: Place, now: Callable[[], float] = time.time) -> None:
        self.place = place
        self._bus, self._stream, self._now = bus, place.stream, now
        self._known, self._counts, self._next = Counts(), Counts(), 0
        self._began, self._rest = 0.0, 0.0

    async def store(self, *, quick: bool = False) -> Store:
        """Return the stream as it is now, as far as it can be read in a moment.

        Args:
            quick: Read nothing where nobody can have stored too much: a stream whose messages go, or are replaced,
                must be read as a whole again and again.

        Raises:
            NotProvisionedError: There is none.
            BrokerError: The server does not answer.
        """
        info = await self._bus.api(f"STREAM.INFO.{self._stream}")
        state = info["state"]
        store = Store(self._stream, info["config"], int(state["bytes"]), Counter(), Counter(), complete=True)
        if quick and not store.is_log and store.held <= store.size * SHARE / 2:
            self._known, self._counts, self._next = Counts(), Counts(), 0
            return store
        complete = await self._read(store, int(state["first_seq"]), int(state["last_seq"]))
        oldest = datetime.fromisoformat(state["first_ts"]).timestamp() if state["messages"] else math.inf
        self._known.forget(min(oldest, self._now()), self._now())
        return replace(store, stored=self._known.stored, total=self._known.total, complete=complete)

    async def read(self) -> Store:
        """Return the stream with all that is in it read; raises as `store`."""
        while not (store := await self.store()).complete:
            pass
        return store

    async def _read(self, store: Store, first: int, last: int) -> bool:
        """Read on, and return whether all is known that was there."""
        if time.monotonic() < self._rest:
            return True
        if not self._next:
            self._began = time.monotonic()
            self._next = await self._an_hour_ago(last) if store.is_log and store.makes_room else first
        complete = await self._read_on(max(self._next, first), last)
        if store.is_log:
            self._known = self._counts
        elif complete:
            self._known, self._counts, self._next = self._counts, Counts(), 0
            took = time.monotonic() - self._began
            self._rest = time.monotonic() + _REST * took
        return complete

    async def _read_on(self, first: int, last: int) -> bool:
        ends, self._next = time.monotonic() + _SLICE, first
        while self._next <= last and time.monotonic() < ends:
            messages, _ = await self._bus.batch(self._stream, {"seq": self._next, **_PAGE}, timeout=10.0)
            for message in messages:
                self._counts.add(self.place.owner((message.headers or {})["Nats-Subject"]), message)
            self._next = _sequence(messages[-1]) + 1 if messages else last + 1
        return self._next > last

    async def _an_hour_ago(self, last: int) -> int:
        """Return the first sequence that was stored in the last hour."""
        since = datetime.fromtimestamp(self._now(), UTC) - timedelta(seconds=_HOUR)
        wanted = {"start_time": since.isoformat(), "next_by_subj": ">", "batch": 1}
        messages, _ = await self._bus.batch(self._stream, wanted, timeout=10.0)
        return _sequence(messages[0]) if messages else last + 1


def _sequence(message: Message) -> int:
    return int((message.headers or {})["Nats-Sequence"])


def size(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
