"""Dead letters: events that could not be handled, kept with their cause until somebody decides.

A dead letter carries the original payload untouched; the `Natterjack-Dead` header says what happened to it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pydantic import TypeAdapter

from natterjack import codec, subjects
from natterjack.bus import Bus, Message
from natterjack.errors import NotProvisionedError, PayloadError

HEADER: Final = "Natterjack-Dead"
MAX_CAUSE: Final = 2000


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
        size: Bytes of the original payload.
        data: The original payload; empty where it was too large to be stored beside the header.
        lost: How many events it is about, at most, where these expired before the agent saw any; 0 for one that it
            gave up on. The sequence is that of the last, the subject a pattern.
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
    size: int = 0
    data: bytes = b""
    lost: int = 0

    @property
    def type(self) -> str:
        """The event type or topic of the original."""
        return subjects.split_stored(self.subject)[1]


_LETTER: Final = TypeAdapter(DeadLetter)


async def bury(bus: Bus, letter: DeadLetter, data: bytes) -> None:
    """Store a dead letter; a payload too large to fit beside the header stays where it is, by reference."""
    letter = replace(letter, cause=letter.cause[:MAX_CAUSE], time=time.time(), size=len(data))
    described = asdict(letter)
    del described["data"], described["number"]
    headers = {HEADER: json.dumps(described)}  # ASCII, as headers must be
    subject = subjects.dead(letter.agent, letter.trigger)
    try:
        await bus.store(subject, data, headers=headers)
    except PayloadError:
        await bus.store(subject, b"", headers=headers)


def read_letter(message: Message) -> DeadLetter:
    """Return the letter in a message on `dead.…`; one that is not ours says so in its cause."""
    headers = message.headers or {}
    number, size = int(headers.get("Nats-Sequence", 0)), len(message.data)
    agent, trigger = headers.get("Nats-Subject", message.subject).split(".")[1:3]
    try:
        letter = _LETTER.validate_json(headers[HEADER], strict=True)
        subjects.split_stored(letter.subject)
    except (LookupError, TypeError, ValueError) as error:
        cause = f"this dead letter cannot be read ({type(error).__name__}: {str(error)[:200]}); `drop` it"
        subject = subjects.stored_events("unreadable", subjects.ANYONE)
        return DeadLetter(agent, trigger, cause, 0, "", subject, 0, "", "", 0.0, number, size, message.data)
    # Whose letter it is says its subject, which needs a right, and not its header, which may say anything.
    return replace(letter, agent=agent, trigger=trigger, number=number, data=message.data)


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

    Raises:
        NotProvisionedError: There is none of this number.
        PayloadError: Its payload is kept nowhere any more.
    """
    letter = await dead_letter(bus, number)
    if letter.lost:
        msg = f"dead letter {number} cannot be retried: it tells of events that expired; `drop` it"
        raise PayloadError(msg)
    data = letter.data if len(letter.data) == letter.size else await _original(bus, letter)
    headers: dict[str, Any] = {codec.HEADER: f"s={bus.principal}"}
    await bus.store(subjects.inbox(letter.agent, letter.type), data, headers=headers)
    await drop(bus, number)


async def _original(bus: Bus, letter: DeadLetter) -> bytes:
    known = (subjects.EVENTS, subjects.MESSAGES, subjects.INBOX)  # a forged letter may name any stream
    message = await bus.at(letter.stream, letter.sequence) if letter.stream in known else None
    subject = (message.headers or {}).get("Nats-Subject") if message is not None else None
    if message is None or subject != letter.subject or len(message.data) != letter.size:
        msg = f"dead letter {letter.number} cannot be retried: its {letter.size:,} bytes are kept nowhere any more"
        raise PayloadError(msg)
    return message.data


async def drop(bus: Bus, number: int) -> None:
    """Forget a dead letter.

    Raises:
        NotProvisionedError: There is none of this number.
    """
    await dead_letter(bus, number)
    await bus.api(f"STREAM.MSG.DELETE.{subjects.DEAD}", {"seq": number})
