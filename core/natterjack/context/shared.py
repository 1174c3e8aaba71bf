"""The shared context: state that a team reads locally and writes through the broker.

Alone, an `AgentContext` is a dictionary with write permissions. Attached to a bus it is a replica of the KV bucket
`context`: reads stay local, a write shows in its own process at once and everywhere else when the broker has it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Final

from natterjack import codec, subjects
from natterjack.bus import Bus
from natterjack.components import Rule
from natterjack.context.replica import Replica, read_history
from natterjack.context.state import Change, Revision, State, Version, Watch
from natterjack.context.writer import Write, Writer, Writes, create
from natterjack.errors import ConflictError, DisconnectedError, RequestTimeoutError, UsageError
from natterjack.guards import Guards

__all__ = ["AgentContext", "Change", "Revision", "SharedContext", "Write"]

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

    Attributes:
        guards: Asked before each write.
        write_permissions: As given.

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
    ) -> None:
        self.guards = Guards() if write_permissions is None else _guards(write_permissions)
        self.write_permissions = write_permissions
        self._state = State()
        self._writer = Writer(self._state)
        self._past: dict[str, deque[Revision]] = {}  # of the time on its own
        self._bus: Bus | None = None
        self._replica: Replica | None = None
        self._closed = False
        for key, value in (initial_state or {}).items():
            subjects.check_type(key, "context key")
            self._write_here(key, Version(codec.encode(value), subjects.OPERATOR), None)

    # The runtime's side

    async def seed(self, bus: Bus) -> None:
        """Store what this context has, each key only if the bucket never had it; provisioning does this."""
        for key, version in self._state.versions.items():
            await create(bus, key, version)

    async def attach(self, bus: Bus) -> None:
        """Become a replica of the bucket.

        Args:
            bus: The connection it reads by, and writes by for whoever has no other.

        Raises:
            NotProvisionedError: There is no bucket.
            RefusedError: The broker does not allow to read it.
            UsageError: It is attached already.
        """
        if self._replica is not None:
            msg = "this context is attached to a bus already; close it first, or make another AgentContext"
            raise UsageError(msg)
        state = State(self._state.watches)
        replica = Replica(state, bus)
        await replica.start()
        self._state, self._writer = state, Writer(state)
        self._replica, self._bus, self._closed = replica, bus, False

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

    def acting_as(self, principal: str, bus: Bus) -> SharedContext:
        """Return the context as one agent has it: it writes as that agent, by its own connection."""
        return SharedContext(self, principal, bus)

    # Reading

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, from memory. A dict or list is a fresh copy: changing it changes nothing here."""
        version = self._writer.overlay.get(key) or self._state.versions.get(key)
        if version is None or version.deleted:
            return default
        return version.value()

    def keys(self) -> list[str]:
        """Return all keys, sorted."""
        shown = self._state.versions | self._writer.overlay
        return sorted(key for key, version in shown.items() if not version.deleted)

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
        watch = Watch(subjects.check_pattern(pattern))
        self._state.watches.add(watch)
        if self._closed:
            watch.close()
        return watch

    async def history(self, key: str) -> list[Revision]:
        """Return the last versions of a key, oldest first; the bucket keeps 16."""
        return await self._history(key, self._bus)

    async def _history(self, key: str, bus: Bus | None) -> list[Revision]:
        subjects.check_type(key, "context key")
        if bus is None:
            return list(self._past.get(key, ()))
        known = self._state.versions.get(key)
        return await read_history(bus, key, known.revision if known else 0)

    async def refresh(self) -> None:
        """Return once it has all that the server had at the call.

        Raises:
            BrokerError: The server does not answer.
        """
        if self._replica is not None:
            await self._replica.reach(await self._replica.last())

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
        """
        return self._set(key, value, writer or subjects.OPERATOR, expected, self._bus)

    def delete(self, key: str, *, writer: str | None = None) -> Write:
        """Delete a key; errors as for `set`."""
        return self._delete(key, writer or subjects.OPERATOR, self._bus)

    async def update(self, key: str, fn: Callable[[Any], Any], *, writer: str | None = None) -> Any:
        """Replace a value by what `fn` makes of it, and return that; no change of others is lost.

        Args:
            key: Tokens joined by dots.
            fn: From the value (`None` if there is none) to the new value; called again when somebody was faster.
            writer: Who writes; the operator by default.

        Raises:
            ConflictError: Others were faster for 30 s on end.
            RefusedError: The writer may not write this key.
        """
        return await self._update(key, fn, writer or subjects.OPERATOR, self._bus)

    async def flush(self) -> None:
        """Return once all writes are durable.

        Raises:
            NatterjackError: The first failure of a write that nobody awaited.
        """
        await self._writer.writes.settle()

    # The same for the views: everything names its principal and its connection

    def _check(self, principal: str, key: str) -> None:
        subjects.check_type(key, "context key")
        self.guards.check(principal, "write", key)
        if self._closed:
            msg = "the context is closed; nothing can be written any more"
            raise DisconnectedError(msg)

    def _set(self, key: str, value: Any, principal: str, expected: int | None, bus: Bus | None) -> Write:
        self._check(principal, key)
        return self._write(key, Version(codec.encode(value), principal), expected, bus)

    def _delete(self, key: str, principal: str, bus: Bus | None) -> Write:
        self._check(principal, key)
        return self._write(key, Version(b"", principal, deleted=True), None, bus)

    def _write(self, key: str, version: Version, expected: int | None, bus: Bus | None) -> Write:
        if bus is None:
            return self._write_here(key, version, expected)
        return self._writer.write(key, version, expected, bus)

    def _write_here(self, key: str, version: Version, expected: int | None) -> Write:
        known = self._state.versions.get(key)
        current = known.revision if known else 0
        if expected is not None and expected != current:
            msg = f"{key!r} has revision {current}, not {expected}"
            raise ConflictError(msg)
        version.revision = self._state.revision + 1
        self._state.apply(key, version)
        self._past.setdefault(key, deque(maxlen=_HISTORY)).append(version.past())
        return Write(version.revision)

    async def _update(self, key: str, fn: Callable[[Any], Any], principal: str, bus: Bus | None) -> Any:
        self._check(principal, key)
        if bus is not None:
            return await self._writer.update(key, fn, principal, bus)
        value = fn(self.get(key))
        self._write_here(key, Version(codec.encode(value), principal), None)
        return value


class SharedContext:
    """The context as one agent has it: it cannot write as anybody else. Made for each run, and cheap.

    Methods without a word of their own do what those of `AgentContext` do.
    """

    __slots__ = ("_bus", "_context", "_principal", "_writes")

    def __init__(self, context: AgentContext, principal: str, bus: Bus) -> None:
        self._context, self._principal, self._bus = context, principal, bus
        self._writes: Writes | None = None

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, from memory."""
        return self._context.get(key, default)

    def keys(self) -> list[str]:
        """Return all keys, sorted."""
        return self._context.keys()

    @property
    def revision(self) -> int:
        """The highest revision that was read or written in this process."""
        return self._context.revision

    def watch(self, pattern: str = ">") -> AsyncIterator[Change]:
        """Return changes as they come."""
        return self._context.watch(pattern)

    async def history(self, key: str) -> list[Revision]:
        """Return the last versions of a key, oldest first."""
        return await self._context._history(key, self._bus)

    async def refresh(self) -> None:
        """Return once it has all that the server had at the call."""
        await self._context.refresh()

    async def reach(self, revision: int, timeout: float = 5.0) -> None:
        """Return once it has all up to a revision of the server."""
        await self._context.reach(revision, timeout)

    def set(self, key: str, value: Any, *, expected: int | None = None) -> Write:
        """Write a value."""
        return self._kept(self._context._set(key, value, self._principal, expected, self._bus))

    def delete(self, key: str) -> Write:
        """Delete a key."""
        return self._kept(self._context._delete(key, self._principal, self._bus))

    async def update(self, key: str, fn: Callable[[Any], Any]) -> Any:
        """Replace a value by what `fn` makes of it, and return that."""
        return await self._context._update(key, fn, self._principal, self._bus)

    async def settle(self) -> None:
        """Return once all that was written through this view is durable, or raise the first unheard failure."""
        if self._writes is not None:
            await self._writes.settle()

    flush = settle

    def _kept(self, write: Write) -> Write:
        if write.task is not None:
            self._writes = self._writes or Writes()
            self._writes.add(write)
        return write


def _guards(permissions: Mapping[str, Sequence[str]]) -> Guards:
    rules = [
        Rule(principal, "write", subjects.check_pattern(pattern), "write_permissions")
        for principal, patterns in permissions.items()
        for pattern in patterns
    ]
    return Guards.load([*rules, Rule(subjects.OPERATOR, "write", ">")], frozenset({("*", "write")}))
