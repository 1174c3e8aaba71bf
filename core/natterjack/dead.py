"""Dead letters: events that could not be handled, kept with their cause until somebody decides.

A dead letter carries the original payload untouched; the `Natterjack-Dead` header says what happened to it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from natterjack import codec, subjects
from natterjack.bus import Bus, Message
from natterjack.errors import NotProvisionedError, PayloadError

HEADER: Final = "Natterjack-Dead"
MAX_CAUSE: Final = 2000
_PAGE: Final = 256


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event that an agent gave up on.

    Attributes:
        agent: Who.
        trigger: By which trigger it came.
        cause: Why.
        attempts: How often its handler had been started.
        stream: Stream of the original.
        subject: Its stored subject.
        sequence: Its sequence there.
        event: Its id.
        run: The run that failed.
        time: When it was given up, Unix seconds.
        number: The letter's own number, by which it is shown, retried and dropped.
        data: The original payload.
    """

    agent: str
    trigger: str
    cause: str
    attempts: int
    stream: str
    subject: str
    sequence: int
    event: str
    run: str
    time: float = 0.0
    number: int = 0
    data: bytes = b""

    @property
    def type(self) -> str:
        """The event type or topic of the original."""
        return subjects.split_stored(self.subject)[1]


async def bury(bus: Bus, letter: DeadLetter, message: Message) -> None:
    """Store a dead letter; a payload too large to fit beside the header stays where it is, by reference."""
    described = asdict(replace(letter, cause=letter.cause[:MAX_CAUSE], time=time.time()))
    del described["data"], described["number"]
    headers = {HEADER: json.dumps(described)}  # ASCII, as headers must be
    subject = subjects.dead(letter.agent, letter.trigger)
    try:
        await bus.store(subject, message.data, headers=headers)
    except PayloadError:
        await bus.store(subject, b"", headers=headers)


def read_letter(message: Message) -> DeadLetter:
    """Return the letter in a message on `dead.…`."""
    headers = message.headers or {}
    known = json.loads(headers[HEADER])
    return DeadLetter(**known, number=int(headers.get("Nats-Sequence", 0)), data=message.data)


async def dead_letters(bus: Bus, *, agent: str = "*", limit: int = 1000) -> list[DeadLetter]:
    """Return the dead letters, oldest first.

    Raises:
        NotProvisionedError: The team has not been provisioned.
    """
    found: list[DeadLetter] = []
    async for message in bus.read(subjects.DEAD, subjects.dead(agent, "*")):
        found.append(read_letter(message))
        if len(found) == limit:
            break
    return found


async def dead_letter(bus: Bus, number: int) -> DeadLetter:
    """Return one dead letter with its payload.

    Raises:
        NotProvisionedError: There is none of this number.
    """
    message = await bus.at(subjects.DEAD, number)
    if message is None:
        msg = f"dead letter {number}"
        raise NotProvisionedError(msg)
    return read_letter(message)


async def retry(bus: Bus, number: int) -> None:
    """Give the event of a dead letter to its agent again, through its inbox, and drop the letter.

    It goes to that agent alone and never to the shared event: others have handled theirs.
    """
    letter = await dead_letter(bus, number)
    headers: dict[str, Any] = {codec.HEADER: f"s={bus.principal}"}
    await bus.store(subjects.inbox(letter.agent, letter.type), letter.data, headers=headers)
    await drop(bus, number)


async def drop(bus: Bus, number: int) -> None:
    """Forget a dead letter."""
    await bus.api(f"STREAM.MSG.DELETE.{subjects.DEAD}", {"seq": number})
