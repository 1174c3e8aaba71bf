"""What is known of a folder, on disk: so that what changes while nobody watches is told, and nothing is told twice.

A change is written down before it is fired, with the id by which the broker knows it again, and becomes known once it
is stored there. A process that is killed in between finds it written down, and fires it again under the same id.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from natterjack import ConfigError
from natterjack_files.changes import Change
from natterjack_files.folder import Seen

_TABLES = """
CREATE TABLE IF NOT EXISTS known (path BLOB PRIMARY KEY, inode INTEGER, size INTEGER, mtime INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS firing
    (id TEXT PRIMARY KEY, kind TEXT, path BLOB, origin BLOB, inode INTEGER, size INTEGER, mtime INTEGER);
CREATE TABLE IF NOT EXISTS begun (once INTEGER PRIMARY KEY);
"""


class Firing(NamedTuple):
    """A change that is being fired.

    Attributes:
        id: By which the broker knows it again.
        change: What is fired.
    """

    id: str
    change: Change


class Memory:
    """What is known of a folder. Only one process has it at a time: of replicas on one machine one watches.

    Attributes:
        known: The files as they were told last.
        firing: What was being fired when the process ended, oldest first.
        new: Whether the folder was never looked at.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database, self._lock = database, threading.Lock()
        self.new = database.execute("SELECT 1 FROM begun").fetchone() is None
        rows = database.execute("SELECT path, inode, size, mtime FROM known")
        self.known = {os.fsdecode(path): Seen(*seen) for path, *seen in rows}
        self.firing = [
            Firing(id, Change(kind, os.fsdecode(path), Seen(*seen), os.fsdecode(origin)))
            for id, kind, path, origin, *seen in database.execute("SELECT * FROM firing ORDER BY rowid")
        ]

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """Open it; None: another process has it.

        Raises:
            ConfigError: It cannot be read or written.
        """
        database: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Used by one thread at a time, but not always by the same.
            database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("BEGIN EXCLUSIVE")  # the lock is kept until it is closed, or the process is gone
            for statement in filter(str.strip, _TABLES.split(";")):
                database.execute(statement)
            database.execute("COMMIT")
            return cls(database)
        except (OSError, sqlite3.Error) as error:
            if database is not None:
                database.close()
            if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY:
                return None
            msg = (
                f"what is known of the folder cannot be kept in {str(path)!r}: {error}; correct `state` or the"
                " permissions, or remove that file: then all files are told again"
            )
            raise ConfigError(msg) from error

    def begin(self, changes: Iterable[Change]) -> list[Firing]:
        """Write down what is going to be fired."""
        firing = [Firing(secrets.token_hex(12), change) for change in changes]
        rows = [(id, kind, os.fsencode(path), os.fsencode(origin), *seen) for id, (kind, path, seen, origin) in firing]
        with self._transaction():
            self._database.executemany("INSERT INTO firing VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        return firing

    def record(self, fired: Iterable[Firing]) -> None:
        """Write down what the broker has."""
        fired = list(fired)
        with self._transaction():
            self._database.executemany("DELETE FROM firing WHERE id = ?", [(each.id,) for each in fired])
            self._learn([each.change for each in fired])

    def skip(self, changes: Iterable[Change]) -> None:
        """Write down what is not to be told."""
        with self._transaction():
            self._learn(list(changes))

    def looked(self) -> None:
        """Write down that the folder was looked at."""
        with self._transaction():
            self._database.execute("INSERT OR IGNORE INTO begun VALUES (1)")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._database:  # who is cancelled leaves a thread behind that may not be done yet
            self._database.execute("BEGIN")
            yield

    def _learn(self, changes: list[Change]) -> None:
        gone = [change.path if change.kind == "deleted" else change.origin for change in changes]
        there = [(change.path, change.seen) for change in changes if change.kind != "deleted"]
        self._database.executemany("DELETE FROM known WHERE path = ?", [(os.fsencode(path),) for path in gone])
        rows = [(os.fsencode(path), *seen) for path, seen in there]
        self._database.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?, ?)", rows)
        for path in gone:
            self.known.pop(path, None)
        self.known.update(there)

    def close(self) -> None:
        """Let another process have it."""
        with self._lock:
            self._database.close()
