"""The shared context: state that a team reads locally and writes through the broker.

Alone, an `AgentContext` is a dictionary with write permissions. Attached to a bus it is a replica of the KV bucket
`context`: reads stay local, a write shows in its own process at once and everywhere else when the broker has it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, TypeVar

from natterjack import codec, subjects
from natterjack.bus import Bus
from natterjack.context.follower import Follower
from natterjack.context.partial import PartialReplica
from natterjack.context.replica import Replica
from natterjack.context.state import Change, Revision, State, Version, Watch
from natterjack.context.transaction import Transaction
from natterjack.context.view import SharedContext
from natterjack.context.writer import Writer, create
from natterjack.context.writes import Write
from natterjack.errors import ConflictError, DisconnectedError, RequestTimeoutError, UsageError
from natterjack.guards import Guards
from natterjack.rights import Rule

__all__ = ["AgentContext", "Change", "Revision", "SharedContext", "Transaction", "Write"]

T = TypeVar("T")

_HISTORY: Final = 16


class AgentContext:
    """State that the agents of a team share, with who may write what.

    It works at once, on its own; a runtime attaches it to the broker. What is set before counts as initial state.

    Example::

        shared = AgentContext(
            initial_state={"status": "in_progress"},
            write_permissions={"researcher": ["findings", "sources"], "writer": ["draft", "status"]},
        )
        await shared.set("findings", ["…"], writer="researcher")

    Args:
        initial_state: Values by key, to begin with.
        write_permissions: Keys, or patterns of keys, that each agent may write; the operator may write all.
        read_permissions: The same for reading. None: every agent may read all, but in a bucket beside the main
            context nobody but the operator may read anything.

    Attributes:
        guards: Asked before each write.
        write_permissions: As given.
        read_permissions: As given.
        bucket: Its name, once it is attached; empty for the main context.
        writer: In whose name it writes where nobody is named; the operator's by default.

    Raises:
        InvalidNameError: A key is malformed.
        PatternError: A permission is malformed.
        PayloadError: A value cannot be stored.
        ConfigError: There are permissions, but no guard is installed.
    """

    def __init__(
        self,
        initial_state: Mapping[str, Any] | None = None,
        write_permissions: Mapping[str, Sequence[str]] | None = None,
        read_permissions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.guards = Guards() if write_permissions is None else _guards(write_permissions)
        self.write_permissions, self.read_permissions = write_permissions, read_permissions
        for patterns in (read_permissions or {}).values():
            for pattern in patterns:
                subjects.check_pattern(pattern)
        self.bucket, self.writer = "", subjects.OPERATOR
        self._state = State()
        self._writer = Writer(self._state)
        self._past: dict[str, deque[Revision]] = {}  # of the time on its own
        self._bus: Bus | None = None
        self._replica: Follower | None = None
        self._closed = False
        for key, value in (initial_state or {}).items():
            subjects.check_type(key, "context key")
            self._write_here(key, Version(codec.encode(value), subjects.OPERATOR))

    # The runtime's side

    async def seed(self, bus: Bus, bucket: str = "") -> None:
        """Store what this context has, each key only if the bucket never had it; provisioning does this."""
        for key, version in self._state.versions.items():
            await create(bus, subjects.context_bucket(bucket), key, version)

    async def attach(self, bus: Bus, bucket: str = "", *, reads: Sequence[str] | None = None) -> None:
        """Become a replica of the bucket.

        Args:
            bus: The connection it reads by, and writes by for whoever has no other.
            bucket: The bucket's name; empty for the main context.
            reads: Patterns of the keys that `bus` may read, all by default. Without any,
                nothing is followed, and it can only be written.

        Raises:
            NotProvisionedError: There is no bucket.
            RefusedError: The broker does not allow to read it.
            UsageError: It is attached already.
        """
        if self._bus is not None:
            msg = "this context is attached to a bus already; close it first, or make another AgentContext"
            raise UsageError(msg)
        state, name = State(self._state.watches), subjects.context_bucket(bucket)
        whole = reads is None or ">" in reads
        replica = Replica(state, bus, name) if whole else PartialReplica(state, bus, name, reads or ())
        if whole or reads:
            await replica.start()
            self._replica = replica
        self._state, self._writer = state, Writer(state, name)
        self._bus, self.bucket, self._closed = bus, bucket, False

    async def close(self) -> None:
        """Wait for outstanding writes and stop. What was read stays readable.

        Raises:
            NatterjackError: The first failure of a write that nobody awaited.
        """
        self._closed = True
        try:
            await self._writer.writes.settle()
        finally:
            replica, self._replica, self._bus = self._replica, None, None
            await self._writer.cancel()
            if replica is not None:
                await replica.close()
            for watch in list(self._state.watches):
                watch.close()

    def acting_as(self, principal: str, bus: Bus, reads: Sequence[str] | None = None) -> SharedContext:
        """Return the context as one agent has it.

        Args:
            principal: Who writes.
            bus: By which connection.
            reads: Patterns of the keys that it may read; all by default.
        """
        return SharedContext(self, principal, bus, reads)

    # Reading

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, from memory. A dict or list is a fresh copy: changing it changes nothing here."""
        version = self._writer.overlay.get(key) or self._state.versions.get(key)
        if version is None or version.deleted:
            return default
        return version.value()

    def keys(self, pattern: str = ">") -> list[str]:
        """Return all keys that match a pattern, sorted.

        Raises:
            PatternError: The pattern is malformed.
        """
        shown = self._state.versions | self._writer.overlay
        wanted = None if pattern == ">" else subjects.check_pattern(pattern)
        return sorted(
            key
            for key, version in shown.items()
            if not version.deleted and (wanted is None or subjects.matches(wanted, key))
        )

    @property
    def revision(self) -> int:
        """The highest revision that was read or written here."""
        return self._state.revision

    def watch(self, pattern: str = ">") -> AsyncIterator[Change]:
        """Return changes as they come, from now on, until the context is closed.

        A slow reader misses values that were replaced meanwhile, never the newest one of a key.

        Raises:
            PatternError: The pattern is malformed.
        """
        return self._watch(Watch(subjects.check_pattern(pattern)))

    def _watch(self, watch: Watch) -> Watch:
        self._state.watches.add(watch)
        if self._closed:
            watch.close()
        return watch

    async def history(self, key: str) -> list[Revision]:
        """Return the last versions of a key, oldest first; the bucket keeps 16.

        Raises:
            InvalidNameError: The key is malformed.
            RequestTimeoutError: No server that answers has the newest.
        """
        return await self._as(None).history(key)

    async def refresh(self) -> None:
        """Return once it has all that the server had at the call.

        Raises:
            BrokerError: The server does not answer.
        """
        if self._replica is not None:
            await self._replica.refresh()

    async def reach(self, revision: int, timeout: float = 5.0) -> None:
        """Return once it has all up to a revision of the server, reading through if the feed is late [R7].

        Raises:
            RequestTimeoutError: Not within `timeout` seconds.
        """
        if self._replica is None or revision <= self._replica.covered:
            return
        try:
            async with asyncio.timeout(timeout):
                await self._replica.reach(revision)
        except TimeoutError as error:
            msg = f"context revision {revision}"
            raise RequestTimeoutError(msg, timeout) from error

    # Writing

    def set(self, key: str, value: Any, *, writer: str | None = None, expected: int | None = None) -> Write:
        """Write a value: it shows here at once, and everywhere when the broker has it.

        Args:
            key: Tokens joined by dots.
            value: JSON data; it is copied.
            writer: Who writes; the operator by default.
            expected: Revision that the key must have (0: never written), or awaiting raises `ConflictError`.

        Returns:
            The write; await it for the revision. If it fails, the last confirmed value shows again, and awaiting
            raises; if nobody awaits, `flush` and `close` raise.

        Raises:
            RefusedError: The writer may not write this key.
            InvalidNameError: The key is malformed.
            PayloadError: The value cannot be stored.
            DisconnectedError: The context is closed.
        """
        return self._as(writer).set(key, value, expected=expected)

    def delete(self, key: str, *, writer: str | None = None) -> Write:
        """Delete a key; errors as for `set`."""
        return self._as(writer).delete(key)

    async def update(self, key: str, fn: Callable[[Any], Any], *, writer: str | None = None) -> Any:
        """Replace a value by what `fn` makes of it, and return that; no change of others is lost.

        Args:
            key: Tokens joined by dots.
            fn: From the value (`None` if there is none) to the new value; called again when somebody was faster.
            writer: Who writes; the operator by default.

        Raises:
            ConflictError: Others were faster for 30 s on end.
            RefusedError: The writer may not write this key.
            InvalidNameError: The key is malformed.
            PayloadError: What `fn` returned cannot be stored.
            DisconnectedError: The context is closed.
        """
        return await self._as(writer).update(key, fn)

    def transaction(self, *, writer: str | None = None) -> AbstractAsyncContextManager[Transaction]:
        """Read and write several keys together: at the block's end all of it is stored, or nothing.

        Example::

            async with context.transaction() as tx:
                tx.set("draft", tx.get("draft") + "The end.")
                tx.set("status", "complete")

        All processes see the writes at once, when all have arrived; readers of single keys (restricted `reads`,
        other NATS clients) see them one after the other.

        Args:
            writer: Who writes; the operator by default.

        Raises:
            ConflictError: Something that it read was written meanwhile; nothing was changed. `transact` tries again.
            ConfigError: The server takes no transactions for this context.
            RefusedError: By `tx.set` and `tx.delete`: the writer may not write that key.
            UsageError: It has more than 1,000 keys.
        """
        return self._as(writer).transaction()

    async def transact(self, fn: Callable[[Transaction], T], *, writer: str | None = None) -> T:
        """Call `fn` with a transaction, store what it wrote, and return what it returned.

        Args:
            fn: Reads and writes; called again when somebody was faster, so it must do nothing else.
            writer: Who writes; the operator by default.

        Raises:
            ConflictError: Others were faster for 30 s on end.
            NatterjackError: As `transaction`.
        """
        return await self._as(writer).transact(fn)

    async def flush(self) -> None:
        """Return once all writes are durable.

        Raises:
            NatterjackError: The first failure of a write that nobody awaited.
        """
        await self._writer.writes.settle()

    def _as(self, writer: str | None) -> SharedContext:
        return SharedContext(self, writer or self.writer, self._bus)

    # What the views use

    def _check(self, principal: str, key: str) -> None:
        subjects.check_type(key, "context key")
        self.guards.check(principal, "write", subjects.in_bucket(self.bucket, key))
        if self._closed:
            msg = "the context is closed; nothing can be written any more"
            raise DisconnectedError(msg)

    def _write_here(self, key: str, version: Version, expected: int | None = None) -> int:
        known = self._state.versions.get(key)
        current = known.revision if known else 0
        if expected is not None and expected != current:
            msg = f"{key!r} has revision {current}, not {expected}"
            raise ConflictError(msg)
        version.revision = self._state.revision + 1
        self._state.apply(key, version)
        self._past.setdefault(key, deque(maxlen=_HISTORY)).append(version.past())
        return version.revision


def _guards(permissions: Mapping[str, Sequence[str]]) -> Guards:
    rules = [
        Rule(principal, "write", subjects.check_pattern(pattern), "write_permissions")
        for principal, patterns in permissions.items()
        for pattern in patterns
    ]
    return Guards.load([*rules, Rule(subjects.OPERATOR, "write", ">")], frozenset({("*", "write")}))
