"""`agents`: who runs, how busy each one is, what waits for it, and who is missing."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from natterjack import subjects
from natterjack.bus import Bus
from natterjack.cli.options import JsonOption, NatsContextOption, ServerOption, overseeing
from natterjack.cli.output import write_json, write_table
from natterjack.cli.run import asynchronous
from natterjack.client import TeamClient
from natterjack.errors import NotProvisionedError
from natterjack.record import stored_team
from natterjack.service import AgentInfo
from natterjack.team import Team


@asynchronous
async def agents(
    *, server: ServerOption = None, nats_context: NatsContextOption = None, as_json: JsonOption = False
) -> None:
    """List the agents of the team, wherever they run: their load, what waits for them, and who is missing."""
    async with overseeing(server, nats_context) as client:
        rows = await _rows(client)
    if as_json:
        write_json([row.plain() for row in rows])
    else:
        _print(rows)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for an agent at one of its triggers.

    Attributes:
        trigger: Its label; `inbox` for events that were given to this agent alone.
        stream: Where it waits.
        pending: Messages that no replica has taken yet.
        held: Messages that replicas hold, at work or waiting for a slot.
    """

    trigger: str
    stream: str
    pending: int
    held: int


@dataclass(frozen=True, slots=True)
class _Row:
    """One replica; or an agent that does not run."""

    name: str
    info: AgentInfo | None
    triggers: list[Waiting] = field(default_factory=list)
    seen: datetime | None = None

    @property
    def lag(self) -> int:
        return sum(each.pending for each in self.triggers if each.stream != subjects.INBOX)

    @property
    def inbox(self) -> int:
        return sum(each.pending for each in self.triggers if each.stream == subjects.INBOX)

    def plain(self) -> dict[str, Any]:
        about = asdict(self.info) if self.info else {"name": self.name}
        waits = {"lag": self.lag, "inbox": self.inbox, "triggers": self.triggers}
        return {**about, "running": self.info is not None, "seen": self.seen, **waits}


async def _rows(client: TeamClient) -> list[_Row]:
    found = await client.agents()
    try:
        team = await stored_team(client.bus)
        expected, waiting = list(team.agents), await _waiting(client.bus, team)
    except NotProvisionedError:  # agents may run that belong to no team of ours
        expected, waiting = [], {}
    now = datetime.now().astimezone()
    rows = [_Row(info.name, info, waiting.get(info.name, []), now) for info in found]
    absent = sorted({*expected} - {info.name for info in found})
    seen = await asyncio.gather(*(_last_entry(client.bus, name) for name in absent))
    return rows + [_Row(name, None, waiting.get(name, []), last) for name, last in zip(absent, seen, strict=True)]


async def _waiting(bus: Bus, team: Team) -> dict[str, list[Waiting]]:
    """Return what waits, by agent, from the consumers of its triggers."""
    found: dict[str, list[Waiting]] = defaultdict(list)
    buckets = [subjects.bucket_stream(subjects.context_bucket(name)) for name in ("", *team.buckets)]
    for stream in (subjects.INBOX, subjects.EVENTS, subjects.MESSAGES, *buckets):
        for info in await bus.consumer_infos(stream):
            agent, _, trigger = str(info["name"]).partition("=")
            found[agent].append(Waiting(trigger, stream, int(info["num_pending"]), int(info["num_ack_pending"])))
    return found


async def _last_entry(bus: Bus, agent: str) -> datetime | None:
    """Return when an agent wrote its last journal entry, as far as that is kept."""
    last = await bus.last(subjects.JOURNAL, subjects.journal(agent, "*", "*"))
    return datetime.fromisoformat((last.headers or {})["Nats-Time-Stamp"]) if last else None


def _print(rows: Iterable[_Row]) -> None:
    columns = ["agent", "id", "load", "asks", "lag", "inbox", "asked", "failed", "seen", "version"]
    empty = "no agent runs, and none is provisioned; start some with `natterjack up team.toml`"
    write_table(columns, [_cells(row) for row in rows], empty=empty)


def _cells(row: _Row) -> tuple[object, ...]:
    info = row.info
    if info is None:
        return (row.name, "", "absent", "", row.lag, row.inbox, "", "", _ago(row.seen), "")
    waiting = f"+{info.waiting}" if info.waiting else ""
    load, asks = f"{info.busy}/{info.slots}", f"{info.answering}/{info.slots}{waiting}"
    asked = (info.asked, info.failed)
    return (row.name, info.instance[:6], load, asks, row.lag, row.inbox, *asked, "now", info.version)


def _ago(moment: datetime | None) -> str:
    """Return how long ago an agent did something that is journaled."""
    if moment is None:
        return "never"
    seconds = max(0.0, time.time() - moment.timestamp())
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
