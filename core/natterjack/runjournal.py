"""The journal of one run: what its attempts wrote, and where the next entry goes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from natterjack.components import Entry, Journal
from natterjack.errors import FencedError, InvalidNameError, PayloadError, StreamError, described
from natterjack.journal import ATTEMPTS, ENDINGS, PROGRESS, RESERVED, Moment, StreamJournal, ending

log = logging.getLogger("natterjack.journal")

SINK_TIMEOUT: Final = 10.0
"""Seconds that a further journal may take for one entry, before the run goes on without it."""


class Tries(NamedTuple):
    """How often a run was tried.

    Attributes:
        total: Attempts that failed or died; one that was interrupted is none.
        in_vain: Those of them since it last made progress.
        under_way: Whether one has started, and nothing came of it yet; it counts, because its process may have died.
    """

    total: int = 0
    in_vain: int = 0
    under_way: bool = False

    @property
    def failing(self) -> int:
        """Number, since the run made progress, of the attempt that fails now."""
        return self.in_vain + (not self.under_way)

    def after(self, kind: str) -> Tries:
        """Return what they come to with another entry of this kind."""
        total, in_vain, under_way = self
        if kind == "started":
            return Tries(total + 1, in_vain + 1, under_way=True)
        if kind == "failed" and not under_way:
            return Tries(total + 1, in_vain + 1)
        if kind == "interrupted":
            return Tries(total - under_way, in_vain - under_way)
        return Tries(total, in_vain) if kind == "failed" else self


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
        """Whether an earlier attempt, or somebody else, has ended the run."""
        return ending(self._entries) is not None

    @property
    def died(self) -> bool:
        """Whether the process died in the last attempt that was recorded."""
        kinds = [entry.kind for entry in self._entries if entry.kind in (*ATTEMPTS, *ENDINGS)]
        return kinds[-1:] == ["started"]

    @property
    def tries(self) -> Tries:
        """How often the run was tried [R2]."""
        tries = Tries()
        for kind, data in ((entry.kind, entry.data) for entry in self._entries):
            if kind in PROGRESS:
                tries = Tries(tries.total - tries.under_way)
            elif kind in ENDINGS:
                tries = Tries(tries.total, tries.in_vain)
            elif isinstance(data, dict) and isinstance(data.get("attempt"), int):
                tries = tries.after(kind)
        return tries
