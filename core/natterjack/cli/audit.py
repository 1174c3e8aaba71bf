"""The audit of the team: `audit show|verify`."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterable
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple

import typer

from natterjack import codec, subjects
from natterjack.bus import Bus, Message
from natterjack.cli.exits import CommandError, ExitCode
from natterjack.cli.options import JsonOption, NatsContextOption, ServerOption, SinceOption, overseeing, read_since
from natterjack.cli.output import clean, local, note, one_line, write, write_json
from natterjack.cli.run import asynchronous
from natterjack.errors import PayloadError, nearest
from natterjack.record import stored_team

_CHAIN: Final = {"writer": str, "number": int, "previous": str, "times": int}
"""What each record has beside its facts."""
_BESIDE: Final = (subjects.OPERATOR, "core", "callout")
"""Who writes into it and is in no team file."""
_TOLD: Final = "{changed} changed, {missing} missing"

app = typer.Typer(no_args_is_help=True, help="See who was refused what, and who changed what others may.")


class Attested(NamedTuple):
    """What the broker says of a record: its contents are their writer's, and may say anything."""

    time: str
    sequence: int
    who: str
    area: str
    verb: str


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
    """Print what was refused, and changes of what may be done, oldest first.

    When, by whom and of what kind is what the broker says; the rest is what that one wrote.
    """
    async with overseeing(server, nats_context) as client:
        moment, count = read_since(since), 0
        async for message in client.bus.read(subjects.AUDIT, subjects.audit(who, area, "*"), since=moment):
            _show(message, as_json=as_json)
            count += 1
        if who == "*" or count:
            return
        await _check_known(client.bus, who)
    if not as_json:
        note(f"nothing is written down of {who!r}" + (", as far as is asked" if since or area != "*" else ""))


async def _check_known(bus: Bus, who: str) -> None:
    """Check that neither the team nor its audit lacks somebody: the name may be misspelt."""
    if who in _BESIDE or await bus.last(subjects.AUDIT, subjects.audit(who, "*", "*")):
        return
    team = await stored_team(bus)
    known = sorted({*team.processes, *team.users})
    if who not in known:
        has = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
        told = f"team {team.name!r} has nobody called {who!r}, nor has its audit"
        msg = f"{told}.{nearest(who, [*known, *_BESIDE])} It has: {has}."
        raise CommandError(msg, ExitCode.UNKNOWN)


@app.command()
@asynchronous
async def verify(
    *, server: ServerOption = None, nats_context: NatsContextOption = None, as_json: JsonOption = False
) -> None:
    """Find records that were changed, or are missing between others, and whose; exit with 1 if there are any.

    What the stream let go because of its age or number is missing, too, where younger records of its writer are kept.
    """
    async with overseeing(server, nats_context) as client:
        found = await _verified(client.bus.read(subjects.AUDIT, subjects.audit("*", "*", "*")))
    total = Counter({"records": 0, "writers": 0, "changed": 0, "missing": 0})
    for each in found.values():
        total.update(each)
    wrong = {who: each for who, each in sorted(found.items()) if each["changed"] or each["missing"]}
    if as_json:
        write_json({**total, "wrong": wrong})
    else:
        write(f"{{records}} records of {{writers}} writers; {_TOLD}".format_map(total))
        for who, each in wrong.items():
            write(f"  {one_line(who)}: {_TOLD.format_map(each)}")
    if wrong:
        raise typer.Exit(1)


async def _verified(messages: AsyncIterable[Message]) -> dict[str, Counter[str]]:
    """Follow the chains of all writers, and return what was found of each principal; nobody breaks others' chains."""
    found, last = defaultdict[str, Counter[str]](Counter), dict[tuple[str, str], tuple[int, str]]()
    async for message in messages:
        who = _attested(message).who
        found[who]["records"] += 1
        record = _record(message.data)
        if record is None:
            found[who]["changed"] += 1
            continue
        chain, number, previous = (who, record["writer"]), record["number"], record["previous"]
        found[who]["writers"] += chain not in last
        before, digest = last.get(chain, (number - 1, previous))
        found[who]["missing"] += max(0, number - before - 1)
        found[who]["changed"] += number <= before or (number == before + 1 and previous != digest)
        last[chain] = number, hashlib.sha256(message.data).hexdigest()
    return dict(found)


def _attested(message: Message) -> Attested:
    headers = message.headers or {}
    _, who, area, verb = headers["Nats-Subject"].split(".")
    return Attested(headers["Nats-Time-Stamp"], int(headers["Nats-Sequence"]), who, area, verb)


def _record(data: bytes) -> dict[str, Any] | None:
    """Return a record, or None: a principal that was taken over may write anything."""
    try:
        record = codec.decode(data)
    except PayloadError:
        return None
    is_one = isinstance(record, dict) and all(type(record.get(name)) is kind for name, kind in _CHAIN.items())
    return record if is_one else None


def _show(message: Message, *, as_json: bool) -> None:
    attested, record = _attested(message), _record(message.data)
    if as_json:
        write_json(attested._asdict() | ({"record": record} if record else {"malformed": message.data}))
        return
    said = f"  malformed: {one_line(message.data)}"
    if record:
        facts = {name: value for name, value in record.items() if name not in _CHAIN}
        said = (f" {record['times']} times" if record["times"] != 1 else "") + f"  {one_line(facts)}"
    time = local(datetime.fromisoformat(attested.time))
    write(f"{time}  {clean(attested.who)}  {clean(attested.area)} {clean(attested.verb)}{said}")
