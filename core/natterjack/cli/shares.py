"""Shares: nobody fills a stream in which all store.

No limit of the server counts by who stores. So there is somebody who looks, five times a second: within an hour nobody
may store more than a quarter of the room that a stream has left or, where the oldest make room, of its size. Who has
stored more is refused: its subjects are taken from the stream, until what it stored in the last hour is half of that.
And of a stream that refuses all when it is full, only half of the room that is left is open at any moment: so no flood
is too quick to be seen.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from natterjack import codec, subjects
from natterjack.bus import REFUSED_KEY, Bus, Message
from natterjack.errors import DisconnectedError, NatterjackError, NotProvisionedError, UsageError
from natterjack.provision import stored_team
from natterjack.schedules import delay_source
from natterjack.stores import ATTESTED, REFUSED, SIZE, STREAMS, attested, is_opened
from natterjack.team import Team

log = logging.getLogger("natterjack.storage")

SHARED: Final = {
    subjects.EVENTS: subjects.stored_events(">", "{}"),
    subjects.MESSAGES: "stored.messages.{}.>",
    subjects.INBOX: "stored.inbox.*.{}.>",
    subjects.JOURNAL: subjects.journal("{}", "*", "*"),
    subjects.WAKES: subjects.wake("{}"),
    subjects.DEAD: subjects.dead("{}", "*"),
    subjects.object_stream(subjects.JOURNAL_OBJECTS): subjects.object_chunk(subjects.JOURNAL_OBJECTS, "{}", "*"),
    subjects.bucket_stream(subjects.CONVERSATIONS_BUCKET): subjects.key(subjects.CONVERSATIONS_BUCKET, "{}.*"),
    subjects.bucket_stream(subjects.LIMITS_BUCKET): subjects.key(subjects.LIMITS_BUCKET, "{}.*"),
}
"""Streams in which all store, and where in them a principal does."""
NOBODY: Final = "-"
"""Whose it is what all may store in one place, as the names of large values."""
SHARE: Final = 0.25
_HOUR: Final = 3600.0
_PAUSE: Final = 0.2
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
        stream: Name of the stream.
        now: Tells the time, in Unix seconds.
    """

    def __init__(self, bus: Bus, stream: str, now: Callable[[], float] = time.time) -> None:
        self._bus, self._stream, self._now = bus, stream, now
        self._whole = SHARED[stream].format("*")
        self._at = SHARED[stream].partition("{}")[0].count(".")
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
            who = subject.split(".")[self._at] if subjects.matches(self._whole, subject) else NOBODY
            size = len(subject) + len(message.data) + sum(len(name) + len(headers[name]) for name in headers)
            minute = datetime.fromisoformat(headers["Nats-Time-Stamp"]).timestamp() // 60
            self._minutes.setdefault(int(minute), Counter())[who] += round(weight * size)


def _sequence(message: Message) -> int:
    return int((message.headers or {})["Nats-Sequence"])


class Shares:
    """Refuses who stores more than its share, and lets it in again.

    Args:
        bus: The operator's connection, to a broker that knows who stores what.
        now: Tells the time, in Unix seconds.

    Raises:
        UsageError: The broker does not know who stores what.
    """

    def __init__(self, bus: Bus, now: Callable[[], float] = time.time) -> None:
        if not bus.server.attests:
            msg = f"{bus.server} does not know who stores what: in secured mode it does (natterjack secure team.toml)"
            raise UsageError(msg)
        self._bus = bus
        self._looks = [Look(bus, name, now) for name in SHARED]
        self._published: dict[str, list[str]] | None = None

    async def enforce(self) -> None:
        """Look for ever; in the end all room is open again.

        Raises:
            DisconnectedError: The connection has ended for good.
        """
        try:
            while not self._bus.closed.is_set():
                try:
                    await self.look()
                except NotProvisionedError as error:
                    log.debug("there is nothing to look at yet: %s", error)
                except NatterjackError as error:
                    log.warning("what is stored cannot be looked at now: %s; it is tried again", error)
                await asyncio.sleep(_PAUSE)
            raise DisconnectedError(self._bus.reason)
        finally:
            if self._bus.connected:
                await self._release()

    async def _release(self) -> None:
        """Open all the room that streams have; who is refused stays so."""
        try:
            for look in self._looks:
                store = await look.store()
                if store.config["max_bytes"] != store.size > 0:
                    await self._bus.api(f"STREAM.UPDATE.{store.name}", store.config | {"max_bytes": store.size})
        except NatterjackError as error:
            log.warning("not all room of the team's streams could be opened: %s; `natterjack provision` does it", error)

    async def look(self) -> list[Store]:
        """Look once at each stream, refuse and admit, and return what was found."""
        stores = [await self._settle(await look.store(quick=True)) for look in self._looks]
        await self._publish({_place(store.name): store.refused for store in stores if store.refused})
        return stores

    async def _publish(self, refused: dict[str, list[str]]) -> None:
        """Tell who is refused why."""
        if refused != self._published:
            await self._bus.store(subjects.key(subjects.TEAM_BUCKET, REFUSED_KEY), codec.encode(refused))
            self._published = refused

    async def _settle(self, store: Store) -> Store:
        """Have a stream take what it is to take, from whom it is to take it."""
        config, refused, over = dict(store.config), store.refused, store.over()
        if over or refused:
            team = await stored_team(self._bus)
            refused = [who for who in over if who in (*_principals(team), NOBODY)]
            config |= await self._config(store.name, team, refused)
        config["max_bytes"] = store.open
        if refused == store.refused and _is_so(config, store.config):
            return store
        told = {REFUSED: " ".join(refused), SIZE: str(store.size)}
        config["metadata"] = (config.get("metadata") or {}) | told
        await self._bus.api(f"STREAM.UPDATE.{store.name}", config)
        self._tell(store, refused)
        return replace(store, config=config)

    async def _config(self, stream: str, team: Team, refused: Sequence[str]) -> dict[str, Any]:
        """Return what a stream takes where some are refused."""
        everybody = [*_principals(team), *team.operators, subjects.OPERATOR, subjects.ANYONE, NOBODY]
        admitted = [who for who in everybody if who not in refused]
        taken = _subjects(stream, admitted) if refused else _all_subjects(stream)
        if stream != subjects.EVENTS:
            return {"subjects": taken}
        held = sorted(await self._bus.streams(subjects.delay("*")))
        cut = {subjects.delay_stream(who) for who in refused}
        return {"subjects": taken, "sources": [delay_source(name, attested=True) for name in held if name not in cut]}

    def _tell(self, store: Store, refused: Sequence[str]) -> None:
        for who in sorted({*refused} - {*store.refused}):
            facts = {"who": who, "stream": store.name, "stored": store.stored[who], "allowed": int(store.allowed)}
            self._bus.audit.note("authority", "refuse", **facts)
            told = f"{size(store.stored[who])} within an hour, of {size(store.allowed)} that anybody may"
            log.warning("%r is refused in %s: it stored %s", who, store.name, told)
        for who in sorted({*store.refused} - {*refused}):
            self._bus.audit.note("authority", "admit", who=who, stream=store.name)
            log.warning("%r may store in %s again", who, store.name)


def _principals(team: Team) -> list[str]:
    """Return who can be refused."""
    return sorted({*team.agents, *team.tools, *team.users} - {*team.operators})


def _is_so(wanted: dict[str, Any], config: dict[str, Any]) -> bool:
    """Tell whether a stream is as it is wanted; of its sources only the names count."""
    names, current = ([each["name"] for each in of.get("sources") or ()] for of in (wanted, config))
    same = all(wanted[key] == config[key] for key in ("subjects", "max_bytes"))
    return same and names == current


def _all_subjects(stream: str) -> list[str]:
    config = attested(STREAMS[stream]) if stream in ATTESTED else STREAMS[stream]
    return list(config["subjects"])


def _subjects(stream: str, principals: Collection[str]) -> list[str]:
    """Return a stream's subjects where only these principals store in it."""
    theirs = SHARED[stream]
    others = [each for each in _all_subjects(stream) if not subjects.overlap(each, theirs.format("*"))]
    return [*(others if NOBODY in principals else ()), *(theirs.format(who) for who in principals if who != NOBODY)]


def _place(stream: str) -> str:
    """Return how subjects begin on which principals publish what a stream stores."""
    return SHARED[stream].removeprefix("stored.").partition("{}")[0].partition("*")[0]


def size(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
