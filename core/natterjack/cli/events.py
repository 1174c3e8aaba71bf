"""Events and messages: `emit`, `publish`, `events tail`, `events replay`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer

from natterjack import subjects
from natterjack.cli.options import (
    CountOption,
    DataArgument,
    JsonOption,
    NatsContextOption,
    ServerOption,
    TimeoutOption,
    check_agent,
    joined,
    read_payload,
    read_since,
)
from natterjack.cli.output import local, note, one_line, text_of, write, write_json
from natterjack.cli.run import asynchronous, run
from natterjack.client import Run, TeamClient
from natterjack.errors import nearest
from natterjack.events import Since, authored
from natterjack.messages import Envelope, Event, run_id
from natterjack.record import stored_team
from natterjack.subjects import matches

app = typer.Typer(no_args_is_help=True, help="See events as they happen, or again.")

IdOption = Annotated[
    str | None, typer.Option("--id", help="Deduplication id: what is stored already is not stored again.")
]


def emit(
    type: Annotated[str, typer.Argument(metavar="TYPE", help="What happened, e.g. research.start")],
    data: DataArgument = None,
    *,
    to: Annotated[str | None, typer.Option("--to", metavar="AGENT", help="Give it to this agent alone.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="With --to: print what the agent made of it.")] = False,
    timeout: TimeoutOption = 600.0,
    id: IdOption = None,
    delay: Annotated[
        float | None, typer.Option("--delay", metavar="SECONDS", min=0, help="Until then the broker holds it.")
    ] = None,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store an event, which wakes whoever waits for it."""
    if wait and not to:
        msg = "only the run of one agent can be waited for: add --to AGENT"
        raise typer.BadParameter(msg, param_hint="--wait")
    if delay is not None and to:
        msg = "what is for one agent goes there at once; without --to it can be delayed"
        raise typer.BadParameter(msg, param_hint="--delay")
    value = read_payload(data)

    async def send() -> None:
        async with joined(server, nats_context) as client:
            if to:
                await _emit_to(client, to, type, value, id, timeout if wait else None, as_json=as_json)
            else:
                await _emit(client, type, value, id, delay, as_json=as_json)

    run(send())


async def _emit(
    client: TeamClient, type: str, value: Any, id: str | None, delay: float | None, *, as_json: bool
) -> None:
    sequence = await client.event_bus.emit(type, value, id=id, delay=delay)
    if delay and as_json:
        write_json({"type": type, "delay": delay})
    elif delay:
        write(f"held event {type} for {delay:g} s")
    else:
        _tell_stored("event", "type", type, sequence, as_json=as_json)
    team = await stored_team(client.bus)
    awaited = team.heard("emit")
    if not any(matches(pattern, type) for pattern in awaited):
        note(f"note: no agent of team {team.name!r} waits for {type!r}.{nearest(type, awaited)}")


async def _emit_to(
    client: TeamClient, agent: str, type: str, value: Any, id: str | None, timeout: float | None, *, as_json: bool
) -> None:
    await check_agent(client, agent)
    identity = id or client.bus.new_id()
    stored = await client.event_bus.send("inject", f"{agent}.{type}", value, Envelope(), identity)
    started = Run(run_id(subjects.INBOX, authored(identity, client.bus.author), agent, "inbox"), agent, client.bus)
    told = {"agent": agent, "type": type, "run": started.id, "sequence": stored.sequence}
    if timeout is None:
        text = f"stored for {agent}: event {type} (sequence {stored.sequence}, run {started.id})"
        write_json(told) if as_json else write(text)
        return
    result = await started.result(timeout)
    write_json({**told, "result": result}) if as_json else write(text_of(result))


def _tell_stored(what: str, key: str, name: str, sequence: int, *, as_json: bool) -> None:
    if as_json:
        write_json({key: name, "sequence": sequence})
    else:
        write(f"stored {what} {name} (sequence {sequence})")


def publish(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="For whom it is, e.g. reports.daily")],
    data: DataArgument = None,
    *,
    id: IdOption = None,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Store a message for the subscribers of a topic."""
    value = read_payload(data)

    async def send() -> None:
        async with joined(server, nats_context) as client:
            sequence = await client.event_bus.publish(topic, value, id=id)
            _tell_stored("message", "topic", topic, sequence, as_json=as_json)

    run(send())


@app.command()
@asynchronous
async def tail(
    pattern: Annotated[str, typer.Argument(help="E.g. research.complete, research.* or >")] = ">",
    *,
    messages: Annotated[bool, typer.Option("--messages", help="Messages by topic instead of events.")] = False,
    count: CountOption = None,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print events as they happen, one line each."""
    async with joined(server, nats_context) as client:
        await stored_team(client.bus)  # without provisioning nothing is fed, and the tail would stay silent
        bus = client.event_bus
        async with bus.subscribe_topic(pattern) if messages else bus.subscribe(pattern) as live:
            note(f"watching {'messages' if messages else 'events'} that match {pattern!r}; Ctrl-C ends it")
            left = count
            while left is None or left > 0:
                _show(await anext(live), as_json=as_json)
                left = None if left is None else left - 1


@app.command()
@asynchronous
async def replay(
    pattern: Annotated[str, typer.Argument(help="E.g. research.complete, research.* or >")] = ">",
    *,
    since: Annotated[
        str | None, typer.Option("--since", metavar="WHEN", help="90s, 10m, 2h or 7d ago; a time; or a sequence.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="The first so many.")] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="AGENT", help="Put them into this agent's inbox.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --to: do not ask first.")] = False,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print stored events, oldest first, or give them to an agent again."""
    begin = _beginning(since)
    async with joined(server, nats_context) as client:
        await (check_agent(client, to) if to else stored_team(client.bus))
        events = _first(client.event_bus.replay(pattern, since=begin), limit)
        if to:
            await _give_again(client, to, [event async for event in events], yes=yes, as_json=as_json)
            return
        async for event in events:
            _show(event, as_json=as_json, day=True)


async def _give_again(client: TeamClient, agent: str, events: list[Event], *, yes: bool, as_json: bool) -> None:
    told = "1 event" if len(events) == 1 else f"{len(events)} events"
    if not yes:
        typer.confirm(f"put {told} into the inbox of {agent}?", err=True, abort=True)
    for event in events:
        await client.event_bus.send("inject", f"{agent}.{event.type}", event.data, Envelope(), None)
    write_json({"agent": agent, "events": len(events)}) if as_json else write(f"{agent}: {told}")


async def _first(events: AsyncIterator[Event], limit: int | None) -> AsyncIterator[Event]:
    count = 0
    async for event in events:
        yield event
        count += 1
        if count == limit:
            return


def _beginning(text: str | None) -> Since | None:
    """Return what `--since` means here: a sequence, or a time as everywhere."""
    return int(text) if text and text.isdecimal() else read_since(text)


def _show(event: Event, *, as_json: bool, day: bool = False) -> None:
    if as_json:
        keys = ("id", "type", "data", "source", "time", "sequence")
        write_json({key: getattr(event, key) for key in keys})
    else:
        data = "" if event.data is None else f"  {one_line(event.data)}"
        write(f"{local(event.time, day=day)}  {event.type}  {event.source or '-'}{data}")
