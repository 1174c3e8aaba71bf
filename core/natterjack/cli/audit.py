"""The audit of the team: `audit show|verify`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any

import typer

from natterjack import codec, subjects
from natterjack.bus import Bus, Message
from natterjack.cli.options import JsonOption, NatsContextOption, ServerOption, SinceOption, joined, read_since
from natterjack.cli.output import local, one_line, write, write_json
from natterjack.cli.run import asynchronous
from natterjack.errors import PayloadError

app = typer.Typer(no_args_is_help=True, help="See who was refused what, and who changed what others may.")


@app.command()
@asynchronous
async def show(
    who: Annotated[str, typer.Argument(metavar="[WHO]", help="Only of this agent, tool server or user.")] = "*",
    *,
    area: Annotated[str, typer.Option("--area", help="Only of guard, broker, tools or authority.")] = "*",
    since: SinceOption = None,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what was refused, and changes of what may be done, oldest first."""
    async with joined(server, nats_context) as client:
        moment = read_since(since)
        async for message in client.bus.read(subjects.AUDIT, subjects.audit(who, area, "*"), since=moment):
            _show(message, as_json=as_json)


@app.command()
@asynchronous
async def verify(
    *, server: ServerOption = None, nats_context: NatsContextOption = None, as_json: JsonOption = False
) -> None:
    """Find records that were changed, or are missing between others; exit with 1 if there are any.

    What the stream let go because of its age or number is missing, too, where younger records of its writer are kept.
    """
    async with joined(server, nats_context) as client:
        found = await _verified(_records(client.bus))
    if as_json:
        write_json(found)
    else:
        told = "{records} records of {writers} writers; {changed} changed, {missing} missing"
        write(told.format_map(found))
    if found["changed"] or found["missing"]:
        raise typer.Exit(1)


async def _records(bus: Bus) -> AsyncIterator[bytes]:
    async for message in bus.read(subjects.AUDIT, subjects.audit("*", "*", "*")):
        yield message.data


async def _verified(records: AsyncIterator[bytes]) -> dict[str, int]:
    """Follow the chains of all writers."""
    found, last = Counter({"records": 0, "writers": 0, "changed": 0, "missing": 0}), dict[str, tuple[int, str]]()
    async for data in records:
        found["records"] += 1
        try:
            record = codec.decode(data)
            writer, number, previous = record["writer"], int(record["number"]), record["previous"]
        except (PayloadError, TypeError, LookupError, ValueError):
            found["changed"] += 1
            continue
        before, digest = last.get(writer, (number - 1, previous))
        found["missing"] += max(0, number - before - 1)
        found["changed"] += number <= before or (number == before + 1 and previous != digest)
        last[writer] = number, hashlib.sha256(data).hexdigest()
    found["writers"] = len(last)
    return dict(found)


def _read(data: bytes) -> dict[str, Any]:
    """Return a record, or what stands in its place: a principal that was taken over may write anything."""
    try:
        record = codec.decode(data)
    except PayloadError:
        record = data.decode(errors="replace")
    return record if isinstance(record, dict) else {"unreadable": record}


def _show(message: Message, *, as_json: bool) -> None:
    headers = message.headers or {}
    _, who, area, verb = headers["Nats-Subject"].split(".")
    record = _read(message.data)
    time = headers["Nats-Time-Stamp"]
    if as_json:
        write_json({"time": time, "who": who, "area": area, "verb": verb, **record})
        return
    facts = {key: value for key, value in record.items() if key not in ("writer", "number", "previous", "times")}
    times = f" {record['times']} times" if record.get("times", 1) != 1 else ""
    write(f"{local(datetime.fromisoformat(time))}  {who}  {area} {verb}{times}  {one_line(facts)}")
