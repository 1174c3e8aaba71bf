"""Journals: what each run did, append-only, in JetStream; and further places for it.

Entries of one run stand on `journal.<agent>.<run>.1`, `.2`, … Each is a compare-and-set on an empty subject, so
two replicas that work on one run cannot both go on [R4], and reading them back needs only a right by subject [R3].
The data of an entry that is too large for a message stands in the object store. The stream is the truth: a further
journal that fails, or is slow, is named in the log, and its run goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Self

from natterjack import codec, subjects
from natterjack.bus import Bus, Message, expecting
from natterjack.components import Entry, Journal
from natterjack.errors import (
    BrokerError,
    ConflictError,
    DisconnectedError,
    FencedError,
    InvalidNameError,
    NotProvisionedError,
    PayloadError,
    StreamError,
    described,
)
from natterjack.objects import Reference, get, is_large, put

log = logging.getLogger("natterjack.journal")

ENDINGS: Final = ("done", "dead")
"""Kinds of the entry that ends a run."""
BEGUN, STEP, SLEEP, WAITING, WAITED = "begun", "step", "sleep", "waiting", "waited"
PROGRESS: Final = (STEP, SLEEP, WAITING, WAITED)
"""Kinds of what a durable run has finished, or waits for: behind it, attempts are counted anew."""
_ATTEMPTS: Final = ("started", "failed", "interrupted")
RESERVED: Final = (*_ATTEMPTS, "routed", "corrupt", BEGUN, *PROGRESS, *ENDINGS)
"""Kinds by which attempts are counted, durable runs go on, results are routed, and runs end."""

SINK_TIMEOUT: Final = 10.0
"""Seconds that a further journal may take for one entry, before the run goes on without it."""

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


class RunJournal:
    """The journal of one run, as its handler uses it (`ctx.journal`). Nothing is written before the first `append`.

    Args:
        agent: Whose run.
        run: Its id.
        stream: The journal in JetStream.
        sinks: Further journals.
    """

    def __init__(self, agent: str, run: str, stream: StreamJournal, sinks: Sequence[Journal] = ()) -> None:
        self._agent, self._run, self._stream, self._sinks = agent, run, stream, sinks
        self._lock = asyncio.Lock()
        self._entries: list[Entry] = []
        self._torn: Entry | None = None

    async def load(self) -> None:
        """Read what earlier attempts wrote."""
        self._entries = await self._stream.read(self._agent, self._run)

    async def append(self, kind: str, data: Any = None) -> Entry:
        """Write an entry and return it once it is stored.

        Raises:
            InvalidNameError: The kind is one of the kernel's own.
            PayloadError: The data cannot be sent.
            FencedError: Another replica took this run over.
        """
        if kind in RESERVED:
            what, rule = "kind of journal entry", "the kernel keeps its own account by it; choose another"
            raise InvalidNameError(what, kind, rule)
        return await self.record(kind, data)

    async def record(self, kind: str, data: Any = None) -> Entry:
        """Write an entry of any kind; for the kernel."""
        async with self._lock:
            if self._torn is not None:  # an earlier append was cut off, and may have been stored
                await self._write(self._torn)
            entry = Entry(self._agent, self._run, len(self._entries) + 1, kind, data, time.time())
            await self._write(entry)
        return entry

    async def _write(self, entry: Entry) -> None:
        self._torn = entry
        try:
            await self._stream.write(entry)
        except (PayloadError, StreamError, FencedError):  # certainly not stored
            self._torn = None
            raise
        self._torn = None
        self._entries.append(entry)
        for sink in self._sinks:
            await self._pass_on(entry, sink)

    async def _pass_on(self, entry: Entry, sink: Journal) -> None:
        """Give a sink what the stream has; the stream is the truth, so a sink that fails must not fail the run."""
        try:
            async with asyncio.timeout(SINK_TIMEOUT):
                await sink.write(entry)
        except Exception as error:
            what = f"entry {entry.index} of run {entry.run}: {described(error) or type(error).__name__}"
            log.error("%s: its journal %r misses %s; the stream has it", entry.agent, sink.name, what)  # noqa: TRY400

    def entries(self, *, since: Moment | None = None, kind: str | None = None) -> list[Entry]:
        """Return this run's entries, optionally only those of a kind, or since a moment; a number is Unix seconds."""
        first = since.timestamp() if isinstance(since, datetime) else since or 0.0
        return [entry for entry in self._entries if kind in (None, entry.kind) and entry.time >= first]

    @property
    def ended(self) -> bool:
        """Whether an earlier attempt has ended the run."""
        return any(entry.kind in ENDINGS for entry in self._entries)

    @property
    def died(self) -> bool:
        """Whether the process died in the last attempt that was recorded."""
        kinds = [entry.kind for entry in self._entries if entry.kind in (*_ATTEMPTS, *ENDINGS)]
        return kinds[-1:] == ["started"]

    @property
    def attempts(self) -> int:
        """How many attempts started and failed, or died, since the run last made progress [R2].

        One that was interrupted does not count.
        """
        return self._attempts()[0]

    @property
    def failing(self) -> int:
        """Number of the attempt that fails now."""
        count, under_way = self._attempts()
        return count + (not under_way)

    def _attempts(self) -> tuple[int, bool]:
        count, under_way = 0, False
        for kind, data in ((entry.kind, entry.data) for entry in self._entries):
            if kind in PROGRESS:
                count, under_way = 0, False
            elif not isinstance(data, dict) or not isinstance(data.get("attempt"), int):
                continue
            elif kind == "started":
                count, under_way = count + 1, True
            elif kind == "failed":
                count, under_way = count + (not under_way), False
            elif kind == "interrupted":
                count, under_way = count - under_way, False
        return count, under_way
