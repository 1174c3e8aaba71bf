"""The writing side of the shared context: writes show at once, keep their order, and are heard of when they fail."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakValueDictionary

from natterjack import codec, subjects
from natterjack.bus import STORE_BUDGET, Bus
from natterjack.context.state import State, Version, read_message
from natterjack.errors import ConflictError
from natterjack.messages import Envelope

T = TypeVar("T")

log = logging.getLogger("natterjack.context")

UPDATE_BUDGET: Final = 30.0
"""Seconds for which an update is tried again when others win the race for its key."""


class Cause(Protocol):
    """What somebody writes in: a run."""

    @property
    def effect(self) -> Envelope:
        """The envelope of what follows from it."""


CAUSE: Final[ContextVar[Cause | None]] = ContextVar("natterjack_cause", default=None)
"""The run that writes: what it follows from travels with its writes, so that whom these wake knows, too."""


class Write:
    """A write on its way. Await it for its revision; cancelling whoever awaits does not cancel the write.

    Attributes:
        task: What sends it; None where it was done at once.
        claimed: Whether somebody awaits it, and so hears of its failure.
    """

    __slots__ = ("_revision", "claimed", "task")

    def __init__(self, revision: int = 0, task: asyncio.Task[int] | None = None) -> None:
        self.task, self.claimed = task, False
        self._revision = revision

    def __await__(self) -> Generator[Any, None, int]:
        self.claimed = True
        return self._result().__await__()

    async def _result(self) -> int:
        if self.task is None:
            return self._revision
        return await asyncio.shield(self.task)


class Writes:
    """Writes that are under way, or have failed and nobody awaited them."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Task[int], Write] = {}

    def add(self, write: Write) -> None:
        """Keep a write until it is settled."""
        if write.task is not None:
            self._open[write.task] = write
            write.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[int]) -> None:
        if task.cancelled() or task.exception() is None:
            self._open.pop(task, None)
        else:
            self._open = {task: write for task, write in self._open.items() if not (task.done() and write.claimed)}

    async def settle(self) -> None:
        """Return once all are durable, or raise the first failure that nobody awaited."""
        while under_way := [task for task in self._open if not task.done()]:
            await asyncio.wait(under_way)
        unheard = [write for write in self._open.values() if not write.claimed]
        self._open.clear()
        for write in unheard:
            write.claimed = True
        for write in unheard:
            await write

    async def quiet(self) -> None:
        """Return once all that is under way now has ended, well or not."""
        if under_way := [task for task in self._open if not task.done()]:
            await asyncio.wait(under_way)

    async def cancel(self) -> None:
        """Give up what is under way."""
        tasks = list(self._open)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._open.clear()


class Writer:
    """Sends the writes of a process.

    Args:
        state: Takes what the broker confirmed.
        bucket: The KV bucket.

    Attributes:
        bucket: The KV bucket.
        state: What the broker confirmed.
        overlay: What was written here and is not confirmed, by key.
        writes: All writes that are not settled.
    """

    def __init__(self, state: State, bucket: str = subjects.CONTEXT_BUCKET) -> None:
        self.state, self.bucket = state, bucket
        self.overlay: dict[str, Version] = {}
        self.writes = Writes()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def cancel(self) -> None:
        """Give up what is under way; confirmed values show again."""
        await self.writes.cancel()
        self.overlay.clear()

    def write(self, key: str, version: Version, expected: int | None, bus: Bus) -> Write:
        """Show a version and send it."""
        deadline = time.monotonic() + STORE_BUDGET
        sending = self._send(key, version, expected, bus, self.lock(key), deadline)
        task = asyncio.create_task(sending, name=f"natterjack write {key}")
        write = Write(task=task)
        self.overlay[key] = version
        self.writes.add(write)
        task.add_done_callback(lambda _: _log_unheard(write, key, version.writer))
        return write

    def lock(self, key: str) -> asyncio.Lock:
        """Return what keeps this process's writes of a key in order, retries included."""
        lock = self._locks.get(key)
        if lock is None:
            self._locks[key] = lock = asyncio.Lock()
        return lock

    async def _send(
        self, key: str, version: Version, expected: int | None, bus: Bus, lock: asyncio.Lock, deadline: float
    ) -> int:
        try:
            async with lock:
                await self.store(key, version, expected, bus, max(0.0, deadline - time.monotonic()))
        finally:
            if self.overlay.get(key) is version:  # otherwise a later write shows
                del self.overlay[key]
        return version.revision

    async def store(
        self, key: str, version: Version, expected: int | None, bus: Bus, budget: float = STORE_BUDGET
    ) -> None:
        """Store a version within `budget` seconds; its key must have the expected revision."""
        subject, stream = subjects.key(self.bucket, key), subjects.bucket_stream(self.bucket)
        headers = version_headers(version)
        stored = await bus.store(subject, version.data, headers=headers, expect=expected, stream=stream, budget=budget)
        version.revision = stored.sequence
        self.state.apply(key, version)

    async def update(self, key: str, fn: Callable[[Any], Any], principal: str, bus: Bus) -> Any:
        """Replace a value by what `fn` makes of it; see `AgentContext.update`."""
        # A task, because tasks come to the lock in the order in which they were made, and each write is one.
        return await asyncio.create_task(self._compare_and_set(key, fn, principal, bus, self.lock(key)))

    async def _compare_and_set(
        self, key: str, fn: Callable[[Any], Any], principal: str, bus: Bus, lock: asyncio.Lock
    ) -> Any:
        async def attempt() -> Any:
            known = self.state.versions.get(key)
            value = fn(known.value() if known else None)
            version = Version(codec.encode(value), principal)
            await self.store(key, version, known.revision if known else 0, bus, STORE_BUDGET)
            return value

        async with lock:
            return await race(attempt, lambda: self.read_through([key], bus))

    async def read_through(self, keys: Iterable[str], bus: Bus) -> None:
        """Take the newest version of keys from the server."""
        stream = subjects.bucket_stream(self.bucket)
        for found in await asyncio.gather(*(bus.last(stream, subjects.key(self.bucket, key)) for key in keys)):
            if found is not None:
                self.state.apply(*read_message(found))


async def race(attempt: Callable[[], Awaitable[T]], look: Callable[[], Awaitable[None]] | None = None) -> T:
    """Return what an attempt returns, tried again for 30 s while others write first.

    Args:
        attempt: Reads, and writes what follows from it.
        look: Called before each further attempt: reads what others wrote.
    """
    deadline, pause = time.monotonic() + UPDATE_BUDGET, 0.001
    while True:
        try:
            return await attempt()
        except ConflictError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - spreads those who race
        pause = min(0.05, 2 * pause)
        if look is not None:
            await look()


def _log_unheard(write: Write, key: str, writer: str) -> None:
    task = write.task
    if task is None or task.cancelled() or write.claimed:
        return
    error = task.exception()
    if error is not None:
        log.error("%s could not write %r, which shows its last value again: %s", writer, key, error)


async def create(bus: Bus, bucket: str, key: str, version: Version) -> None:
    """Store the first version of a key; nothing happens if it ever had one."""
    subject, stream = subjects.key(bucket, key), subjects.bucket_stream(bucket)
    try:
        await bus.store(subject, version.data, headers=version_headers(version), expect=0, stream=stream)
    except ConflictError:
        log.debug("%r has a value already", key)


def version_headers(version: Version) -> dict[str, str]:
    """Return the headers with which a version is stored."""
    run = CAUSE.get()
    envelope = Envelope() if run is None else run.effect
    headers = {codec.HEADER: codec.pack(envelope._replace(source=version.writer))}
    return {**headers, "KV-Operation": "DEL"} if version.deleted else headers
