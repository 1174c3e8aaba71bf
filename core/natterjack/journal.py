"""Journals: what each run did, append-only, in JetStream; and further places for it.

Entries of one run stand on `journal.<agent>.<run>.1`, `.2`, … Each is a compare-and-set on an empty subject, so
two replicas that work on one run cannot both go on [R4], and reading them back needs only a right by subject [R3].
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from natterjack import codec, subjects
from natterjack.bus import Bus, Message
from natterjack.components import Entry, Journal
from natterjack.errors import ConflictError, FencedError, InvalidNameError, PayloadError, StreamError

log = logging.getLogger("natterjack.journal")

ENDINGS: Final = ("done", "dead")
"""Kinds of the entry that ends a run."""
RESERVED: Final = ("started", "failed", "interrupted", "routed", "corrupt", *ENDINGS)
"""Kinds by which attempts are counted, results routed, and runs end."""

_WINDOW: Final = 16


def read_entry(subject: str, data: bytes) -> Entry:
    """Return the entry stored on a journal subject.

    Raises:
        PayloadError: It is corrupt.
    """
    *_, agent, run, index = subject.split(".")
    body = codec.decode(data)
    moment = body.get("time", 0) if isinstance(body, dict) else None
    if not isinstance(moment, int | float) or not isinstance(body.get("kind"), str) or not index.isdecimal():
        msg = f"the journal entry {subject!r} is corrupt: {data[:80]!r}"
        raise PayloadError(msg)
    return Entry(agent, run, int(index), body["kind"], body.get("data"), float(moment))


class StreamJournal(Journal):
    """The journal in JetStream: the default, and always the first.

    Example in a team file: nothing; every agent has it.
    """

    name: ClassVar[str] = "stream"

    def attach(self, bus: Bus) -> None:
        """Use the agent's connection."""
        self._bus = bus

    async def write(self, entry: Entry) -> None:
        """Store one entry; the very same entry again is no conflict.

        Raises:
            FencedError: The run has another entry at this place already.
            PayloadError: It is larger than the server takes.
        """
        body = codec.encode({"kind": entry.kind, "data": entry.data, "time": entry.time})
        subject = subjects.journal(entry.agent, entry.run, entry.index)
        try:
            await self._bus.store(subject, body, expect=0, stream=subjects.JOURNAL)
        except ConflictError as error:
            last = await self._bus.last(subjects.JOURNAL, subject)
            if last is not None and last.data == body:  # a write that was cancelled half-way had got there
                return
            msg = f"another replica of {entry.agent!r} works on run {entry.run}; this one stops"
            raise FencedError(msg) from error

    async def read(self, agent: str, run: str) -> list[Entry]:
        """Return the entries of a run, in order; one that is corrupt has that kind, and its bytes as text."""
        entries: list[Entry] = []
        while True:
            first = len(entries) + 1
            wanted = [subjects.journal(agent, run, index) for index in range(first, first + _WINDOW)]
            found = await asyncio.gather(*(self._bus.last(subjects.JOURNAL, subject) for subject in wanted))
            for subject, message in zip(wanted, found, strict=True):
                if message is None:
                    return entries
                entries.append(_lenient(subject, message.data))


def _lenient(subject: str, data: bytes) -> Entry:
    """A corrupt entry takes its place, too: the run goes on behind it."""
    try:
        return read_entry(subject, data)
    except PayloadError as error:
        log.warning("%s", error)
        *_, agent, run, index = subject.split(".")
        return Entry(agent, run, int(index), "corrupt", data.decode(errors="replace"), 0.0)


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
            await sink.write(entry)

    def entries(self, *, since: float | None = None, kind: str | None = None) -> list[Entry]:
        """Return this run's entries, optionally only those of a kind, or since a Unix time in seconds."""
        return [e for e in self._entries if (kind is None or e.kind == kind) and (since is None or e.time >= since)]

    @property
    def ended(self) -> bool:
        """Whether an earlier attempt has ended the run."""
        return any(entry.kind in ENDINGS for entry in self._entries)

    @property
    def died(self) -> bool:
        """Whether the process died in the last attempt that was recorded."""
        kinds = [entry.kind for entry in self._entries if entry.kind in RESERVED]
        return kinds[-1:] == ["started"]

    @property
    def attempts(self) -> int:
        """How many attempts started and failed, or died [R2]; one that was interrupted does not count."""
        count = 0
        for entry in self._entries:
            attempt = entry.data.get("attempt") if isinstance(entry.data, dict) else None
            if not isinstance(attempt, int):
                continue
            if entry.kind in ("started", "failed"):
                count = max(count, attempt)
            elif entry.kind == "interrupted":
                count = min(count, attempt - 1)
        return count


def live_entry(message: Message) -> Entry:
    """Return the entry of a message on `feed.journal.…`."""
    return read_entry(message.subject, message.data)
