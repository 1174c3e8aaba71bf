"""The built-in journal beside the stream: files."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import orjson
from pydantic import TypeAdapter, ValidationError

from natterjack import codec
from natterjack.broker.storelock import lock_file
from natterjack.components import Entry, Journal
from natterjack.errors import ConfigError
from natterjack.settings import Settings

log = logging.getLogger("natterjack.journal")

_ENTRY = TypeAdapter(Entry)


class FileJournal(Journal):
    """A second journal: JSON lines in `<folder>/<agent>.jsonl`.

    Each entry is one line, written at once behind what is there, so that several processes may share a folder.
    Nothing is ever overwritten: after half a line, which a crash or a full disk can leave, the next entry begins on
    a line of its own, and reading names the half line and skips it. Lines survive the end of the process, and a
    power failure only with `sync`; what must not be lost is in the stream.

    Example::

        AgentProcess(name="researcher", agent=Researcher(), journal=FileJournal("./journals/researcher"))
    """

    name: ClassVar[str] = "file"

    class Config(Settings):
        """Settings of the file journal: its folder, and whether each line is on the disk before the run goes on."""

        folder: str = "journals"
        sync: bool = False

    config: Config

    def __init__(self, config: Config | str | Path, *, sync: bool = False) -> None:
        given = config if isinstance(config, self.Config) else self.Config(folder=str(config), sync=sync)
        super().__init__(given)
        self.folder = Path(self.config.folder)

    async def open(self) -> None:
        """Make the folder.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"the journal folder {str(self.folder)!r} cannot be made: {error}"
            raise ConfigError(msg) from error

    async def write(self, entry: Entry) -> None:
        """Append one line.

        Raises:
            OSError: It cannot be written, e.g. because the disk is full.
        """
        await asyncio.to_thread(self._append, self._path(entry.agent), codec.encode(entry) + b"\n")

    def _path(self, agent: str) -> Path:
        return self.folder / f"{agent}.jsonl"

    def _append(self, path: Path, line: bytes) -> None:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        try:
            lock_file(fd, wait=True)  # nobody writes between the look at the last line and the new one
            whole = b"\n" + line if _torn(fd) else line
            written = os.write(fd, whole)
            if written < len(whole):
                raise OSError(errno.ENOSPC, f"only {written:,} of {len(whole):,} bytes could be written", str(path))
            if self.config.sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def entries(
        self,
        agent: str | None = None,
        *,
        run: str | None = None,
        kind: str | None = None,
        since: datetime | float | None = None,
    ) -> Iterator[Entry]:
        """Yield the entries of the files, in their order; a line that is none is named in the log, and skipped.

        Args:
            agent: Of one agent; of all by default.
            run: Of one run.
            kind: Of one kind.
            since: From this moment on; a datetime, or Unix seconds.
        """
        first = since.timestamp() if isinstance(since, datetime) else since or 0.0
        for path in sorted(self.folder.glob("*.jsonl")) if agent is None else [self._path(agent)]:
            for entry in _read(path):
                if run in (None, entry.run) and kind in (None, entry.kind) and entry.time >= first:
                    yield entry


def _read(path: Path) -> Iterator[Entry]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield _ENTRY.validate_python(orjson.loads(line))
            except ValueError as error:  # of orjson and of pydantic
                where = f"{path}:{number}"
                why = "it ends half-way" if not line.endswith(b"\n") else _reason(error)
                log.warning("%s: this line is no journal entry and is skipped (%s): %r", where, why, line[:80])


def _reason(error: ValueError) -> str:
    return (
        f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}" if isinstance(error, ValidationError) else str(error)
    )


def _torn(fd: int) -> bool:
    """Tell whether the last line of a file lacks its end."""
    size = os.fstat(fd).st_size
    if not size:
        return False
    os.lseek(fd, size - 1, os.SEEK_SET)
    return os.read(fd, 1) != b"\n"
