"""Transactions: several keys of the context that change together, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from natterjack import codec, subjects
from natterjack.bus import MAX_BATCH, BatchMessage, Bus, store_batch
from natterjack.context.state import State, Version
from natterjack.context.writer import Writer, version_headers
from natterjack.errors import ConflictError, RefusedError, UsageError

Check = Callable[[str], None]


class Transaction:
    """Reads and writes of several keys that are stored together when its block ends, or not at all.

    Nothing that it writes shows anywhere before it is durable. Everything it has read must still be so when it is
    stored, or `ConflictError` is raised and nothing has changed. The server syncs each one to its disk, which takes it
    milliseconds; a transaction of one key is an ordinary write.

    Example::

        async with ctx.shared.transaction() as tx:
            tx.set("stock", tx.get("stock") - 1)
            tx.set("sold", tx.get("sold", 0) + 1)

    Attributes:
        revision: The context's revision once it is stored; 0 before, and if it wrote nothing.
    """

    def __init__(self, state: State, principal: str, may_read: Check, may_write: Check) -> None:
        self.revision = 0
        self._state, self._principal = state, principal
        self._may_read, self._may_write = may_read, may_write
        self._read: dict[str, int] = {}
        self._written: dict[str, Version] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, from memory: what this transaction wrote, or what was last confirmed.

        Raises:
            RefusedError: The agent may not read this key.
        """
        self._may_read(key)
        version = self._written.get(key)
        if version is None:
            version = self._state.versions.get(key)
            self._read.setdefault(key, version.revision if version else 0)
        return default if version is None or version.deleted else version.value()

    def set(self, key: str, value: Any) -> None:
        """Write a value.

        Raises:
            RefusedError: The writer may not write this key.
            InvalidNameError: The key is malformed.
            PayloadError: The value cannot be stored.
        """
        self._may_write(key)
        self._written[key] = Version(codec.encode(value), self._principal)

    def delete(self, key: str) -> None:
        """Delete a key; errors as for `set`."""
        self._may_write(key)
        self._written[key] = Version(b"", self._principal, deleted=True)

    @property
    def read(self) -> list[str]:
        """The keys that it has read."""
        return list(self._read)

    # Storing it

    def commit_here(self, write: Callable[[str, Version], int]) -> None:
        """Store it in a context on its own.

        Raises:
            ConflictError: Somebody else wrote a key that it read.
        """
        for key, revision in self._read.items():
            known = self._state.versions.get(key)
            if (known.revision if known else 0) != revision:
                msg = f"{key!r} was written by somebody else meanwhile; nothing was changed"
                raise ConflictError(msg)
        for key, version in self._written.items():
            self.revision = write(key, version)

    async def commit(self, writer: Writer, bus: Bus) -> None:
        """Store it in the bucket, after this process's earlier writes of the same keys.

        Raises:
            ConflictError: Somebody else wrote a key that it read.
            UsageError: It has too many keys.
        """
        if not self._written:
            return
        messages = list(_messages(writer.bucket, self._read, self._written))
        if len(messages) > MAX_BATCH:
            msg = f"a transaction may read and write {MAX_BATCH:,} keys, and this one has {len(messages):,}; split it"
            raise UsageError(msg)
        async with AsyncExitStack() as locks:
            for key in sorted(self._written):
                await locks.enter_async_context(writer.turn(key))
            if len(messages) == 1 and not messages[0].guarded:  # fifty times as fast: the server syncs a batch to disk
                ((key, version),) = self._written.items()
                await writer.store(key, version, messages[0].expect, bus)
                self.revision = version.revision
                return
            last = await store_batch(bus, messages, id=bus.new_id())
            if last is None:
                await self._look(writer, bus)
            else:
                self._apply(messages, last, writer)

    def _apply(self, messages: list[BatchMessage], last: int, writer: Writer) -> None:
        self.revision = last
        for sequence, message in enumerate(messages, last - len(messages) + 1):
            self._written[message.subject.split(".", 2)[2]].revision = sequence
        for key, version in self._written.items():
            writer.state.apply(key, version)

    async def _look(self, writer: Writer, bus: Bus) -> None:
        """It was stored by a try whose acknowledgement was lost: others may have written since."""
        for key in self._written:
            try:
                await writer.read_through([key], bus)
            except RefusedError:  # a key that it may write and not read
                continue
        self.revision = writer.state.revision


def _messages(bucket: str, read: Mapping[str, int], written: Mapping[str, Version]) -> Iterator[BatchMessage]:
    """Yield the messages of a batch. Each has room for one guard.

    A key that is written blindly lends its message to one that is only read; beyond these, the last write is
    repeated, once for each guard that is left.
    """
    only_read = [key for key in read if key not in written]
    message = BatchMessage("", b"", {})
    for key, version in written.items():
        message = BatchMessage(subjects.key(bucket, key), version.data, version_headers(version), expect=read.get(key))
        if message.expect is None and only_read:
            message = _guarding(message, bucket, only_read.pop(), read)
        yield message
    for key in only_read:
        yield _guarding(message, bucket, key, read)


def _guarding(message: BatchMessage, bucket: str, key: str, read: Mapping[str, int]) -> BatchMessage:
    return message._replace(expect=read[key], guarded=subjects.key(bucket, key))
