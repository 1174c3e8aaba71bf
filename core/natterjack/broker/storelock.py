"""One owner per broker store: a lock that the kernel releases, and a note that says who holds it.

Two nats-servers on one JetStream store both run and corrupt it, and neither notices, so the lock is ours.

- `broker.lock` is locked by the owner *and* by its server, which inherits the descriptor. It becomes free when
  both have ended, so a server that outlives a killed owner by a few milliseconds keeps its store.
- `broker.json` says where the server listens and is locked by the owner alone. Whoever can lock it knows that
  the owner has ended: no process id is compared, so a reused one cannot mislead.

Both locks vanish with their process, whatever kills it; stale files are harmless.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

NOTE = "broker.json"
LOCK = "broker.lock"

if sys.platform == "win32":
    import msvcrt

    # Windows locks are mandatory, so the locked byte lies far behind the text that others must read.
    _LOCKED_BYTE = 1 << 30

    def lock_file(fd: int, *, wait: bool = False, shared: bool = False) -> bool:
        """Lock an open file until it is closed; return whether it is."""
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(fd, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def lock_file(fd: int, *, wait: bool = False, shared: bool = False) -> bool:
        """Lock an open file until it is closed; return whether it is."""
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True


@dataclass(frozen=True)
class Owner:
    """Who runs the broker of a store, and where it listens.

    Attributes:
        pid: The owner's process.
        server: The server's process.
        url: Where the server listens; contains the token if it wants one.
    """

    pid: int
    server: int
    url: str = field(repr=False)


def read_owner(store: Path) -> Owner | None:
    """Return the living owner of a store, or None: nobody, or one that has ended or is still starting.

    Raises:
        OSError: The note exists and may not be read, e.g. because it is another user's.
    """
    try:
        fd = os.open(store / NOTE, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if lock_file(fd, shared=True):
            return None
        return _parse(os.read(fd, 4096))
    finally:
        os.close(fd)


def _parse(text: bytes) -> Owner | None:
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError):
        return None  # the owner is about to write it


class StoreLock:
    """The lock on a store, held by this process until `release`.

    Attributes:
        fd: The locked descriptor. A child that inherits it shares the lock (not on Windows).
    """

    def __init__(self, store: Path, fd: int) -> None:
        self.fd = fd
        self._note = store / NOTE
        self._note_fd: int | None = None

    @classmethod
    def acquire(cls, store: Path) -> StoreLock | None:
        """Lock a store, or return None at once if somebody has it.

        Raises:
            OSError: The folder cannot be written, or cannot hold locks.
        """
        fd = os.open(store / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if lock_file(fd):
                return cls(store, fd)
        except OSError:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def publish(self, owner: Owner) -> None:
        """Tell others on this store where the server listens.

        A new file each time: whoever still has the last owner's open sees that one unlocked, never our text.
        """
        self._note.unlink(missing_ok=True)
        # Readable by this user only, because the URL may contain a token.
        self._note_fd = os.open(self._note, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        lock_file(self._note_fd, wait=True)  # a reader probes it for microseconds
        os.write(self._note_fd, json.dumps(asdict(owner)).encode())

    def withdraw(self) -> None:
        """Tell the others that the broker has ended, and keep the lock. May be called twice."""
        note_fd, self._note_fd = self._note_fd, None
        if note_fd is None:
            return
        with suppress(OSError):  # somebody cleared the folder; closing is what tells the others
            self._note.unlink()
        os.close(note_fd)

    def release(self) -> None:
        """Withdraw, and let go of the store. May be called twice."""
        self.withdraw()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
