"""The command `natterjack schedule`: what the broker will do, and when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Final

import typer

import natterjack
from natterjack import ConfigError, Schedule
from natterjack_schedule.cron import firings, six_fields, zone_of

app = typer.Typer(name="schedule", no_args_is_help=True, help="See and cancel what the broker will do, and when.")

ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="The NATS server; by default NATS_URL, or the broker of this folder."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="As `schedule list` shows it.")]
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_COLUMNS: Final = ("name", "what", "when", "next")


@app.command("list")
def list_schedules(*, server: ServerOption = None, as_json: JsonOption = False) -> None:
    """List the triggers' schedules, and the events that are held until they are due; what comes first is first."""
    now = datetime.now(UTC)
    found = sorted(asyncio.run(_schedules(server)), key=lambda each: next_of(each, now) or _NEVER)
    if as_json:
        typer.echo(json.dumps([_described(each, now) for each in found]))
        return
    rows = [(_name(each), _what(each), _when(each), _spoken(next_of(each, now), now)) for each in found]
    _write_table(rows) if rows else typer.echo("nothing is scheduled", err=True)


async def _schedules(server: str | None) -> list[Schedule]:
    async with natterjack.connect(server, context=False) as team:
        return await team.schedules()


def next_of(schedule: Schedule, now: datetime) -> datetime | None:
    """Return when a schedule is due next: as the broker has said, or else as it will."""
    kind, _, rest = schedule.when.partition(" ")
    if kind == "@at":
        return datetime.fromisoformat(rest)
    if schedule.last is not None and schedule.last.next is not None and schedule.last.next > now:
        return schedule.last.next
    if kind == "@every":
        interval = timedelta(seconds=int(rest.removesuffix("s")))
        passed = max(timedelta(), now - schedule.since) // interval
        return (schedule.since + (passed + 1) * interval + timedelta(milliseconds=500)).replace(microsecond=0)
    return next(firings(schedule.when, zone_of(schedule.zone or "UTC"), now), None)


def _name(schedule: Schedule) -> str:
    return f"{schedule.owner}.{schedule.name}"


def _what(schedule: Schedule) -> str:
    return f"event {schedule.event}" if schedule.event else f"wakes {schedule.owner}"


def _when(schedule: Schedule) -> str:
    return f"{schedule.when} {schedule.zone}".rstrip()


def _described(schedule: Schedule, now: datetime) -> dict[str, Any]:
    due, last = next_of(schedule, now), schedule.last
    return {
        "name": _name(schedule),
        "owner": schedule.owner,
        "event": schedule.event or None,
        "when": schedule.when,
        "zone": schedule.zone or None,
        "since": schedule.since.isoformat(),
        "last": None if last is None else last.time.isoformat(),
        "next": None if due is None else due.isoformat(),
    }


def _spoken(due: datetime | None, now: datetime) -> str:
    """Return a time as it is here, and how long it takes until then."""
    if due is None:
        return "never"
    left = max(timedelta(), due - now)
    hours, minutes, seconds = left.seconds // 3600, left.seconds // 60 % 60, left.seconds % 60
    parts = [f"{left.days} d" if left.days else "", f"{hours} h" if hours else "", f"{minutes} min" if minutes else ""]
    text = " ".join([part for part in parts if part][:2]) or f"{seconds} s"
    return f"{due.astimezone():%Y-%m-%d %H:%M:%S} (in {text})"


def _write_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, cells)) for cells in zip(_COLUMNS, *rows, strict=True)]
    for row in (_COLUMNS, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command("next")
def show_next(
    expression: Annotated[str, typer.Argument(metavar="CRON", help="Five fields, or six with seconds first.")],
    *,
    zone: Annotated[str, typer.Option("--zone", help="Time zone, e.g. Europe/Amsterdam.")] = "UTC",
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000, help="So many.")] = 5,
    since: Annotated[datetime | None, typer.Option("--from", help="After this time there; by default now.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show when a cron expression comes, as the broker will have it: also when clocks change."""
    try:
        fields, there = six_fields(expression), zone_of(zone)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    begin = datetime.now(UTC) if since is None else since.replace(tzinfo=there)
    times = list(islice(firings(fields, there, begin), count))
    if as_json:
        typer.echo(json.dumps([time.isoformat() for time in times]))
        return
    for time in times:
        typer.echo(f"{time:%a %Y-%m-%d %H:%M:%S %z}")


@app.command()
def cancel(name: NameArgument, *, server: ServerOption = None, as_json: JsonOption = False) -> None:
    """Cancel an event that is held, or a trigger's schedule until the team is provisioned again."""
    owner, _, own = name.partition(".")
    asyncio.run(_cancel(server, owner, own))
    typer.echo(json.dumps({"cancelled": name}) if as_json else f"cancelled {name}")


async def _cancel(server: str | None, owner: str, name: str) -> None:
    async with natterjack.connect(server, context=False) as team:
        await team.cancel_schedule(owner, name)
