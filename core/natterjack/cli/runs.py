"""Runs: `runs list|show|tail|cancel|resume|rerun|export`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from natterjack.cli.exits import CommandError, ExitCode
from natterjack.cli.export import write_test
from natterjack.cli.options import JsonOption, NatsContextOption, ServerOption, check_agent, overseeing, read_since
from natterjack.cli.output import note, one_line, write, write_json, write_table
from natterjack.cli.run import asynchronous, run
from natterjack.cli.timeline import (
    SHORT,
    RunSummary,
    Timeline,
    find_run,
    moment,
    notes_of,
    read_timeline,
    summaries,
    summary_of,
)
from natterjack.components import Entry

app = typer.Typer(no_args_is_help=True, help="See what runs did, and decide how they go on.")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Its id, or the beginning of it.")]
_STATES = ("running", "parked", "retrying", "done", "dead", "failed", "cancelled")


@app.command("list")
def list_runs(
    agent: Annotated[str | None, typer.Argument(metavar="AGENT", help="Of one agent; all by default.")] = None,
    *,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help=f"Only these: {', '.join(_STATES)}.")
    ] = None,
    since: Annotated[str, typer.Option("--since", metavar="WHEN", help="That did something since then.")] = "1d",
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many of the last runs.")] = 20,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the last runs, the newest last."""
    first = read_since(since)
    if state is not None and state not in _STATES:
        msg = f"{state!r} is no state of a run; it is one of {', '.join(_STATES)}"
        raise CommandError(msg, ExitCode.USAGE)

    async def look() -> None:
        async with overseeing(server, nats_context) as client:
            if agent:
                await check_agent(client, agent)
            found = await summaries(client.journal.entries(agent or "*", since=first))
        last = [each for each in found if state in (None, each.state)][-lines:]
        if as_json:
            write_json([each.plain() for each in last])
            return
        columns = ["run", "agent", "state", "event", "steps", "began", "age"]
        write_table(columns, [_row(each) for each in last], empty=f"no runs since {since}; `--since 30d` looks further")

    run(look())


def _row(each: RunSummary) -> tuple[object, ...]:
    began = f"{moment(each.began).astimezone():%Y-%m-%d %H:%M:%S}"
    return (each.run[:SHORT], each.agent, each.state, each.event, each.steps, began, _span(time.time() - each.began))


def _span(seconds: float) -> str:
    """Return seconds as a person reads them."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


@app.command()
def show(
    id: RunArgument,
    *,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one run as a timeline: its steps, what it sent and asked, and which other runs that led to."""

    async def look() -> None:
        async with overseeing(server, nats_context) as client:
            timeline = await read_timeline(client, *await find_run(client.bus, id))
        if as_json:
            write_json(timeline.plain())
            return
        for line in _head(timeline.summary):
            write(line)
        for entry in timeline.entries:
            for line in _lines(entry, timeline.summary.began, timeline):
                write(line)

    run(look())


def _head(summary: RunSummary) -> Iterator[str]:
    yield f"run {summary.run} of {summary.agent}: {summary.state}"
    begun = f"{moment(summary.began).astimezone():%Y-%m-%d %H:%M:%S}"
    steps = f"{summary.steps} step{'' if summary.steps == 1 else 's'}"
    yield f"{summary.event or 'event unknown'}, {begun}, {steps}, {_span(summary.last - summary.began)}"
    if summary.spent:
        yield f"cost {_amounts(summary.spent)}"
    if summary.parent:
        yield f"caused by run {summary.parent}"


@app.command()
def tail(
    id: RunArgument,
    *,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow one run from its beginning to its end."""

    async def follow() -> None:
        async with overseeing(server, nats_context) as client:
            agent, run_id = await find_run(client.bus, id)
            seen: list[Entry] = []
            async with client.journal.tail(agent, run=run_id, last=None) as entries:
                async for entry in entries:
                    seen.append(await client.journal.whole(entry))
                    _tell(seen[-1], seen[0].time, as_json=as_json)
                    if summary_of(seen).ended:
                        return

    note("watching the run until it ends; Ctrl-C ends it earlier")
    run(follow())


def _tell(entry: Entry, began: float, *, as_json: bool) -> None:
    if as_json:
        write_json({"index": entry.index, "time": moment(entry.time), "kind": entry.kind, "data": entry.data})
        return
    for line in _lines(entry, began):
        write(line)


@app.command()
@asynchronous
async def cancel(
    id: RunArgument,
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for its journal.")] = "",
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a run where it is; its handler is not called again."""
    async with overseeing(server, nats_context) as client:
        agent, run_id = await find_run(client.bus, id)
        await client.runs.cancel(agent, run_id, reason=reason)
    _done("cancelled", agent, run_id, as_json=as_json)


@app.command()
@asynchronous
async def resume(
    id: RunArgument,
    *,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a run go on behind what it has finished: one that waits, at once; also one that is dead or was cancelled."""
    async with overseeing(server, nats_context) as client:
        agent, run_id = await find_run(client.bus, id)
        await client.runs.resume(agent, run_id)
    _done("resumed", agent, run_id, as_json=as_json)


@app.command()
@asynchronous
async def rerun(
    id: RunArgument,
    *,
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STEP",
            help="The first step to do anew, by name or position; by default the one that the run did not finish.",
        ),
    ] = None,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Repeat a run from a step on, as a new run that has finished what this one had finished before.

    What the handler sends outside of steps is sent again, as the new run's own.
    """
    async with overseeing(server, nats_context) as client:
        agent, old = await find_run(client.bus, id)
        _done("begun", agent, await client.runs.rerun(agent, old, first=first), as_json=as_json)


def _done(what: str, agent: str, id: str, *, as_json: bool) -> None:
    write_json({"agent": agent, "run": id}) if as_json else write(f"{what}: {id} of {agent}")


@app.command()
def export(
    id: RunArgument,
    *,
    as_test: Annotated[bool, typer.Option("--as-test", help="As a test for pytest that replays it.")] = False,
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="The folder of your tests.")] = Path("tests"),
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run that is done as a test: its handler must make the same calls again, and come to the same result."""
    if not as_test:
        msg = "say as what: --as-test; `natterjack runs show RUN --json` prints its entries"
        raise CommandError(msg, ExitCode.USAGE)

    async def look() -> None:
        async with overseeing(server, nats_context) as client:
            agent, run_id = await find_run(client.bus, id)
            team, entries = await check_agent(client, agent), await client.journal.read(agent, run_id)
        paths = write_test(into, team.agents[agent], entries)
        write_json([str(path) for path in paths]) if as_json else write(f"written: {', '.join(map(str, paths))}")

    run(look())


# A timeline as text


def _lines(entry: Entry, began: float, timeline: Timeline | None = None) -> Iterator[str]:
    """Yield an entry as lines: what the run did before it, the entry, and what was done in it."""
    inside = entry.data.get("did", ()) if isinstance(entry.data, Mapping) else ()
    notes = notes_of(entry) if timeline is None else timeline.notes(entry)
    for each in (each for each in notes if each not in inside):
        yield from _note(each, timeline, " " * 10)
    yield f"{_span(entry.time - began):>8}  {_told(entry)}"
    for each in inside:
        yield from _note(each, timeline, " " * 12)


def _told(entry: Entry) -> str:
    """Return an entry in words."""
    data: Mapping[str, Any] = entry.data if isinstance(entry.data, Mapping) else {}
    name, attempt = one_line(data.get("name", "")), data.get("attempt", data.get("attempts", 1))
    cause, result = one_line(data.get("cause", "")), _brief(data.get("result"))
    told = {
        "begun": f"begun by {_beginning(data)}",
        "step": f"step {name}, {_span(float(data.get('seconds', 0)))}: {result}",
        "sleep": f"sleeps until {_local(data.get('until'))}",
        "waiting": f"waits for {name}{_where(data)} until {_local(data.get('until'))}",
        "waited": "nothing came in time" if data.get("event") is None else f"came: {_brief(data['event'])}",
        "started": f"attempt {attempt} begins",
        "failed": f"attempt {attempt} failed: {cause}",
        "interrupted": f"attempt {attempt} was interrupted",
        "routed": f"result: {result}",
        "done": f"done: {result}",
        "dead": f"dead after attempt {attempt}: {cause}",
    }
    return told.get(entry.kind) or f"{entry.kind}  {_brief(entry.data)}".rstrip()


def _beginning(data: Mapping[str, Any]) -> str:
    if "question" in data:
        return f"a question of {data.get('caller') or 'somebody'}: {_brief(data['question'])}"
    if "rerun_of" in data:
        return f"rerun of {one_line(data['rerun_of'])[:SHORT]}"
    place = f"{data.get('stream', '')} {data.get('sequence', '')}"
    return f"{data.get('trigger', '?')}, {place}: {_brief(data.get('payload'))}"


def _where(data: Mapping[str, Any]) -> str:
    return f" where {one_line(data['where'])}" if data.get("where") else ""


def _local(time: Any) -> str:
    return f"{moment(time).astimezone():%Y-%m-%d %H:%M:%S}" if isinstance(time, int | float) else "?"


def _brief(value: Any) -> str:
    text = "" if value is None else one_line(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _amounts(usage: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:,.12g} {what}" for what, amount in usage.items())


def _note(did: Mapping[str, Any], timeline: Timeline | None, indent: str) -> Iterator[str]:
    """Yield what a run sent or asked, and the runs that it led to."""
    what = one_line(did["what"])
    if did["verb"] == "spent":
        yield f"{indent}cost {_amounts(did['usage'])}"
    elif did["verb"] == "ask":
        answered = f" answered in {_span(did['seconds'])}" if "seconds" in did else ""
        yield f"{indent}asked {what}{answered}"
    else:
        yield f"{indent}{'emitted' if did['verb'] == 'emit' else 'published'} {what} {did['sequence']}"
    runs = timeline.runs(did) if timeline is not None else []
    for each in runs:
        cost = f", cost {_amounts(each.spent)}" if each.spent else ""
        yield f"{indent}  → run {each.run[:SHORT]} of {each.agent}: {each.state}{cost}"
    if did.get("run") and not runs:
        yield f"{indent}  → run {did['run'][:SHORT]}, which journaled no step"
