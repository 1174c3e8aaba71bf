"""Asking a human: an event that says what is wanted, and one that answers it.

`approval.requested` carries `{"id", "question", "choices", "agent", "run"}`; whoever decides emits `approval.answered`
with `{"id", "answer", "by"}`, or `{"id", "denied": true, "by", "reason"}`. An asker who answers queries is asked first.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from natterjack.bus import Bus
from natterjack.errors import (
    ApprovalDeniedError,
    ConfigError,
    ConflictError,
    QueryError,
    QueryTimeoutError,
    WaitTimeoutError,
)
from natterjack.events import EventBus, read_stored
from natterjack.journal import WAITED, WAITING, StreamJournal, ending
from natterjack.messages import Event
from natterjack.subjects import EVENTS
from natterjack.team.model import APPROVAL_ANSWERED, APPROVAL_REQUESTED
from natterjack.tickets import Wait
from natterjack.waits import holds

if TYPE_CHECKING:
    from natterjack.runs import RunContext

log = logging.getLogger("natterjack.approvals")

APPROVE: Final = "yes"
"""The answer that allows a call of a tool."""
FRESH: Final = 3600.0
"""Seconds for which it does."""
MAX_DIGITS: Final = 19


async def ask_human(ctx: RunContext, question: str, choices: Sequence[str], timeout: float | None) -> str:
    """Ask, and return the answer; see `RunContext.ask_human`."""
    ends = None if timeout is None else time.monotonic() + timeout
    if ctx.stream is not None and (answer := await _query(ctx, question, choices, ends)) is not None:
        return answer
    ctx.durable.pauses.check(APPROVAL_ANSWERED)
    await ctx.durable.calls.begin()
    answered = ctx.durable.calls.waits_no_more  # perhaps in the run that this one repeats
    left = None if ends is None else max(0.0, ends - time.monotonic())
    _, event = await _decision(ctx, question, choices, left, asked=answered)
    return str(event.data["answer"])


async def approved(ctx: RunContext, question: str) -> str:
    """Have a human allow something, and return by which events others can see that: `Envelope.approval`.

    Raises:
        ApprovalDeniedError: The human said no.
    """
    ctx.durable.pauses.check(APPROVAL_ANSWERED)
    await ctx.durable.calls.begin()
    asked, event = await _decision(ctx, question, (APPROVE,), None)
    return f"{asked}-{event.sequence}"


async def _decision(
    ctx: RunContext, question: str, choices: Sequence[str], timeout: float | None, *, asked: bool = False
) -> tuple[int | None, Event]:
    """Return the sequence of the event that asks, unless one has asked already, and the one that answers."""
    id = ctx.durable.calls.identity("emit", APPROVAL_REQUESTED)
    data = {"id": id, "question": question, "choices": list(choices), "agent": ctx.agent, "run": ctx.run_id}
    after = None if asked else await ctx.emit(APPROVAL_REQUESTED, data, id=id)
    event = await ctx.wait_for(APPROVAL_ANSWERED, where=_answers(id, choices), timeout=timeout, after=after)
    if event.data.get("denied"):
        by, reason = str(event.data.get("by") or event.source), str(event.data.get("reason", ""))
        raise ApprovalDeniedError(question, by, reason)
    return after, event


async def is_approved(bus: Bus, approval: str, agent: str, question: str) -> bool:
    """Tell whether somebody else allowed an agent what it asks for, within the last hour.

    Args:
        bus: A connection that may read stored events.
        approval: `Envelope.approval`.
        agent: Who asked.
        question: What it must have asked, to the letter.
    """
    found = [await _at(bus, sequence) for sequence in approval.split("-")]
    if len(found) != 2 or any(event is None or not isinstance(event.data, dict) for event in found):
        return False
    request, answer = (event for event in found if event is not None)
    return (
        (request.type, request.source) == (APPROVAL_REQUESTED, agent)
        and (request.data.get("agent"), request.data.get("question")) == (agent, question)
        and (answer.type, answer.data.get("id")) == (APPROVAL_ANSWERED, request.data.get("id"))
        and answer.data.get("answer") == APPROVE
        and not answer.data.get("denied")
        and answer.source != agent
        and time.time() - answer.time.timestamp() < FRESH
    )


async def _at(bus: Bus, sequence: str) -> Event | None:
    message = await bus.at(EVENTS, int(sequence)) if sequence.isdecimal() and len(sequence) < MAX_DIGITS else None
    return None if message is None else read_stored(message)


def _answers(id: str, choices: Sequence[str]) -> str:
    """Return the condition on an event that answers a question; one with another answer is ignored."""
    chosen = f"string(data.answer) in {json.dumps(list(choices))}" if choices else "data.answer != null"
    return f"data.id == {json.dumps(id)} && (has(data.denied) && data.denied == true || has(data.answer) && {chosen})"


def _choices(request: Event) -> tuple[str, ...]:
    return tuple(map(str, request.data.get("choices") or ()))


async def _query(ctx: RunContext, question: str, choices: Sequence[str], ends: float | None) -> str | None:
    """Ask whoever waits for the answer of this agent; None if nobody there answers."""
    prompt = f"{question} ({' / '.join(choices)})" if choices else question
    while True:
        left = {} if ends is None else {"timeout": max(0.001, ends - time.monotonic())}
        try:
            answer = (await ctx.query(prompt, **left)).strip()
        except QueryTimeoutError as error:
            raise WaitTimeoutError(ctx.run_id, APPROVAL_ANSWERED) from error
        except QueryError as error:
            log.debug("run %s asks by an event: %s", ctx.run_id, error)
            return None
        if not choices or answer in choices:
            return answer


@dataclass(frozen=True, slots=True)
class Approval:
    """A question that waits for a human.

    Attributes:
        id: Its id.
        agent: Who asks.
        run: In which run.
        question: The question.
        choices: What may be answered; empty: any text.
        asked: When.
        until: When the run stops waiting.
    """

    id: str
    agent: str
    run: str
    question: str
    choices: tuple[str, ...]
    asked: datetime
    until: datetime


class Approvals:
    """The questions of a team's agents that wait for a human (`team.approvals`).

    Args:
        events: The operator's.
        journal: The agents' journals.
    """

    def __init__(self, events: EventBus, journal: StreamJournal) -> None:
        self._events, self._journal = events, journal

    async def waiting(self) -> list[Approval]:
        """Return the questions that nobody has answered yet, oldest first."""
        asked = {
            str(event.data["id"]): event
            async for event in self._events.replay(APPROVAL_REQUESTED)
            if isinstance(event.data, dict) and {"id", "question", "agent", "run"} <= event.data.keys()
        }
        async for event in self._events.replay(APPROVAL_ANSWERED):
            if isinstance(event.data, dict) and (request := asked.get(str(event.data.get("id")))) is not None:
                id = str(request.data["id"])
                if holds(Wait(APPROVAL_ANSWERED, _answers(id, _choices(request)), 0), event):
                    del asked[id]
        found = [await self._waiting(id, event) for id, event in asked.items()]
        return [approval for approval in found if approval is not None]

    async def _waiting(self, id: str, event: Event) -> Approval | None:
        """Return a question, if its run waits for the answer: its journal says so, whatever else anybody emitted."""
        data, choices = event.data, _choices(event)
        entries = await self._journal.read(str(data["agent"]), str(data["run"]))
        if ending(entries) is not None:
            return None
        over = {entry.data["position"] for entry in entries if entry.kind == WAITED}
        for wait in (entry.data for entry in entries if entry.kind == WAITING):
            if wait["where"] == _answers(id, choices) and wait["position"] not in over:
                until = datetime.fromtimestamp(wait["until"], UTC)
                return Approval(id, data["agent"], data["run"], str(data["question"]), choices, event.time, until)
        return None

    async def answer(self, id: str, answer: str, *, by: str = "") -> Approval:
        """Answer a question.

        Args:
            id: Of the question, or the beginning of it.
            answer: One of its choices, or any text where it has none.
            by: Who decides; by default this client's own name.

        Raises:
            ConfigError: No such question waits, or several begin so, or the answer is none of its choices.
            ConflictError: Somebody else has just answered it.
        """
        approval = await self._find(id)
        if not answer:
            msg = f"an answer to {approval.question!r} needs some text"
            raise ConfigError(msg)
        if approval.choices and answer not in approval.choices:
            msg = f"{answer!r} is no answer to {approval.question!r}; choose one of {', '.join(approval.choices)}"
            raise ConfigError(msg)
        await self._decide(approval, {"answer": answer}, by)
        return approval

    async def deny(self, id: str, *, reason: str = "", by: str = "") -> Approval:
        """Say no to a question: `ask_human` raises `ApprovalDeniedError`.

        Args:
            id: Of the question, or the beginning of it.
            reason: Why, for the run.
            by: Who decides; by default this client's own name.

        Raises:
            ConfigError: No such question waits, or several begin so.
            ConflictError: Somebody else has just answered it.
        """
        approval = await self._find(id)
        await self._decide(approval, {"denied": True, **({"reason": reason} if reason else {})}, by)
        return approval

    async def _find(self, id: str) -> Approval:
        found = [approval for approval in await self.waiting() if approval.id.startswith(id)]
        if len(found) == 1 and id:
            return found[0]
        what = "several questions begin with" if found else "no question waits whose id is, or begins with,"
        msg = f"{what} {id!r}; `natterjack approvals list` shows those that wait"
        raise ConfigError(msg)

    async def _decide(self, approval: Approval, decision: dict[str, Any], by: str) -> None:
        data = {"id": approval.id, **decision, **({"by": by} if by else {})}
        try:  # of two who decide at once, one is told
            await self._events.emit(APPROVAL_ANSWERED, data, id=f"answer-{approval.id}")
        except ConflictError as error:
            msg = f"somebody else has just answered {approval.question!r}"
            raise ConflictError(msg) from error
