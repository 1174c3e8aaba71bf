"""The values that travel: events, envelopes, answers. Frozen, small, and free of behaviour."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from natterjack.errors import PeerError


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, as a handler sees it.

    Attributes:
        id: The publisher's id (`Nats-Msg-Id`), or else the stream sequence as text.
        type: What follows `events.`, `messages.` or `inbox.<agent>.` in the subject.
        data: The JSON value, or a `str` where the payload was text.
        source: The principal the broker attests, or in open mode the sender's own claim (may be empty).
        time: When the server stored it, aware, UTC.
        sequence: Its sequence in its stream; 0 for a live copy of unknown place.
        attempt: 1 for the first time it is handled, then 2, …
        headers: All headers, as received.
    """

    id: str
    type: str
    data: Any
    source: str
    time: datetime
    sequence: int = 0
    attempt: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)


class PlainMessage(NamedTuple):
    """What any program published on a subject that is none of Natterjack's.

    Attributes:
        subject: Where.
        data: The payload, as it is.
        headers: All headers.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Firing:
    """One firing of a schedule.

    Attributes:
        sequence: Its place among all firings.
        time: When the broker stored it, some tenths of a second after it was due.
        next: When it is due next; None: never.
        missed: Whether it was there before this process began, as was a later one, and nobody had taken it: then no
            process of the agent ran.
    """

    sequence: int
    time: datetime
    next: datetime | None
    missed: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """What the broker will do, and when.

    Attributes:
        owner: The agent that it wakes, or whoever emitted an event with a delay.
        name: The trigger's label, or the name under which the event is held.
        when: As the server reads it; see `ScheduleSpec.when`.
        zone: Time zone of a cron schedule; empty for UTC.
        since: When the server stored it.
        event: Type of the event that is held; empty for a trigger's.
        last: Its newest firing.
    """

    owner: str
    name: str
    when: str
    zone: str
    since: datetime
    event: str = ""
    last: Firing | None = None


class Envelope(NamedTuple):
    """What the one `Natterjack` header carries beside a payload.

    Attributes:
        source: The sender's own claim of its name.
        cause: Id of the event that caused this one.
        depth: How many events led to this one; 0 for one from outside.
        timeout: Seconds the asker will still wait, measured when it asked. A duration and not a clock time,
            so that two machines need not agree on the time of day.
        revision: The context revision the sender had seen; the receiver waits for it [R7].
        request: Id by which an ask can be cancelled, and in answer to it, by which the stream is spoken to; 128
            random bits.
        run: Run that answered or emitted.
        key: Id of an ask of a durable run, the same each time that it is repeated.
        approval: Of a call that a human allowed: sequences of the events that asked and answered, `17-19`.
        conversation: Id of the conversation to which an ask belongs, as the asker calls it.
    """

    source: str = ""
    cause: str = ""
    depth: int = 0
    timeout: float = 0.0
    revision: int = 0
    request: str = ""
    run: str = ""
    key: str = ""
    approval: str = ""
    conversation: str = ""


@dataclass(frozen=True, slots=True)
class Query:
    """What an agent asks back in the middle of its answer.

    Attributes:
        id: Its id.
        prompt: The question.
    """

    id: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that came with a question.

    Attributes:
        filename: Its name, as the asker says; never a path to be trusted.
        content: Its bytes.
    """

    filename: str
    content: bytes


class Answer(str):
    """A peer's answer: the text itself, and where it came from.

    Attributes:
        agent: Who answered.
        run_id: The answering run, if the peer says so.
        messages: The conversation, for a model agent; otherwise empty.
        usage: What it cost, for a model agent; otherwise empty.
    """

    agent: str
    run_id: str
    messages: Sequence[Any]
    usage: Mapping[str, Any]

    def __new__(
        cls,
        text: str,
        *,
        agent: str = "",
        run_id: str = "",
        messages: Sequence[Any] = (),
        usage: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Make an answer of a text."""
        answer = super().__new__(cls, text)
        answer.agent, answer.run_id = agent, run_id
        answer.messages, answer.usage = messages, usage or {}
        return answer


class Answers(dict[str, Answer]):
    """The answers that came, by agent.

    Attributes:
        failures: Why each of the others did not answer.
    """

    def __init__(self, answers: Mapping[str, Answer], failures: Mapping[str, PeerError]) -> None:
        super().__init__(answers)
        self.failures = dict(failures)


def run_id(stream: str, event_id: str, agent: str, trigger: str) -> str:
    """Return the id of the run that handles this event; every replica computes the same."""
    key = "\0".join((stream, event_id, agent, trigger)).encode()
    return hashlib.blake2b(key, digest_size=15).hexdigest()
