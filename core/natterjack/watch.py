"""The watch: wakes runs when an event comes for which they wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from natterjack import subjects
from natterjack.bus import Bus, Consumer, Message, place_of
from natterjack.coroutines import WorkQueue
from natterjack.errors import NatterjackError, PayloadError
from natterjack.events import read_event
from natterjack.facilities import Facilities
from natterjack.messages import Event
from natterjack.peers import cancel_all
from natterjack.specs import ConsumerSpec
from natterjack.tickets import Ticket, current, read_ticket
from natterjack.waits import hasten, holds

log = logging.getLogger("natterjack.waits")

SLOTS: Final = 256
"""Events that are looked at together."""
_FEED_WAIT: Final = 0.2
_PAUSE: Final = 1.0
_AT_ONCE: Final = 256


class Board:
    """The tickets of one agent's waiting runs, as the server has them.

    They come by the feed. Before an event is looked at, the board makes sure that it has the newest ticket of all; if
    that does not come soon, or the feed may have lost something, it reads them all again.

    Args:
        bus: The agent's connection.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus, self._agent = bus, bus.principal
        self._tickets: dict[str, Ticket] = {}
        self._seen, self._whole = 0, False
        self._more = asyncio.Event()
        self._reading = asyncio.Lock()

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Follow the feed within the context."""
        feed = subjects.wake(self._agent, root="feed.wake")
        subscription = await self._bus.listen(feed, self._fed)
        try:
            async with self._bus.reconnects(self._doubt):
                yield
        finally:
            self._whole = False
            await subscription.unsubscribe()

    def _doubt(self) -> None:
        self._whole = False

    def _fed(self, message: Message) -> None:
        sequence = int((message.headers or {}).get("Nats-Sequence", 0))
        run = message.subject.rpartition(".")[2]
        self._put(read_ticket(message, sequence), run)
        self._seen = max(self._seen, sequence)
        self._more.set()

    def _put(self, ticket: Ticket, run: str) -> None:
        known = self._tickets.get(run)
        if known is not None and known.sequence >= ticket.sequence:
            return
        if ticket.waits:
            self._tickets[run] = ticket
        else:  # it is due, or just sleeps
            self._tickets.pop(run, None)

    async def refresh(self) -> None:
        """Return once it has all that the server had when this was called."""
        last = await self._bus.last(subjects.WAKES, subjects.wake(self._agent, "*"))
        newest = int((last.headers or {})["Nats-Sequence"]) if last is not None else 0
        if self._whole and newest > self._seen:
            await self._await(newest)
        if not self._whole or newest > self._seen:
            async with self._reading:
                if not self._whole or newest > self._seen:
                    await self._read_all(newest)

    async def _await(self, sequence: int) -> None:
        try:
            async with asyncio.timeout(_FEED_WAIT):
                while self._seen < sequence:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            log.debug("%s: the feed of tickets is late", self._agent)

    async def _read_all(self, newest: int) -> None:
        self._whole = True  # unless the feed breaks off meanwhile
        waiting = await self._bus.subjects_in(subjects.WAKES, subjects.wake(self._agent, "*"))
        runs = [subject.rpartition(".")[2] for subject in waiting]
        for begin in range(0, len(runs), _AT_ONCE):
            some = runs[begin : begin + _AT_ONCE]
            for run, ticket in zip(some, await self._tickets_of(some), strict=True):
                if ticket is not None:
                    self._put(ticket, run)
                    self._seen = max(self._seen, ticket.sequence)
        self._seen = max(self._seen, newest)

    async def _tickets_of(self, runs: list[str]) -> list[Ticket | None]:
        return await asyncio.gather(*(current(self._bus, self._agent, run) for run in runs))

    def waiting_for(self, event: Event, now: float) -> list[Ticket]:
        """Return the tickets that are not due, of which a wait is over by an event."""
        for run in [ticket.run for ticket in self._tickets.values() if ticket.due <= now]:
            del self._tickets[run]
        return [ticket for ticket in self._tickets.values() if _is_met(ticket, event)]


def _is_met(ticket: Ticket, event: Event) -> bool:
    return any(holds(wait, event) for wait in ticket.waits)


class Watch:
    """Takes the events for which the runs of one agent may wait, and wakes those that do.

    Args:
        facilities: What the agent works with.
        spec: Which events.
    """

    def __init__(self, facilities: Facilities, spec: ConsumerSpec) -> None:
        self._bus, self._clock, self._board = facilities.bus, facilities.clock, Board(facilities.bus)
        self._work = WorkQueue(self._handle)
        self._consumer = Consumer(facilities.bus, spec, self._work.put, slots=SLOTS)

    async def run(self) -> None:
        """Watch until cancelled; what has not been looked at then is given back."""
        try:
            async with self._board.followed():
                await self._consumer.run()
        finally:
            await cancel_all(self._work.tasks, f"the watch of {self._bus.principal!r}")
            for message in self._work.waiting:
                self._consumer.nak(message)

    async def _handle(self, message: Message) -> None:
        try:
            event, _ = read_event(message, place_of(message))
        except PayloadError as error:  # whoever has a trigger for it says so
            log.debug("%s waits for no event that cannot be read: %s", self._bus.principal, error)
            self._consumer.ack(message)
            return
        try:
            await self._board.refresh()
            await asyncio.gather(*(self._wake(each, event) for each in self._waiting_for(event)))
        except asyncio.CancelledError:
            self._consumer.nak(message)
            raise
        except NatterjackError as error:
            log.info("%s looks at event %d again later: %s", self._bus.principal, event.sequence, error)
            self._consumer.nak(message, _PAUSE)
        else:
            self._consumer.ack(message)

    def _waiting_for(self, event: Event) -> list[Ticket]:
        return self._board.waiting_for(event, self._clock.now())

    async def _wake(self, ticket: Ticket, event: Event) -> None:
        found: Ticket | None = ticket
        while found is not None and found.due > self._clock.now() and _is_met(found, event):
            if await hasten(self._bus, self._bus.principal, found):
                log.debug("event %d wakes run %s", event.sequence, found.run)
                return
            found = await current(self._bus, self._bus.principal, ticket.run)  # it has left again meanwhile
