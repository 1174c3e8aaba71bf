"""What a shared context holds: the newest version of each key; and those who watch it change."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final
from weakref import WeakSet

from natterjack import codec, subjects
from natterjack.bus import Message, in_batch
from natterjack.errors import PayloadError

log = logging.getLogger("natterjack.context")

STREAM: Final = subjects.bucket_stream(subjects.CONTEXT_BUCKET)
"""The stream behind the main context's bucket."""
MAX_WAITING: Final = 1024
"""Changes that may wait in a watch; beyond, it keeps only the newest of each key."""

_UNREAD: Final = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a key, as `watch` tells it.

    Attributes:
        key: Which.
        value: Its new value; `None` when it was deleted.
        revision: The context's revision with this change.
        writer: Who wrote it, by its own claim; empty for a writer that does not say.
        deleted: Whether the key is gone.
    """

    key: str
    value: Any
    revision: int
    writer: str
    deleted: bool


@dataclass(frozen=True, slots=True)
class Revision:
    """One entry in the history of a key.

    Attributes:
        value: The value then; `None` when it was deleted.
        writer: Who wrote it, by its own claim.
        revision: The context's revision with this value.
        time: When the server stored it, aware, UTC.
        deleted: Whether the key was deleted then.
    """

    value: Any
    writer: str
    revision: int
    time: datetime
    deleted: bool = False


class Version:
    """One version of a key. The value stays encoded: whoever reads it cannot change what others read."""

    __slots__ = ("_scalar", "data", "deleted", "revision", "writer")

    def __init__(self, data: bytes, writer: str = "", *, revision: int = 0, deleted: bool = False) -> None:
        self.data, self.writer, self.revision, self.deleted = data, writer, revision, deleted
        self._scalar: Any = None if deleted else _UNREAD

    def value(self) -> Any:
        """Return the value; a dict or list is a fresh copy, and what is neither JSON nor text is `bytes`."""
        if self._scalar is not _UNREAD:
            return self._scalar
        try:
            value = codec.decode(self.data)
        except PayloadError:  # any NATS client may have put it there, and reading must not fail for that
            value = self.data
        if not isinstance(value, dict | list):
            self._scalar = value
        return value

    def change(self, key: str) -> Change:
        """Return it as `watch` tells it."""
        return Change(key, self.value(), self.revision, self.writer, self.deleted)

    def past(self, time: datetime | None = None) -> Revision:
        """Return it as `history` tells it."""
        return Revision(self.value(), self.writer, self.revision, time or datetime.now(UTC), self.deleted)


def read_message(message: Message) -> tuple[str, Version]:
    """Return key and version of a message of a bucket's stream, as the feed or a direct get brings it."""
    headers = message.headers or {}
    header = headers.get(codec.HEADER, "")
    writer = _writer(header.partition(";")[0] if header.startswith("s=") else header)
    sequence = int(headers["Nats-Sequence"])
    version = Version(message.data, writer, revision=sequence, deleted=codec.is_deletion(headers))
    return headers["Nats-Subject"].split(".", 2)[2], version


@lru_cache(maxsize=1024)  # a snapshot has many keys of few writers, and keeps one text for each
def _writer(header: str) -> str:
    try:
        return codec.unpack(header).source
    except PayloadError as error:  # the value is good all the same
        log.debug("who wrote a key cannot be told: %s", error)
        return ""


class Reassembly:
    """Puts the messages of a transaction together again, which come one after another.

    Args:
        complete: Whether nothing was left out of what comes: then a part of a transaction is all there is of it,
            because the rest has been replaced since. Else that was lost, and is read again with the part.
    """

    def __init__(self, *, complete: bool) -> None:
        self._complete = complete
        self._held: list[tuple[str, Version]] = []
        self._batch = ""

    def take(self, message: Message) -> list[tuple[str, Version]]:
        """Return what is to be applied now, all at once: nothing before a transaction's last message is there."""
        batch, last = in_batch(message.headers or {})
        if self._held and batch != self._batch:
            part = self.rest()
            return [*(part if self._complete else []), *self.take(message)]
        self._held.append(read_message(message))
        self._batch = batch
        return [] if batch and not last else self.rest()

    def rest(self) -> list[tuple[str, Version]]:
        """Return what is held, and hold nothing."""
        held, self._held = self._held, []
        return held


class Watch(AsyncIterator[Change]):
    """Changes as they come. A slow reader misses values that were replaced meanwhile, never the newest one.

    Args:
        pattern: Of the watched keys.
        reads: Patterns of the keys that whoever watches may read; all by default.
    """

    def __init__(self, pattern: str, reads: Sequence[str] | None = None) -> None:
        self._pattern, self._reads = pattern, reads
        self._waiting: deque[tuple[str, Version]] = deque()
        self._limit = MAX_WAITING
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, key: str, version: Version) -> None:
        """Take one change, if it is of a watched key."""
        if self._closed or not subjects.matches(self._pattern, key):
            return
        if self._reads is not None and not any(subjects.matches(pattern, key) for pattern in self._reads):
            return
        self._waiting.append((key, version))
        if len(self._waiting) > self._limit:
            self._waiting = deque(dict(self._waiting).items())
            self._limit = max(MAX_WAITING, 2 * len(self._waiting))
        self._wake.set()

    def close(self) -> None:
        """End after what waits was read."""
        self._closed = True
        self._wake.set()

    async def aclose(self) -> None:
        """End, as of an async generator."""
        self._waiting.clear()
        self.close()

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        key, version = self._waiting.popleft()
        return version.change(key)


class State:
    """The newest version of each key, deleted ones included.

    Attributes:
        versions: By key.
        revision: The highest applied.
        watches: Who is told of what is applied; one that nobody holds any more just goes.
    """

    def __init__(self, watches: WeakSet[Watch] | None = None) -> None:
        self.versions: dict[str, Version] = {}
        self.revision = 0
        self.watches: WeakSet[Watch] = WeakSet() if watches is None else watches

    def apply(self, key: str, version: Version) -> None:
        """Take a version, unless one of at least its revision is known."""
        known = self.versions.get(key)
        if known is not None and known.revision >= version.revision:
            return
        self.versions[key] = version
        self.revision = max(self.revision, version.revision)
        if self.watches:
            for watch in list(self.watches):
                watch.put(key, version)

    def clear(self) -> None:
        """Forget all: what comes next is of another bucket."""
        self.versions.clear()
        self.revision = 0
