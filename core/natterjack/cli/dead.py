"""Dead letters: `dead list|show|retry|drop`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from natterjack import dead
from natterjack.bus import Bus
from natterjack.cli.exits import CommandError, ExitCode
from natterjack.cli.options import JsonOption, NatsContextOption, ServerOption, check_agent, overseeing
from natterjack.cli.output import local, text_of, write, write_json, write_table
from natterjack.cli.run import asynchronous
from natterjack.codec import decode
from natterjack.dead import DeadLetter
from natterjack.errors import NotProvisionedError, PayloadError
from natterjack.record import stored_team

app = typer.Typer(no_args_is_help=True, help="Decide about events that could not be handled.")

NumberArgument = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="As `dead list` shows it.")]
NumbersArgument = Annotated[
    list[int] | None, typer.Argument(metavar="NUMBER", min=1, help="As `dead list` shows them.", show_default=False)
]
AgentOption = Annotated[str | None, typer.Option("--agent", metavar="AGENT", help="Only of this agent.")]
AllOption = Annotated[bool, typer.Option("--all", help="All of them, or all of --agent.")]


@app.command("list")
@asynchronous
async def list_letters(
    *,
    agent: AgentOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 1000,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, oldest first."""
    async with overseeing(server, nats_context) as client:
        if agent:
            await check_agent(client, agent)
        letters = await dead.dead_letters(client.bus, agent=agent or "*", limit=limit)
    if as_json:
        write_json([_described(letter) for letter in letters])
        return
    rows = [(i.number, local(i.time), i.agent, i.type, i.attempts, i.cause) for i in letters]
    write_table(["number", "time", "agent", "event", "attempts", "cause"], rows, empty="no dead letters")


def _described(letter: DeadLetter) -> dict[str, Any]:
    try:
        data = decode(letter.data)
    except PayloadError:  # that may be why it is dead
        data = letter.data
    time = datetime.fromtimestamp(letter.time, UTC)
    return {"number": letter.number, "type": letter.type, **asdict(letter), "time": time, "data": data}


@app.command()
@asynchronous
async def show(
    number: NumberArgument,
    *,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one dead letter with its payload."""
    async with overseeing(server, nats_context) as client:
        letter = await _find(client.bus, number)
    if as_json:
        write_json(_described(letter))
        return
    for name, value in (_described(letter) | {"time": local(letter.time)}).items():
        write(f"{name:10}{text_of(value)}")


async def _find(bus: Bus, number: int) -> DeadLetter:
    await stored_team(bus)  # tells a server without a team from a letter that is not there
    try:
        return await dead.dead_letter(bus, number)
    except NotProvisionedError as error:
        msg = f"there is no dead letter {number}; `natterjack dead list` shows them"
        raise CommandError(msg, ExitCode.UNKNOWN) from error


@app.command()
@asynchronous
async def retry(
    numbers: NumbersArgument = None,
    *,
    every: AllOption = False,
    agent: AgentOption = None,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give events to their agents again, through their inboxes."""
    await _decide("retried", dead.retry, numbers or [], every, agent, server, nats_context, as_json=as_json)


@app.command()
@asynchronous
async def drop(
    numbers: NumbersArgument = None,
    *,
    every: AllOption = False,
    agent: AgentOption = None,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget dead letters."""
    await _decide("dropped", dead.drop, numbers or [], every, agent, server, nats_context, as_json=as_json)


async def _decide(
    done: str,
    act: Callable[[Bus, int], Awaitable[None]],
    numbers: list[int],
    every: bool,
    agent: str | None,
    server: str | None,
    nats_context: str | None,
    *,
    as_json: bool,
) -> None:
    if bool(numbers) == every:
        msg = "name dead letters by their numbers, or give --all"
        raise CommandError(msg, ExitCode.USAGE)
    async with overseeing(server, nats_context) as client:
        if every:
            letters = await dead.dead_letters(client.bus, agent=agent or "*")
            numbers = [letter.number for letter in letters if act is dead.drop or not letter.lost]
        for number in numbers:
            await _find(client.bus, number)
        for number in numbers:
            await act(client.bus, number)
    text = ", ".join(map(str, numbers)) or "none"
    write_json({done: numbers}) if as_json else write(f"{done}: {text}")
