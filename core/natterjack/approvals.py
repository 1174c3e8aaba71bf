"""Asking a human: an event that says what is wanted, and one that answers it.

`approval.requested` carries `{"id", "question", "choices", "agent", "run"}`; whoever decides emits `approval.answered`
with `{"id", "answer", "by"}`, or `{"id", "denied": true, "by", "reason"}`. An asker who answers queries is asked first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from natterjack.errors import ApprovalDeniedError, QueryError, QueryTimeoutError, WaitTimeoutError
from natterjack.team.model import APPROVAL_ANSWERED, APPROVAL_REQUESTED

if TYPE_CHECKING:
    from natterjack.runs import RunContext

log = logging.getLogger("natterjack.approvals")


async def ask_human(ctx: RunContext, question: str, choices: Sequence[str], timeout: float | None) -> str:
    """Ask, and return the answer; see `RunContext.ask_human`."""
    ends = None if timeout is None else time.monotonic() + timeout
    if ctx.stream is not None and (answer := await _query(ctx, question, choices, ends)) is not None:
        return answer
    ctx.durable.pauses.check(APPROVAL_ANSWERED)
    await ctx.durable.calls.begin()
    identity = ctx.durable.calls.identity("emit", APPROVAL_REQUESTED)
    asked = {"id": identity, "question": question, "choices": list(choices), "agent": ctx.agent, "run": ctx.run_id}
    after = await ctx.emit(APPROVAL_REQUESTED, asked, id=identity)
    while True:
        where = f'data.id == "{identity}"'
        left = None if ends is None else max(0.0, ends - time.monotonic())
        event = await ctx.wait_for(APPROVAL_ANSWERED, where=where, timeout=left, after=after)
        after = event.sequence
        data: dict[str, Any] = event.data
        if data.get("denied"):
            raise ApprovalDeniedError(question, str(data.get("by") or event.source), str(data.get("reason", "")))
        if (answer := _chosen(data.get("answer"), choices)) is not None:
            return answer
        log.warning("the answer %r to %r is ignored: it is none of %s", data.get("answer"), question, list(choices))


def _chosen(answer: object, choices: Sequence[str]) -> str | None:
    """Return an answer as text, if it is one that was asked for."""
    text = None if answer is None else answer if isinstance(answer, str) else str(answer)
    return text if text is not None and (not choices or text in choices) else None


async def _query(ctx: RunContext, question: str, choices: Sequence[str], ends: float | None) -> str | None:
    """Ask whoever waits for the answer of this agent; None if nobody there answers."""
    prompt = f"{question} ({' / '.join(choices)})" if choices else question
    while True:
        left = {} if ends is None else {"timeout": max(0.001, ends - time.monotonic())}
        try:
            answer = await ctx.query(prompt, **left)
        except QueryTimeoutError as error:
            raise WaitTimeoutError(ctx.run_id, APPROVAL_ANSWERED) from error
        except QueryError as error:
            log.debug("run %s asks by an event: %s", ctx.run_id, error)
            return None
        if (chosen := _chosen(answer.strip(), choices)) is not None:
            return chosen
