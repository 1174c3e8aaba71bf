"""Order by key: events with one value of a field are handled one after another, in the order of their stream.

The server delivers in order, and to one replica at a time: the consumer's priority group pins one client (ADR-42).
What can still break the order is a message that was delivered and did not arrive here: to a replica that died, or
on a connection that went. The consumer's own sequence then has a gap. What comes behind a gap waits until the
server knows of no unacknowledged message but those held here; the missing one has then come again, or is done.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from bisect import insort
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Final

from natterjack import codec
from natterjack.bus import Message, consumer_sequence, place_of
from natterjack.errors import BrokerError
from natterjack.messages import Event

log = logging.getLogger("natterjack.ordering")

GROUP: Final = "ordered"
"""Name of the priority group by which one replica at a time is pinned."""
PIN_TIMEOUT: Final = 5.0
"""Seconds without a pull after which the server pins another replica."""
WINDOW: Final = 1_000
"""Events that are held at once: so many may wait behind one that fails, before those of other keys wait, too."""
ELSEWHERE: Final = math.inf
_FIRST_PAUSE, _LONGEST_PAUSE, _PATIENCE = 0.02, 0.5, 1.0


def key_of(event: Event, path: str) -> bytes | None:
    """Return the value at a dotted path of an event's data, as JSON; None where there is none."""
    value = event.data
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return None if value is None else codec.encode(value)


class Lanes:
    """Messages by key, each key in the order of the stream.

    Args:
        key_of: Returns a message's key; None for one that has none, which then waits for no other.
        handle: Handles a message, for the first time or again; returns the seconds after which to do it again,
            `ELSEWHERE` when another replica has taken it over, or None when it is done with.
        give_back: Hands back a message that is not handled here any more.
        outstanding: Asks the server how many messages it has delivered that are not acknowledged.
        spawn: Starts a task.
    """

    def __init__(
        self,
        key_of: Callable[[Message], Hashable],
        handle: Callable[[Message, bool], Awaitable[float | None]],
        give_back: Callable[[Message], None],
        outstanding: Callable[[], Awaitable[int]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self._key_of, self._handle, self._give_back = key_of, handle, give_back
        self._outstanding, self._spawn = outstanding, spawn
        self._held: dict[int, Message] = {}
        self._lanes: dict[Hashable, list[int]] = {}
        self._behind: list[int] = []
        self._expected, self._gap, self._waiting = 1, False, False
        self._stopping = asyncio.Event()

    def add(self, message: Message) -> bool:
        """Take a message that was delivered; False if it is held already."""
        sequence, delivery = place_of(message).sequence, consumer_sequence(message)
        self._gap = self._gap or delivery != self._expected
        self._expected = delivery + 1
        if sequence in self._held:
            return False
        self._held[sequence] = message
        if not self._gap and not self._waiting:
            self._enqueue(sequence)
            return True
        self._put_behind([sequence])
        return True

    def _put_behind(self, sequences: list[int]) -> None:
        self._gap = True
        self._behind += sequences
        if not self._waiting:
            self._waiting = True
            self._spawn(self._wait())

    def stop(self) -> None:
        """Begin nothing more: what is handled now is finished, and the rest given back."""
        self._stopping.set()

    async def _wait(self) -> None:
        """Let what stands behind a gap go on as soon as nothing that came before is anywhere else."""
        pause, patience, since = _FIRST_PAUSE, _PATIENCE, time.monotonic()
        while not self._stopping.is_set() and not await self._all_here():
            await self._pause(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)
            if time.monotonic() - since > patience:  # two replicas may wait for what the other holds behind its gap
                patience, since = patience * 2, time.monotonic()
                self._give_back_behind()
        self._waiting = False
        if self._stopping.is_set():
            self._give_back_behind()
        behind, self._behind = sorted(self._behind), []
        for sequence in behind:
            self._enqueue(sequence)

    def _give_back_behind(self) -> None:
        behind, self._behind = self._behind, []
        for sequence in behind:
            self._done(sequence)

    async def _all_here(self) -> bool:
        self._gap, before = False, set(self._held)
        try:
            outstanding = await self._outstanding()
        except BrokerError as error:
            log.debug("cannot ask what is outstanding, trying again: %s", error)
            return False
        return not self._gap and outstanding <= len(before & self._held.keys())

    def _enqueue(self, sequence: int) -> None:
        key = self._key_of(self._held[sequence])
        key = ("", sequence) if key is None else key
        lane = self._lanes.get(key)
        if lane is None:
            self._lanes[key] = [sequence]
            self._spawn(self._work(key))
        else:
            insort(lane, sequence)

    async def _work(self, key: Hashable) -> None:
        lane = self._lanes[key]
        try:
            while lane and not self._stopping.is_set():
                if await self._finish(lane.pop(0)) is ELSEWHERE:
                    rest, lane[:] = lane[:], []
                    self._put_behind(rest)
        finally:
            del self._lanes[key]
            for sequence in lane:
                self._done(sequence)

    async def _finish(self, sequence: int) -> float | None:
        message, again = self._held[sequence], False
        try:
            while (delay := await self._handle(message, again)) not in (None, ELSEWHERE):
                await self._pause(delay or 0.0)
                if self._stopping.is_set():
                    break
                again = True
            return delay
        finally:
            self._done(sequence)

    def _done(self, sequence: int) -> None:
        """Forget a message; one that has no verdict yet goes back."""
        message = self._held.pop(sequence, None)
        if message is not None:
            self._give_back(message)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
