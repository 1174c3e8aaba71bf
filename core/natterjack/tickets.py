"""Tickets: what brings a run back that waits.

A run that waits holds no process: it leaves a ticket on `wake.<agent>.<run>` and is done with the message in hand. The
stream is a queue of one ticket for each run. A replica of the agent gets the ticket at once, hands it back until it is
due, and holds it while the run goes on. Whoever replaces a ticket says which (compare-and-set): so an event wakes a run
once, a run that goes on is not woken again, and a replica that was paused past its lease changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from natterjack import codec, subjects
from natterjack.bus import Bus, Message
from natterjack.errors import ConflictError, FencedError, PayloadError

WAKES_STREAM: Final[dict[str, Any]] = {
    "subjects": [subjects.wake("*")],
    "republish": {"src": "wake.>", "dest": "feed.wake.>"},
    "retention": "workqueue",
    "max_msgs_per_subject": 1,  # whoever wakes a run takes the place of its ticket
    "max_age": 31 * 86_400 * 10**9,  # longer than any run may wait
}
"""What provisioning makes of the stream of tickets."""


class Wait(NamedTuple):
    """What a run waits for.

    Attributes:
        type: Pattern of the event's type.
        where: Condition on it; empty: any.
        after: Sequence in EVENTS behind which it stands.
    """

    type: str
    where: str
    after: int


@dataclass(frozen=True, slots=True)
class Ticket:
    """One waiting run.

    Attributes:
        run: Its id.
        due: When it goes on whatever happens, Unix seconds; 0: now.
        waits: The events of which any wakes it earlier.
        sequence: Of the ticket in its stream; 0: it is not there.
    """

    run: str
    due: float
    waits: Sequence[Wait] = field(default=())
    sequence: int = 0


def read_ticket(message: Message, sequence: int) -> Ticket:
    """Return the ticket in a message; one that cannot be read is due, and its run then says what is to come."""
    subject = (message.headers or {}).get("Nats-Subject", message.subject)
    run = subject.rpartition(".")[2]
    try:
        data = codec.decode(message.data)
        waits = tuple(Wait(str(type), str(where), int(after)) for type, where, after in data.get("waits", ()))
        return Ticket(run, float(data["due"]), waits, sequence)
    except (PayloadError, LookupError, TypeError, ValueError, AttributeError):  # anybody may have sent it
        return Ticket(run, 0.0, (), sequence)


async def leave(bus: Bus, agent: str, ticket: Ticket) -> int:
    """Store a ticket in the place of the one with its sequence, and return the new one's sequence.

    Raises:
        FencedError: Another one stands there: the run goes on elsewhere.
    """
    data: dict[str, Any] = {"due": ticket.due}
    if ticket.waits:
        data["waits"] = [list(wait) for wait in ticket.waits]
    subject = subjects.wake(agent, ticket.run)
    try:
        stored = await bus.store(subject, codec.encode(data), expect=ticket.sequence, stream=subjects.WAKES)
    except ConflictError as error:
        msg = f"run {ticket.run} of {agent!r} goes on elsewhere; this replica leaves it"
        raise FencedError(msg) from error
    return stored.sequence


async def current(bus: Bus, agent: str, run: str) -> Ticket | None:
    """Return the ticket of a run, if it has one: it waits, or was woken and goes on."""
    message = await bus.last(subjects.WAKES, subjects.wake(agent, run))
    if message is None:
        return None
    return read_ticket(message, int((message.headers or {})["Nats-Sequence"]))
