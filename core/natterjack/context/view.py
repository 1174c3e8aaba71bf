"""The shared context as one agent has it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from natterjack import codec, subjects
from natterjack.bus import Bus
from natterjack.context.replica import read_history
from natterjack.context.state import Change, Revision, Version, Watch
from natterjack.context.transaction import Transaction
from natterjack.context.writer import race
from natterjack.context.writes import Write, Writes
from natterjack.errors import ConflictError, RefusedError

if TYPE_CHECKING:
    from natterjack.context.shared import AgentContext

T = TypeVar("T")


class SharedContext:
    """The context as one agent has it: it cannot write as anybody else. Made for each run, and cheap.

    An agent with `reads` of its own gets these keys only: `keys` and `watch` pass over the others, and to name
    another raises `RefusedError`.
    """

    __slots__ = ("_bus", "_context", "_principal", "_reads", "_writes")

    def __init__(
        self, context: AgentContext, principal: str, bus: Bus | None, reads: Sequence[str] | None = None
    ) -> None:
        self._context, self._principal, self._bus = context, principal, bus
        self._reads = None if reads is None or ">" in reads else tuple(reads)
        self._writes: Writes | None = None

    def _may_write(self, key: str) -> None:
        self._context._check(self._principal, key)

    def _may_read(self, key: str) -> None:
        if self._reads is not None and not self._readable(key):
            key, own = subjects.in_bucket(self._context.bucket, key), ", ".join(map(repr, self._reads)) or "nothing"
            msg = f"{self._principal!r} may not read {key!r}: here its `reads` name {own}"
            raise RefusedError(msg)

    def _readable(self, key: str) -> bool:
        return any(subjects.matches(pattern, key) for pattern in self._reads or ())

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, from memory; see `AgentContext.get`.

        Raises:
            RefusedError: The agent may not read this key.
        """
        if self._reads is not None:
            self._may_read(key)
        return self._context.get(key, default)

    def keys(self, pattern: str = ">") -> list[str]:
        """Return all keys that match a pattern and that the agent may read, sorted."""
        keys = self._context.keys(pattern)
        return keys if self._reads is None else [key for key in keys if self._readable(key)]

    @property
    def revision(self) -> int:
        """The highest revision that was read or written in this process."""
        return self._context.revision

    def watch(self, pattern: str = ">") -> AsyncIterator[Change]:
        """Return changes of keys that the agent may read, as they come; see `AgentContext.watch`."""
        return self._context._watch(Watch(subjects.check_pattern(pattern), self._reads))

    async def history(self, key: str) -> list[Revision]:
        """Return the last versions of a key, oldest first; see `AgentContext.history`.

        Raises:
            RefusedError: The agent may not read this key, or on its own connection no history.
        """
        self._may_read(key)
        subjects.check_type(key, "context key")
        context = self._context
        if self._bus is None:
            return list(context._past.get(key, ()))
        known = context._state.versions.get(key)
        return await read_history(self._bus, context._writer.bucket, key, known.revision if known else 0)

    async def refresh(self) -> None:
        """Return once it has all that the server had at the call; see `AgentContext.refresh`."""
        await self._context.refresh()

    async def reach(self, revision: int, timeout: float = 5.0) -> None:
        """Return once it has all up to a revision of the server; see `AgentContext.reach`."""
        await self._context.reach(revision, timeout)

    def set(self, key: str, value: Any, *, expected: int | None = None) -> Write:
        """Write a value; see `AgentContext.set`."""
        self._may_write(key)
        return self._write(key, Version(codec.encode(value), self._principal), expected)

    def delete(self, key: str) -> Write:
        """Delete a key; see `AgentContext.delete`."""
        self._may_write(key)
        return self._write(key, Version(b"", self._principal, deleted=True), None)

    async def update(self, key: str, fn: Callable[[Any], Any]) -> Any:
        """Replace a value by what `fn` makes of it, and return that; see `AgentContext.update`."""
        self._may_read(key)
        self._may_write(key)
        if self._bus is not None:
            return await self._context._writer.update(key, fn, self._principal, self._bus)
        value = fn(self._context.get(key))
        self._context._write_here(key, Version(codec.encode(value), self._principal))
        return value

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Read and write several keys together: all of it is stored, or nothing; see `AgentContext.transaction`."""
        context = self._context
        await context._writer.writes.quiet()  # what this process wrote before is read as it was stored
        transaction = Transaction(context._state, self._principal, self._may_read, self._may_write)
        yield transaction
        if self._bus is None:
            transaction.commit_here(context._write_here)
            return
        try:
            await transaction.commit(context._writer, self._bus)
        except ConflictError:
            await context._writer.read_through(transaction.read, self._bus)
            raise

    async def transact(self, fn: Callable[[Transaction], T]) -> T:
        """Call `fn` with a transaction, again when somebody was faster; see `AgentContext.transact`."""
        return await race(partial(self._attempt, fn))

    async def _attempt(self, fn: Callable[[Transaction], T]) -> T:
        async with self.transaction() as transaction:
            return fn(transaction)

    @property
    def unsettled(self) -> bool:
        """Whether there is something to settle."""
        return self._writes is not None

    async def settle(self) -> None:
        """Return once all that was written through this view is durable.

        Raises:
            NatterjackError: The first failure of a write that nobody awaited.
        """
        if self._writes is not None:
            await self._writes.settle()

    flush = settle

    def _write(self, key: str, version: Version, expected: int | None) -> Write:
        if self._bus is None:
            self._context._write_here(key, version, expected)
            write = Write(key, version)
            write.end()
            return write
        write = self._context._writer.write(key, version, expected, self._bus)
        self._writes = self._writes or Writes()
        self._writes.add(write)
        return write
