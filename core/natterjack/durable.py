"""What makes a run durable: its calls, its pauses, and what the kernel does about them around its handler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from natterjack import subjects
from natterjack.calls import Calls, Note
from natterjack.dead import MAX_CAUSE
from natterjack.errors import ConfigError, NondeterminismError, described
from natterjack.facilities import Facilities
from natterjack.journal import BEGUN, CANCELLED, SLEEP, WAITING, ending
from natterjack.messages import Envelope
from natterjack.origins import Origin
from natterjack.pauses import Pauses
from natterjack.peers import Question
from natterjack.tickets import Ticket, current

if TYPE_CHECKING:
    from natterjack.runs import RunContext


class Durable:
    """The durable part of one run, made when it is first used.

    Args:
        ctx: The run.
        facilities: What its agent works with.
        envelope: What came with what it handles.
        did: What it has sent and asked before.

    Attributes:
        calls: Those that are journaled.
        pauses: What it waits for.
    """

    def __init__(
        self,
        ctx: RunContext,
        facilities: Facilities,
        envelope: Envelope,
        did: list[Note],
    ) -> None:
        self._ctx, self._envelope = ctx, envelope
        self.calls = Calls(ctx.run_id, ctx.journal, self._begins, facilities.version, did, ctx)
        ticket, since = None, 0
        if isinstance(ctx.handles, Origin):
            place, ticket = ctx.handles.place, ctx.handles.ticket
            since = place.sequence if place.stream == subjects.EVENTS else 0
        self.pauses = Pauses(
            self.calls, facilities.clock, facilities.waits, ticket, since, lambda: interrupt_if_left(ctx)
        )

    def _begins(self) -> dict[str, Any]:
        """Return what the run handles, as it is journaled."""
        envelope, handles = self._envelope, self._ctx.handles
        told = {**({"parent": envelope.run} if envelope.run else {}), "depth": envelope.depth}
        if isinstance(handles, Question):
            return {**told, "question": handles.text, "caller": self._ctx.caller}
        return told if handles is None else {**told, **handles.journaled()}


def recall(ctx: RunContext) -> None:
    """Take over what the journal of a run has, if it has begun before."""
    if ctx.journal.entries(kind=BEGUN):
        ctx.durable.calls.recall()


async def goes_on_here(ctx: RunContext, facilities: Facilities) -> bool:
    """Read what earlier attempts of a run wrote, and tell whether this message is to bring it on.

    If not, it has ended, or it has left its process and goes on by a ticket.
    """
    await ctx.journal.load()
    if ctx.journal.ended:
        return False
    recall(ctx)
    paused = any(entry.kind in (SLEEP, WAITING) for entry in ctx.journal.entries())
    return not paused or await current(facilities.bus, ctx.agent, ctx.run_id) is None


async def answered_before(ctx: RunContext) -> str | None:
    """Return what an ask that is repeated was answered; if it was not, take over what its run has finished.

    Raises:
        ConfigError: The run was cancelled.
    """
    await ctx.journal.load()
    ended = ending(ctx.journal.entries())
    if ended is not None and ended.kind == CANCELLED:
        msg = f"run {ctx.run_id} of {ctx.agent!r}, which was to answer this, was cancelled"
        raise ConfigError(msg)
    if ended is not None and "result" in ended.data:  # what was large may be lost
        return str(ended.data["result"])
    recall(ctx)
    return None


def ticket_of(ctx: RunContext) -> Ticket | None:
    """Return the ticket by which a run goes on, if it leaves its process."""
    return None if ctx.lasting is None else ctx.lasting.pauses.ticket


def is_left(ctx: RunContext) -> bool:
    """Tell whether the handler is cancelled, because its run leaves the process or was cancelled."""
    return ctx.cancelled or ticket_of(ctx) is not None


def interrupt_if_left(ctx: RunContext) -> None:
    """Cancel the handler, by the limit under which it runs; before it waits for something, there is none."""
    if is_left(ctx) and ctx.limit is not None and not ctx.limit.expired():
        ctx.limit.reschedule(0)


async def cancel_if_told(ctx: RunContext, facilities: Facilities) -> None:
    """Cancel a run's handler, if its journal says so: anybody can claim it."""
    ended = ending(await facilities.journal.read(ctx.agent, ctx.run_id))
    if ended is not None and ended.kind == CANCELLED:
        ctx.cancelled = True
        interrupt_if_left(ctx)


def unwritten(ctx: RunContext) -> dict[str, Any]:
    """Return what a run did since its last entry, for the next one that its calls do not write."""
    return {} if ctx.lasting is None else ctx.lasting.calls.left


async def finish(ctx: RunContext) -> None:
    """Return once no step is under way; nothing new is begun."""
    if ctx.lasting is not None:
        await ctx.lasting.calls.finish()


def gone_astray(ctx: RunContext) -> NondeterminismError | None:
    """Return the error of a handler that was repeated and made other calls, whatever it made of that."""
    return None if ctx.lasting is None else ctx.lasting.calls.astray


def check_same(ctx: RunContext) -> None:
    """Raise `NondeterminismError` if a handler that has ended was repeated and made other calls, or fewer."""
    if ctx.lasting is not None and not is_left(ctx):
        ctx.lasting.calls.check_same()


async def end(ctx: RunContext) -> None:
    """Cancel what is still under way."""
    if ctx.lasting is not None:
        await ctx.lasting.pauses.end()
        await ctx.lasting.calls.end()


async def end_answer(ctx: RunContext, outcome: str | BaseException) -> None:
    """End what an answer left behind; if it had steps, its text or error is journaled."""
    if ctx.lasting is None:
        return
    try:
        if isinstance(outcome, str):
            check_same(ctx)
            await _conclude(ctx, ctx.lasting.calls, "done", {"result": outcome})
        elif isinstance(outcome, Exception):
            await _conclude(ctx, ctx.lasting.calls, "failed", {"cause": described(outcome)[:MAX_CAUSE]})
    finally:
        await end(ctx)


async def _conclude(ctx: RunContext, calls: Calls, kind: str, data: dict[str, Any]) -> None:
    await finish(ctx)
    if calls.begun:
        await calls.record(kind, {**data, "attempt": 1})
