"""What an operator does with the runs of agents: cancel one, let one go on, repeat one, see which wait."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from natterjack import subjects
from natterjack.bus import Bus
from natterjack.components import Entry
from natterjack.dead import dead_letters, drop
from natterjack.errors import ConfigError, FencedError
from natterjack.journal import (
    BEGUN,
    CANCELLED,
    PROGRESS,
    RESUMED,
    STEP,
    WAITED,
    WAITING,
    StreamJournal,
    ending,
    is_paused,
)
from natterjack.runjournal import RunJournal
from natterjack.tickets import Ticket, current, leave, read_ticket
from natterjack.waits import hasten

_TRIES = 10


class Runs:
    """The runs of a team's agents (`team.runs`), for its operator.

    Args:
        bus: The operator's connection.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus, self._stream = bus, StreamJournal().attach(bus)

    async def cancel(self, agent: str, run: str, *, reason: str = "") -> None:
        """End a run where it is: its handler is cancelled, wherever it is at work, and is not called again.

        Args:
            agent: Whose run.
            run: Its id.
            reason: Why, for its journal.

        Raises:
            ConfigError: It has ended already.
        """
        said = {"by": self._bus.principal, **({"reason": reason} if reason else {})}
        await self._append(agent, run, CANCELLED, said)
        await self._bus.publish(subjects.cancel(agent, run))
        ticket = await current(self._bus, agent, run)
        if ticket is not None and ticket.due:  # so that it does not stand there until it is due
            await hasten(self._bus, agent, ticket)

    async def resume(self, agent: str, run: str) -> None:
        """Let a run go on behind what it has finished: one that waits, at once; also one that is dead or was cancelled.

        Its dead letter is dropped, and its attempts are counted anew.

        Args:
            agent: Whose run.
            run: Its id.

        Raises:
            ConfigError: It cannot: it is done, or goes on, or has no step, sleep or wait in its journal.
        """
        journal = await self._journal(agent, run)
        if not journal.entries(kind=BEGUN):
            msg = (
                f"run {run} of {agent!r} has journaled no step, sleep or wait from which it could go on; "
                "`natterjack dead retry` gives its event to the agent again"
            )
            raise ConfigError(msg)
        ended = ending(journal.entries())
        if ended is None:
            await self._wake(journal, agent, run)
            return
        if ended.kind == "done":
            msg = f"run {run} of {agent!r} is done; `natterjack runs rerun` repeats it from a step, as a new run"
            raise ConfigError(msg)
        await self._append(agent, run, RESUMED, {"by": self._bus.principal})
        await self._drop_letters(agent, run)
        await self._call_back(agent, run)

    async def _wake(self, journal: RunJournal, agent: str, run: str) -> None:
        ticket = await current(self._bus, agent, run)
        if ticket is not None and ticket.due:
            await hasten(self._bus, agent, ticket)  # else something else has woken it
        elif ticket is None and is_paused(journal.entries()):  # its ticket was lost
            await self._call_back(agent, run)
        else:
            msg = f"run {run} of {agent!r} does not wait: it goes on, or will when its agent runs"
            raise ConfigError(msg)

    async def _call_back(self, agent: str, run: str) -> None:
        """Leave a ticket for a run that had ended; the one that it ended with may still be there, or go just now."""
        while True:
            ticket = await current(self._bus, agent, run)
            try:
                await leave(self._bus, agent, Ticket(run, 0.0, (), ticket.sequence if ticket else 0))
            except FencedError:
                continue
            return

    async def rerun(self, agent: str, run: str, *, first: str | None = None) -> str:
        """Repeat a run from a step on: begin a new one that has finished all that this one had finished before.

        What its handler sends outside of steps is sent again, as the new run's own.

        Args:
            agent: Whose run.
            run: Its id.
            first: Name or position of the first step to do anew; by default the one that the run did not finish.

        Returns:
            The id of the new run.

        Raises:
            ConfigError: The run has no such step, or has none at all, or answered a question; or it is done, and no
                step is named.
        """
        journal = await self._journal(agent, run)
        begun = journal.entries(kind=BEGUN)
        if not begun or "payload" not in begun[0].data:
            what = "answered a question: ask it again" if begun else "has no step, sleep or wait: emit its event again"
            msg = f"run {run} of {agent!r} {what}"
            raise ConfigError(msg)
        kept = _without_open_waits(_finished_before(journal.entries(), first))
        id = secrets.token_hex(15)
        new = RunJournal(agent, id, self._stream)
        # With a seed of its own: what it sends is not what the other has sent.
        again = {"seed": secrets.token_hex(16), "rerun_of": run}
        for kind, data in [(BEGUN, begun[0].data | again), *((entry.kind, entry.data) for entry in kept)]:
            await new.record(kind, {key: value for key, value in data.items() if key not in ("before", "did")})
        await leave(self._bus, agent, Ticket(id, 0.0))
        return id

    async def waiting(self, agent: str = "*") -> AsyncIterator[tuple[str, Ticket]]:
        """Yield agent and ticket of each run that waits, or was woken and goes on; those of one agent, or all."""
        async for message in self._bus.read(subjects.WAKES, subjects.wake(agent, "*")):
            headers = message.headers or {}
            yield headers["Nats-Subject"].split(".")[1], read_ticket(message, int(headers["Nats-Sequence"]))

    async def _journal(self, agent: str, run: str) -> RunJournal:
        journal = RunJournal(subjects.check_name(agent), run, self._stream)
        await journal.load()
        return journal

    async def _append(self, agent: str, run: str, kind: str, data: dict[str, Any]) -> None:
        """Write an entry, whatever the run writes at the same time."""
        for _ in range(_TRIES):
            journal = await self._journal(agent, run)
            ended = ending(journal.entries())
            if (ended is not None) == (kind == CANCELLED):
                state = f"has ended ({ended.kind})" if ended is not None else "has not ended"
                msg = f"run {run} of {agent!r} {state}"
                raise ConfigError(msg)
            try:
                await journal.record(kind, data)
            except FencedError:
                continue
            return
        msg = f"run {run} of {agent!r} writes so fast that nothing can be written beside it; try again"
        raise ConfigError(msg)

    async def _drop_letters(self, agent: str, run: str) -> None:
        for letter in await dead_letters(self._bus, agent=agent):
            if letter.run == run:
                await drop(self._bus, letter.number)


def _without_open_waits(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries without the waits that are not over: they begin anew, as for the answer to another question."""
    over = {entry.data.get("position") for entry in entries if entry.kind == WAITED}
    return [entry for entry in entries if entry.kind != WAITING or entry.data.get("position") in over]


def _finished_before(entries: Sequence[Entry], first: str | None) -> list[Entry]:
    """Return what a run had finished before a step, or all of it."""
    finished = [entry for entry in entries if entry.kind in PROGRESS and isinstance(entry.data, dict)]
    steps = [entry.data["name"] for entry in finished if entry.kind == STEP]
    if first is None:
        if (ended := ending(entries)) is not None and ended.kind == "done":
            msg = f"run {ended.run} is done; say from which step to repeat it: {', '.join(steps)}"
            raise ConfigError(msg)
        return finished
    for place, entry in enumerate(finished):
        if first == entry.data.get("position") or (entry.kind == STEP and first == entry.data["name"]):
            return finished[:place]
    msg = f"run {entries[0].run} has finished no step {first!r}; it has {', '.join(steps) or 'none'}"
    raise ConfigError(msg)
