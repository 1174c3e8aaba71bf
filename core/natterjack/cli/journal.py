"""Journals: `journal tail` and `journal show`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer

from natterjack import subjects
from natterjack.cli.exits import CommandError, ExitCode
from natterjack.cli.options import (
    JsonOption,
    NatsContextOption,
    ServerOption,
    SinceOption,
    check_agent,
    overseeing,
    read_since,
)
from natterjack.cli.output import local, note, one_line, text_of, write, write_json, write_table
from natterjack.cli.run import asynchronous
from natterjack.client import TeamClient
from natterjack.components import Entry
from natterjack.journal import ENDINGS
from natterjack.objects import Reference

app = typer.Typer(no_args_is_help=True, help="See what agents did.")

KindOption = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Of one kind, e.g. done or failed.")]


@app.command()
@asynchronous
async def tail(
    agent: Annotated[str | None, typer.Argument(metavar="AGENT", help="Of one agent; all by default.")] = None,
    *,
    run_id: Annotated[str | None, typer.Option("--run", metavar="ID", help="Of one run.")] = None,
    kind: KindOption = None,
    since: SinceOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last entries.")] = 50,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the last journal entries, one line each."""
    first = read_since(since)
    async with overseeing(server, nats_context) as client:
        if agent:
            await check_agent(client, agent)
        run = subjects.check_type(run_id, "run id") if run_id else "*"
        if follow:
            coming = client.journal.tail(agent or "*", run=run, kind=kind, since=first, last=lines)
            async with coming as entries:
                note("watching the journal; Ctrl-C ends it")
                await _print(client, entries, as_json=as_json)
        else:
            stored = client.journal.entries(agent or "*", run=run, kind=kind, since=first)
            last = deque([entry async for entry in stored], maxlen=lines)
            await _print(client, _each(last), as_json=as_json)
            if not last and not as_json:
                note("no journal entries")


async def _each(entries: Iterable[Entry]) -> AsyncIterator[Entry]:
    for entry in entries:
        yield entry


async def _print(client: TeamClient, entries: AsyncIterator[Entry], *, as_json: bool) -> None:
    """Print entries: programs get large data whole, people only that there is some."""
    async for entry in entries:
        if as_json:
            write_json(_plain(await client.journal.whole(entry)))
        else:
            time = local(entry.time, day=False)
            write(f"{time}  {entry.agent}  {entry.run}  {entry.index}  {entry.kind}{_short(entry.data)}")


def _short(data: object) -> str:
    if data is None:
        return ""
    return f"  ({data})" if isinstance(data, Reference) else f"  {one_line(data)}"


def _moment(time: float) -> datetime:
    return datetime.fromtimestamp(time, UTC)


def _plain(entry: Entry) -> dict[str, object]:
    return {**asdict(entry), "time": _moment(entry.time)}


@app.command()
@asynchronous
async def show(
    agent: Annotated[str, typer.Argument(metavar="AGENT", help="Whose runs.")],
    run_id: Annotated[str | None, typer.Argument(metavar="RUN", help="One run, in full; by default a list.")] = None,
    *,
    since: SinceOption = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last runs.")] = 20,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the last runs of an agent, or print all entries of one run."""
    first = read_since(since)
    async with overseeing(server, nats_context) as client:
        await check_agent(client, agent)
        if run_id:
            await _show_run(client, agent, subjects.check_type(run_id, "run id"), as_json=as_json)
            return
        runs: dict[str, _Run] = {}
        async for entry in client.journal.entries(agent, since=first):
            time = _moment(entry.time)
            runs.setdefault(entry.run, _Run(entry.run, time, time)).add(entry)
        last = deque(sorted(runs.values(), key=lambda each: each.last), maxlen=lines)
        _show_runs(agent, last, as_json=as_json)


@dataclass(slots=True)
class _Run:
    """What the journal tells of one run."""

    run: str
    first: datetime
    last: datetime
    entries: int = 0
    state: str = "open"

    def add(self, entry: Entry) -> None:
        self.entries += 1
        self.last = _moment(entry.time)
        if entry.kind in ENDINGS:
            self.state = entry.kind

    @property
    def over(self) -> str:
        return f"{(self.last - self.first).total_seconds():.1f} s"


def _show_runs(agent: str, runs: Iterable[_Run], *, as_json: bool) -> None:
    if as_json:
        write_json([asdict(each) for each in runs])
        return
    rows = [(each.run, each.state, each.entries, local(each.first, day=False), each.over) for each in runs]
    write_table(["run", "state", "entries", "first", "over"], rows, empty=f"no runs of {agent} are journaled")


async def _show_run(client: TeamClient, agent: str, run_id: str, *, as_json: bool) -> None:
    entries = await client.journal.read(agent, run_id)
    if not entries:
        msg = f"the journal has no run {run_id!r} of {agent}; `natterjack journal show {agent}` lists its runs"
        raise CommandError(msg, ExitCode.UNKNOWN)
    if as_json:
        write_json([_plain(entry) for entry in entries])
        return
    for entry in entries:
        write(f"{entry.index:3}  {local(entry.time, day=False)}  {entry.kind}")
        for line in "" if entry.data is None else text_of(entry.data).splitlines():
            write(f"     {line}")
