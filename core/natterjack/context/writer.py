"""The writing side of the shared context: writes show at once, keep their order, and are heard of when they fail."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakValueDictionary

from natterjack import codec, subjects
from natterjack.bus import AWAY, STORE_BUDGET, Bus, Message, encode_headers, is_full, stored
from natterjack.context.state import State, Version, read_message
from natterjack.context.writes import Write, Writes
from natterjack.errors import ConflictError, DisconnectedError, NatterjackError
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
        self._posted: dict[str, Write] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()

    async def cancel(self) -> None:
        """Give up what is under way; confirmed values show again."""
        for write in list(self.writes.open):
            self._end(write, DisconnectedError("the context was closed before the broker had it"))
            write.forget()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def write(self, key: str, version: Version, expected: int | None, bus: Bus) -> Write:
        """Show a version and send it: at once, or in a task where it has to wait, or may have to look twice [R5]."""
        write = Write(key, version, expected)
        if expected is not None or not self._is_free(key) or not self._post(write, bus):
            self._start(self._send(write, bus, self.turn(key)), key)
        self.overlay[key] = version
        self.writes.add(write)
        return write

    def _start(self, sending: Coroutine[Any, Any, None], key: str) -> None:
        task = asyncio.create_task(sending, name=f"natterjack write {key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # In turn

    def _is_free(self, key: str) -> bool:
        """Tell whether no write of a key is under way; its lock is there as long as somebody holds or wants it."""
        return key not in self._posted and key not in self._locks

    def turn(self, key: str) -> AbstractAsyncContextManager[None]:
        """Return what keeps this process's writes of a key in order, retries included."""
        lock = self._locks.get(key)
        if lock is None:
            self._locks[key] = lock = asyncio.Lock()
        return _turn(lock, self._posted.get(key))

    # Sending

    def _post(self, write: Write, bus: Bus) -> bool:
        """Send a write whose turn it is, without waiting for the answer; returns whether that was possible."""
        if not bus.connected:
            return False
        id = bus.new_id()
        headers = encode_headers({**version_headers(write.version), codec.MSG_ID: id})
        try:
            reply = bus.post(subjects.key(self.bucket, write.key), write.version.data, headers)
        except NatterjackError:  # a task meets the same, and tells of it
            return False
        self._posted[write.key] = write
        reply.add_done_callback(partial(self._answered, write, bus, id))
        return True

    def _answered(self, write: Write, bus: Bus, id: str, reply: asyncio.Future[Message]) -> None:
        try:
            write.version.revision = stored(subjects.key(self.bucket, write.key), reply.result()).sequence
        except NatterjackError as error:
            if not (isinstance(error, AWAY) or is_full(error)):
                self._end(write, error)
            elif not write.ended:  # it was not given up; it still has its turn
                self._start(self._send(write, bus, nullcontext(), id), write.key)
        else:
            self.state.apply(write.key, write.version)
            self._end(write)

    async def _send(self, write: Write, bus: Bus, turn: AbstractAsyncContextManager[None], id: str = "") -> None:
        try:
            async with turn:
                budget = max(0.0, write.deadline - time.monotonic())
                await self.store(write.key, write.version, write.expected, bus, budget, id)
        except Exception as error:
            self._end(write, error)
        else:
            self._end(write)

    def _end(self, write: Write, error: Exception | None = None) -> None:
        if write.ended:
            return
        if self.overlay.get(write.key) is write.version:  # otherwise a later write shows
            del self.overlay[write.key]
        if self._posted.get(write.key) is write:
            del self._posted[write.key]
        if error is not None:  # soon, because `gather` awaits in tasks that have yet to begin
            asyncio.get_running_loop().call_soon(_log_unheard, write, error)
        write.end(error)

    async def store(
        self, key: str, version: Version, expected: int | None, bus: Bus, budget: float = STORE_BUDGET, id: str = ""
    ) -> None:
        """Store a version within `budget` seconds; its key must have the expected revision."""
        subject, stream = subjects.key(self.bucket, key), subjects.bucket_stream(self.bucket)
        about = version_headers(version)
        ack = await bus.store(
            subject, version.data, headers=about, id=id, expect=expected, stream=stream, budget=budget
        )
        version.revision = ack.sequence
        self.state.apply(key, version)

    async def update(self, key: str, fn: Callable[[Any], Any], principal: str, bus: Bus) -> Any:
        """Replace a value by what `fn` makes of it; see `AgentContext.update`."""
        free = self._is_free(key)
        updating = self._compare_and_set(key, fn, principal, bus, self.turn(key))
        # Else a task, because tasks come to the lock in the order in which they were made, and other writes are tasks.
        return await (updating if free else asyncio.create_task(updating))

    async def _compare_and_set(
        self, key: str, fn: Callable[[Any], Any], principal: str, bus: Bus, turn: AbstractAsyncContextManager[None]
    ) -> Any:
        async def attempt() -> Any:
            known = self.state.versions.get(key)
            value = fn(known.value() if known else None)
            version = Version(codec.encode(value), principal)
            await self.store(key, version, known.revision if known else 0, bus, STORE_BUDGET)
            return value

        async with turn:
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


@asynccontextmanager
async def _turn(lock: asyncio.Lock, posted: Write | None) -> AsyncIterator[None]:
    async with lock:
        if posted is not None:  # it needed no lock, being alone
            await posted.until_ended()
        yield


def _log_unheard(write: Write, error: Exception) -> None:
    if not write.claimed:
        who, key = write.version.writer, write.key
        log.error("%s could not write %r, which shows its last value again: %s", who, key, error)


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
    envelope = Envelope(version.writer) if run is None else run.effect._replace(source=version.writer)
    headers = {codec.HEADER: codec.pack(envelope)}
    return {**headers, "KV-Operation": "DEL"} if version.deleted else headers
