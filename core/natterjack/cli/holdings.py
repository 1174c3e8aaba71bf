"""Holdings: who stored how much in a stream, of late."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from natterjack.bus import Bus, Message
from natterjack.cli.places import Place
from natterjack.stores import REFUSED, SIZE, is_opened

SHARE: Final = 0.25
_HOUR: Final = 3600.0
_PAGE: Final[dict[str, Any]] = {"next_by_subj": ">", "batch": 256, "max_bytes": 256 * 1024}
_PAGES: Final = 16
"""Pages that one look reads at most, spread evenly: each stands for what is around it."""


@dataclass(frozen=True, slots=True)
class Store:
    """A stream as it was looked at.

    Attributes:
        name: Its name.
        config: Its configuration.
        held: Bytes in it.
        stored: Bytes that each principal stored in the last hour and that are still there, about; by name.
    """

    name: str
    config: dict[str, Any]
    held: int
    stored: Counter[str]

    @property
    def size(self) -> int:
        """Bytes that it may have when all of its room is open; 0: any number."""
        return max(0, int(self.config["max_bytes"]), int(self._told(SIZE) or 0))

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
        if not self.size or self.makes_room:
            return int(self.config["max_bytes"])
        if is_opened(self.config, self.held):
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
        return self._told(REFUSED).split()

    def _told(self, name: str) -> str:
        return str((self.config.get("metadata") or {}).get(name, ""))

    def over(self) -> list[str]:
        """Return who is to be refused: who was already is so until there is half of what is allowed."""
        refused, allowed = self.refused, self.allowed
        return sorted(who for who, count in self.stored.items() if count > (allowed / 2 if who in refused else allowed))


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
        self._minutes: dict[int, Counter[str]] = {}
        self._next = 0

    async def store(self, *, quick: bool = False) -> Store:
        """Return the stream as it is now.

        Args:
            quick: Read nothing where nobody can have stored too much: of a stream whose messages go, or are replaced,
                all of its last hour must be read each time.

        Raises:
            NotProvisionedError: There is none.
            BrokerError: The server does not answer.
        """
        info = await self._bus.api(f"STREAM.INFO.{self._stream}")
        state, store = info["state"], Store(self._stream, info["config"], int(info["state"]["bytes"]), Counter())
        if not store.is_log:
            self._minutes, self._next = {}, 0
        if store.is_log or not quick or store.held > store.size * SHARE / 2:
            await self._read(max(self._next, int(state["first_seq"])), int(state["last_seq"]))
        oldest = (self._now() - _HOUR) // 60
        self._minutes = {minute: stored for minute, stored in self._minutes.items() if minute >= oldest}
        return replace(store, stored=sum(self._minutes.values(), Counter()))

    async def _read(self, first: int, last: int) -> None:
        """Read what was stored up to a sequence, or a sample of it."""
        if first <= last and not self._next:
            first = await self._an_hour_ago(last)
        step = math.ceil((last + 1 - first) / _PAGES)
        while first <= last:
            messages, _ = await self._bus.batch(self._stream, {"seq": first, **_PAGE}, timeout=10.0)
            if not messages:
                break
            end = _sequence(messages[-1]) + 1
            following = max(end, min(first + step, last + 1))
            self._count(messages, (following - first) / (end - first))
            first = following
        self._next = max(self._next, first, last + 1)

    async def _an_hour_ago(self, last: int) -> int:
        """Return the first sequence that was stored in the last hour."""
        since = datetime.fromtimestamp(self._now() - _HOUR, UTC).isoformat()
        wanted = {"start_time": since, "next_by_subj": ">", "batch": 1}
        messages, _ = await self._bus.batch(self._stream, wanted, timeout=10.0)
        return _sequence(messages[0]) if messages else last + 1

    def _count(self, messages: Iterable[Message], weight: float) -> None:
        for message in messages:
            headers = message.headers or {}
            subject = headers["Nats-Subject"]
            size = len(subject) + len(message.data) + sum(len(name) + len(headers[name]) for name in headers)
            minute = datetime.fromisoformat(headers["Nats-Time-Stamp"]).timestamp() // 60
            self._minutes.setdefault(int(minute), Counter())[self.place.owner(subject)] += round(weight * size)


def _sequence(message: Message) -> int:
    return int((message.headers or {})["Nats-Sequence"])


def size(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
