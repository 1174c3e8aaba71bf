"""Journals: what each run did, append-only, in JetStream; and further places for it.

Entries of one run stand on `journal.<agent>.<run>.1`, `.2`, … Each is a compare-and-set on an empty subject, so
two replicas that work on one run cannot both go on [R4], and reading them back needs only a right by subject [R3].
The data of an entry that is too large for a message stands in the object store. The stream is the truth: a further
journal that fails, or is slow, is named in the log, and its run goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import ClassVar, Final, Self

from natterjack import codec, subjects
from natterjack.bus import Bus, Message, expecting
from natterjack.components import Entry, Journal
from natterjack.errors import (
    BrokerError,
    ConflictError,
    DisconnectedError,
    FencedError,
    NotProvisionedError,
    PayloadError,
)
from natterjack.objects import Reference, get, is_large, put

log = logging.getLogger("natterjack.journal")

CANCELLED, RESUMED = "cancelled", "resumed"
ENDINGS: Final = ("done", "dead", CANCELLED)
"""Kinds of the entry that ends a run, until it is resumed."""
BEGUN, STEP, SLEEP, WAITING, WAITED = "begun", "step", "sleep", "waiting", "waited"
PROGRESS: Final = (STEP, SLEEP, WAITING, WAITED, RESUMED)
"""Kinds of what a durable run has finished, or waits for: behind it, attempts are counted anew."""
ATTEMPTS: Final = ("started", "failed", "interrupted")
RESERVED: Final = (*ATTEMPTS, "routed", "corrupt", BEGUN, *PROGRESS, *ENDINGS)
"""Kinds by which attempts are counted, durable runs go on, results are routed, and runs end."""

Moment = datetime | float
"""A time zone aware datetime, or Unix seconds."""

_WINDOW: Final = 16
_WIDEST: Final = 512
_PAUSE: Final = 0.2
_FREE: Final = expecting(0)


def read_entry(subject: str, data: bytes) -> Entry:
    """Return the entry stored on a journal subject; the data of a large one is the `Reference` to it.

    Raises:
        PayloadError: It is corrupt.
    """
    *_, agent, run, index = subject.split(".")
    body = codec.decode(data)
    moment = body.get("time", 0) if isinstance(body, dict) else None
    if not isinstance(moment, int | float) or not isinstance(body.get("kind"), str) or not index.isdecimal():
        msg = f"the journal entry {subject!r} is corrupt: {data[:80]!r}"
        raise PayloadError(msg)
    content = Reference.parse(body["large"]) if "large" in body else body.get("data")
    if isinstance(content, Reference) and (content.owner, content.bucket) != (agent, subjects.JOURNAL_OBJECTS):
        msg = f"the journal entry {subject!r} is corrupt: it refers to {content}, which is not its agent's"
        raise PayloadError(msg)
    return Entry(agent, run, int(index), body["kind"], content, float(moment))


def ending(entries: Iterable[Entry]) -> Entry | None:
    """Return the entry that ended a run, if it has ended and was not resumed since."""
    found = None
    for entry in entries:
        if entry.kind == RESUMED:
            found = None
        elif entry.kind in ENDINGS and found is None:
            found = entry
    return found


def is_paused(entries: Iterable[Entry]) -> bool:
    """Tell whether the last that a run has journaled of its calls is that it sleeps or waits."""
    kinds = [entry.kind for entry in entries if entry.kind in PROGRESS]
    return kinds[-1:] in ([SLEEP], [WAITING])


def stored_entry(message: Message) -> Entry:
    """Return the entry of a message that was stored or fed; a corrupt one has that kind, and its bytes as text."""
    headers = message.headers or {}
    subject = headers.get("Nats-Subject", message.subject)  # what is read directly comes on a reply subject
    try:
        return read_entry(subject, message.data)
    except PayloadError as error:
        log.warning("%s", error)
        *_, agent, run, index = subject.split(".")
        moment = datetime.fromisoformat(headers["Nats-Time-Stamp"]).timestamp() if "Nats-Time-Stamp" in headers else 0.0
        number = int(index) if index.isdecimal() else 0
        return Entry(agent, run, number, "corrupt", message.data.decode(errors="replace"), moment)


class StreamJournal(Journal):
    """The journal in JetStream: the default, and always the first.

    Example in a team file: nothing; every agent has it.
    """

    name: ClassVar[str] = "stream"

    def attach(self, bus: Bus) -> Self:
        """Use this connection, and return the journal."""
        self._bus = bus
        return self

    async def write(self, entry: Entry) -> None:
        """Store one entry; the very same entry again is no conflict. One too large for a message goes by reference.

        Raises:
            FencedError: The run has another entry at this place already.
            PayloadError: It cannot be sent as JSON, or has more than 64 MiB.
        """
        subject, body = _written(entry)
        if is_large(self._bus, body):
            content, name = codec.encode(entry.data), f"{entry.run}.{entry.index}"
            reference = await self._put(content, name)
            body = codec.encode({"kind": entry.kind, "large": reference, "time": entry.time})
        try:
            await self._bus.store(subject, body, expect=0, stream=subjects.JOURNAL)
        except ConflictError as error:
            last = await self._bus.last(subjects.JOURNAL, subject)
            if last is not None and last.data == body:  # a write that was cancelled half-way had got there
                return
            msg = f"another replica of {entry.agent!r} works on run {entry.run}; this one stops"
            raise FencedError(msg) from error

    async def _put(self, content: bytes, name: str) -> Reference:
        try:
            return await put(self._bus, content, bucket=subjects.JOURNAL_OBJECTS, name=name)
        except NotProvisionedError as error:
            msg = f"{len(content):,} bytes are too many for one message, and there is no place for more: {error}"
            raise PayloadError(msg) from error

    def post(self, entry: Entry) -> asyncio.Future[Message]:
        """Send an entry without waiting; its place must be free. The server's answer is for `bus.stored`.

        Raises:
            PayloadError: It cannot be sent as JSON, or is too large for one message.
            DisconnectedError: The connection is closed.
        """
        subject, body = _written(entry)
        return self._bus.post(subject, body, _FREE)

    async def has(self, agent: str, run: str) -> bool:
        """Tell whether there is any entry of a run; errors as for `read`."""
        return await self._bus.last(subjects.JOURNAL, subjects.journal(agent, run, 1)) is not None

    async def read(self, agent: str, run: str) -> list[Entry]:
        """Return the entries of a run, in order, large ones whole; a corrupt one has that kind.

        Raises:
            BrokerError: The server does not answer.
        """
        entries: list[Entry] = []
        window = _WINDOW
        while True:
            first = len(entries) + 1
            wanted = [subjects.journal(agent, run, index) for index in range(first, first + window)]
            window = min(window * 2, _WIDEST)
            found = await asyncio.gather(*(self._bus.last(subjects.JOURNAL, subject) for subject in wanted))
            for message in found:
                if message is None:
                    return entries
                entries.append(await self.whole(stored_entry(message)))

    async def whole(self, entry: Entry) -> Entry:
        """Return an entry with its data, where it only has the reference; `{"omitted": why}` where that is lost."""
        if not isinstance(entry.data, Reference):
            return entry
        try:
            return replace(entry, data=codec.decode(await get(self._bus, entry.data)))
        except PayloadError as error:
            log.warning("entry %d of run %s of %s: %s", entry.index, entry.run, entry.agent, error)
            return replace(entry, data={"omitted": str(error)})

    async def entries(
        self, agent: str = "*", *, run: str = "*", kind: str | None = None, since: Moment | None = None
    ) -> AsyncIterator[Entry]:
        """Yield what is stored, in the order it was; a corrupt entry has that kind. Needs an operator's rights.

        Args:
            agent: Of one agent; of all by default.
            run: Of one run.
            kind: Of one kind.
            since: Stored at or after this moment; a number is Unix seconds.

        Yields:
            Entries; the data of a large one is its `Reference`, which `whole` fetches.
        """
        async for _, entry in self._stored(agent, run, since=since):
            if kind in (None, entry.kind):
                yield entry

    @asynccontextmanager
    async def tail(
        self,
        agent: str = "*",
        *,
        run: str = "*",
        kind: str | None = None,
        since: Moment | None = None,
        last: int | None = 0,
    ) -> AsyncIterator[AsyncIterator[Entry]]:
        """Give an iterator of what comes from now on, and before it of the `last` that are stored; None: of them all.

        A slow reader misses nothing: the live copies only tell that there is more to read. Arguments are otherwise as
        for `entries`. Iterating raises `DisconnectedError` once the connection is closed for good.

        Example::

            async with team.journal.tail("researcher") as entries:
                async for entry in entries:
                    print(entry.kind, entry.data)
        """
        feed = _Feed()
        subscription = await self._bus.subscribe(subjects.feed_journal(agent, run), feed.receive, on_lost=feed.more.set)
        try:
            info = await self._bus.api(f"STREAM.INFO.{subjects.JOURNAL}")
            begin = 1 + int(info["state"]["last_seq"])
            async with self._bus.reconnects(feed.more.set), aclosing(self._tail(agent, run, begin, feed)) as coming:
                stored = self._stored(agent, run, since=since) if last != 0 else None
                async with aclosing(_joined(stored, coming, begin, last, kind)) as entries:
                    yield entries
        finally:
            await subscription.unsubscribe()

    async def _tail(self, agent: str, run: str, start: int, feed: _Feed) -> AsyncGenerator[tuple[int, Entry], None]:
        """Yield what stands at or behind a sequence, for ever."""
        while True:
            try:
                async for sequence, entry in self._stored(agent, run, start=start):
                    yield sequence, entry
                    start = sequence + 1
            except BrokerError as error:
                if self._bus.closed.is_set():
                    raise DisconnectedError(self._bus.reason) from error
                if not error.retry:
                    raise
                log.info("the journal cannot be read now (%s); it is tried again", error)
                await asyncio.sleep(_PAUSE)
            await feed.wait(start)

    async def _stored(
        self, agent: str, run: str, *, start: int = 1, since: Moment | None = None
    ) -> AsyncIterator[tuple[int, Entry]]:
        moment = datetime.fromtimestamp(since, UTC) if isinstance(since, int | float) else since
        pattern = subjects.journal(agent, run, "*")
        async for message in self._bus.read(subjects.JOURNAL, pattern, start=start, since=moment):
            yield int((message.headers or {})["Nats-Sequence"]), stored_entry(message)


async def _joined(
    stored: AsyncIterator[tuple[int, Entry]] | None,
    coming: AsyncIterator[tuple[int, Entry]],
    begin: int,
    last: int | None,
    kind: str | None,
) -> AsyncGenerator[Entry, None]:
    """Yield the last of what is stored before a sequence, then what comes from there on."""
    found = deque[Entry](maxlen=last)
    if stored is not None:
        async for sequence, entry in stored:
            if sequence < begin and kind in (None, entry.kind):
                found.append(entry)
    for entry in found:
        yield entry
    async for _, entry in coming:
        if kind in (None, entry.kind):
            yield entry


class _Feed:
    """Tells that there is more in the journal than was read."""

    def __init__(self) -> None:
        self.more, self._known = asyncio.Event(), 0

    async def receive(self, message: Message) -> None:
        self._known = max(self._known, int((message.headers or {}).get("Nats-Sequence", 0)))
        self.more.set()

    async def wait(self, start: int) -> None:
        """Return once something may be at or behind a sequence."""
        if self._known >= start and not self.more.is_set():
            await asyncio.sleep(_PAUSE)  # the replica of the stream that answered is behind its feed
            return
        await self.more.wait()
        self.more.clear()


def _written(entry: Entry) -> tuple[str, bytes]:
    """Return the subject and the payload of an entry."""
    body = codec.encode({"kind": entry.kind, "data": entry.data, "time": entry.time})
    return subjects.journal(entry.agent, entry.run, entry.index), body
