"""Wakes: the delivery of tickets, by which runs that waited go on."""

from __future__ import annotations

import logging
from typing import Final

from natterjack import subjects
from natterjack.bus import Message, place_of
from natterjack.dead import DeadLetter, bury
from natterjack.delivery import COLLISION_PAUSE, Delivery
from natterjack.durable import recall
from natterjack.events import read_event
from natterjack.journal import BEGUN
from natterjack.origins import Origin
from natterjack.runjournal import RunJournal
from natterjack.runs import RunContext
from natterjack.tickets import Ticket, read_ticket
from natterjack.waits import hasten

log = logging.getLogger("natterjack.delivery")

LONGEST_NAK: Final = 86_400.0
"""Seconds for which a ticket is handed back at once; then it is looked at again."""
FIRST_LOOK, LONGEST_LOOK = 5.0, 300.0
"""The same of one that waits for events: in a cluster, a feed may come later than an event that it should precede."""


class Wakes(Delivery):
    """Lets the runs of one agent go on when their tickets are due."""

    async def _handle(self, message: Message, *, again: bool = False) -> None:
        del again
        place = place_of(message)
        ticket = read_ticket(message, place.sequence)
        left = ticket.due - self._facilities.clock.now()
        if left > 0:
            await self._put_off(message, ticket, left, place.delivered)
        elif ticket.run in self.running:
            self._consumer.nak(message, COLLISION_PAUSE)
        else:
            self.running[ticket.run] = None
            try:
                await self._wake(message, ticket)
            finally:
                del self.running[ticket.run]

    async def _put_off(self, message: Message, ticket: Ticket, left: float, delivered: int) -> None:
        """Hand a ticket back until it is due; one that waits for events is looked at between, to be safe."""
        if ticket.waits:
            if delivered > 1 and await self._facilities.waits.happened(ticket.waits):
                await hasten(self._facilities.bus, self._facilities.agent, ticket)
                self._consumer.ack(message)  # another one has taken its place
                return
            left = min(left, LONGEST_LOOK, FIRST_LOOK * 2 ** min(delivered - 1, 8))
        self._consumer.nak(message, min(left, LONGEST_NAK))

    async def _wake(self, message: Message, ticket: Ticket) -> None:
        facilities = self._facilities
        journal = RunJournal(facilities.agent, ticket.run, facilities.journal, facilities.sinks)
        await journal.load()
        begun = next((entry.data for entry in journal.entries(kind=BEGUN)), None)
        if journal.ended:  # it was woken twice
            self._consumer.ack(message)
            return
        if not isinstance(begun, dict) or "payload" not in begun:
            await self._give_up_unknown(message, journal, ticket.run)
            return
        origin = Origin.kept(begun, message.reply, ticket.sequence)
        event, envelope = read_event(origin.message, origin.place)
        ctx = RunContext(
            facilities,
            ticket.run,
            envelope,
            caller=event.source,
            cause=event.id,
            timeout=self._spec.timeout,
            handles=origin,
            journal=journal,
        )
        recall(ctx)
        await self._go_on(origin.message, origin.place, ctx, event, envelope)

    async def _give_up_unknown(self, message: Message, journal: RunJournal, run: str) -> None:
        agent, cause = self._facilities.agent, "its journal does not say any more what it began with"
        log.error("%s: run %s cannot go on: %s", agent, run, cause)
        subject = subjects.stored_events("unreadable", subjects.ANYONE)
        await bury(self._facilities.bus, DeadLetter(agent, self._label, cause, 0, "", subject, 0, "", run), b"")
        await journal.record("dead", {"cause": cause, "attempts": 0})
        self._consumer.ack(message)
