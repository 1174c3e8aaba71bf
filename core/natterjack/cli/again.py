"""Runs that go on: `runs resume` and `runs rerun`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from natterjack.cli.exits import CommandError, ExitCode
from natterjack.cli.timeline import summary_of
from natterjack.client import TeamClient
from natterjack.components import Entry
from natterjack.journal import BEGUN, PROGRESS, STEP
from natterjack.tickets import Ticket, current, leave


async def resume(client: TeamClient, agent: str, run: str) -> dict[str, Any]:
    """Put a ticket that is due in the place of the one by which a run waits, if it has one.

    Raises:
        CommandError: It has ended, or has no steps.
        FencedError: It goes on already.
    """
    summary = summary_of(entries := await _read(client, agent, run))
    if summary.ended:
        msg = f"run {run} of {agent} has ended ({summary.state}); `natterjack runs rerun {run[:12]}` begins a new one"
        raise CommandError(msg)
    _begun(entries)
    ticket = await current(client.bus, agent, run)
    await leave(client.bus, agent, Ticket(run, 0.0, (), ticket.sequence if ticket is not None else 0))
    return {"agent": agent, "run": run}


async def rerun(client: TeamClient, agent: str, run: str, first: str | None) -> dict[str, Any]:
    """Write the journal of a new run with what another had finished before a step, and wake it.

    Raises:
        CommandError: The run has no such step, or none at all.
    """
    entries = await _read(client, agent, run)
    begun, kept = _begun(entries), _before(entries, first)
    new, now = secrets.token_hex(15), time.time()
    # With a seed of its own: what it sends is not what the other has sent.
    begun |= {"seed": secrets.token_hex(16), "rerun_of": run}
    for index, (kind, data) in enumerate([(BEGUN, begun), *((each.kind, each.data) for each in kept)], 1):
        plain = {key: value for key, value in data.items() if key not in ("before", "did")}
        await client.journal.write(Entry(agent, new, index, kind, plain, now))
    await leave(client.bus, agent, Ticket(new, 0.0))
    return {"agent": agent, "run": new, "rerun_of": run, "kept": sum(each.kind == STEP for each in kept)}


async def _read(client: TeamClient, agent: str, run: str) -> list[Entry]:
    entries = await client.journal.read(agent, run)
    if not entries:
        msg = f"the first entries of run {run} of {agent} are not kept any more, and it cannot go on without them"
        raise CommandError(msg, ExitCode.UNKNOWN)
    return entries


def _begun(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return with what a run began."""
    data: Any = next((entry.data for entry in entries if entry.kind == BEGUN), None)
    run = entries[0].run
    if not isinstance(data, dict):
        msg = f"run {run} has no steps, so its journal lacks its event; `natterjack events replay --to` gives one again"
        raise CommandError(msg)
    if "payload" not in data:
        msg = f"run {run} is an answer, for which somebody waited; ask again"
        raise CommandError(msg)
    return dict(data)


def _before(entries: Sequence[Entry], first: str | None) -> list[Entry]:
    """Return what a run had finished before a step."""
    finished = [entry for entry in entries if entry.kind in PROGRESS and isinstance(entry.data, dict)]
    steps = [entry.data["name"] for entry in finished if entry.kind == STEP]
    if first is None:
        if entries[-1].kind == "done":
            msg = f"run {entries[0].run} is done; say by --from which step to do first: {', '.join(steps)}"
            raise CommandError(msg, ExitCode.USAGE)
        return finished
    for place, entry in enumerate(finished):
        if entry.kind == STEP and first in (entry.data["name"], entry.data["position"]):
            return finished[:place]
    msg = f"run {entries[0].run} has finished no step {first!r}; it has {', '.join(steps) or 'none'}"
    raise CommandError(msg, ExitCode.UNKNOWN)
