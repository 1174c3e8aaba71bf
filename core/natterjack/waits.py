"""What runs wait for: events of types that their agent has declared (`waits`), perhaps under a condition."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import datetime
from functools import lru_cache
from typing import Any

from natterjack import subjects
from natterjack.bus import Bus, Message
from natterjack.errors import ConfigError, FencedError, PayloadError, nearest
from natterjack.events import read_stored
from natterjack.expressions import EVENT_VARIABLES, Condition, about
from natterjack.messages import Event
from natterjack.tickets import Ticket, Wait, leave

log = logging.getLogger("natterjack.waits")

_condition = lru_cache(1000)(lambda where: Condition(where, EVENT_VARIABLES))


def holds(wait: Wait, event: Event) -> bool:
    """Tell whether an event is one that is waited for."""
    if event.sequence <= wait.after or not subjects.matches(wait.type, event.type):
        return False
    if not wait.where:
        return True
    try:
        return bool(_condition(wait.where).holds(**about(event)))
    except PayloadError as error:
        log.info("event %d is none that is waited for: %s", event.sequence, error)
        return False


def journaled(event: Event) -> dict[str, Any]:
    """Return an event as JSON data."""
    return {**asdict(replace(event, headers=dict(event.headers))), "time": event.time.isoformat()}


def kept(data: dict[str, Any]) -> Event:
    """Return the event that a journal has."""
    return Event(**{**data, "time": datetime.fromisoformat(data["time"])})


class Waits:
    """What the runs of one agent may wait for, and whether it has happened.

    Args:
        bus: The agent's connection.
        patterns: Of the types that it has declared.
    """

    def __init__(self, bus: Bus, patterns: Sequence[str]) -> None:
        self._bus, self._patterns = bus, patterns

    def check(self, type: str, where: str | None) -> None:
        """Raise unless an agent may wait for this.

        Raises:
            ConfigError: It has not declared the type, or the condition is none.
            PatternError: The type is malformed.
        """
        subjects.check_pattern(type)
        if not any(subjects.matches(pattern, type) for pattern in self._patterns):
            msg = (
                f"{self._bus.principal!r} has not declared that it waits for {type!r}."
                f"{nearest(type, self._patterns)} Add it to its `waits`, and provision again"
            )
            raise ConfigError(msg)
        if where is not None:
            _condition(where)

    async def last(self) -> int:
        """Return the sequence of the newest event that is stored."""
        return int((await self._bus.api(f"STREAM.INFO.{subjects.EVENTS}"))["state"]["last_seq"])

    async def find(self, wait: Wait) -> tuple[Event | None, int]:
        """Return the first event that is waited for, if it is stored, and up to where none is."""
        pattern = subjects.stored_events(wait.type)
        after = wait.after
        async for message in self._bus.read(subjects.EVENTS, pattern, start=wait.after + 1):
            event = read_stored(message)
            if holds(wait, event):
                return event, after
            after = event.sequence
        return None, after

    @asynccontextmanager
    async def bell(self, type: str) -> AsyncIterator[asyncio.Event]:
        """Give what is set whenever there may be another event of a type."""
        bell = asyncio.Event()

        async def ring(_: Message) -> None:
            bell.set()

        feed = subjects.feed_events(type)
        subscription = await self._bus.subscribe(feed, ring, on_lost=bell.set)
        try:
            async with self._bus.reconnects(bell.set):
                yield bell
        finally:
            await subscription.unsubscribe()

    async def park(self, ticket: Ticket) -> None:
        """Leave a ticket; one that is due, if what it waits for came while it was left.

        Raises:
            FencedError: The run goes on elsewhere.
        """
        sequence = await leave(self._bus, self._bus.principal, ticket)
        if await self.happened(ticket.waits):
            await hasten(self._bus, self._bus.principal, replace(ticket, sequence=sequence))

    async def happened(self, waits: Iterable[Wait]) -> bool:
        """Tell whether any of this is stored by now."""
        for wait in waits:
            event, _ = await self.find(wait)
            if event is not None:
                return True
        return False


async def hasten(bus: Bus, agent: str, ticket: Ticket) -> bool:
    """Put a ticket that is due in the place of one that is not; False if somebody else has replaced that."""
    try:
        await leave(bus, agent, Ticket(ticket.run, 0.0, (), ticket.sequence))
    except FencedError as error:
        log.debug("%s", error)
        return False
    return True
