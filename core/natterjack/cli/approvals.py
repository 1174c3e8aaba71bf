"""Questions to humans: `approvals list|approve|deny`."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from typing import Annotated

import typer

from natterjack.approvals import Approval
from natterjack.cli.options import JsonOption, NatsContextOption, ServerOption, joined
from natterjack.cli.output import local, one_line, write, write_json, write_table
from natterjack.cli.run import asynchronous
from natterjack.cli.timeline import SHORT

app = typer.Typer(no_args_is_help=True, help="Answer what agents ask humans.")

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `approvals list` shows it.")]
ByOption = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who decides; by default your name on this machine.")
]


@app.command("list")
@asynchronous
async def list_approvals(
    *, server: ServerOption = None, nats_context: NatsContextOption = None, as_json: JsonOption = False
) -> None:
    """List the questions that wait for an answer, oldest first."""
    async with joined(server, nats_context) as client:
        found = await client.approvals.waiting()
    if as_json:
        write_json([asdict(each) for each in found])
        return
    columns = ["id", "agent", "run", "asked", "until", "choices", "question"]
    write_table(columns, [_row(each) for each in found], empty="nobody waits for an answer")


def _row(each: Approval) -> tuple[str, ...]:
    times = local(each.asked), local(each.until)
    return (each.id[:SHORT], each.agent, each.run[:SHORT], *times, " / ".join(each.choices), each.question)


@app.command()
@asynchronous
async def approve(
    id: IdArgument,
    answer: Annotated[str, typer.Argument(metavar="ANSWER", help="One of its choices, or any text.")] = "yes",
    *,
    by: ByOption = None,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question."""
    async with joined(server, nats_context) as client:
        found = await client.approvals.answer(id, answer, by=by or getpass.getuser())
    write_json(asdict(found)) if as_json else write(f"answered {answer!r}: {one_line(found.question)}")


@app.command()
@asynchronous
async def deny(
    id: IdArgument,
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the agent and the journal.")] = "",
    by: ByOption = None,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say no to a question."""
    async with joined(server, nats_context) as client:
        found = await client.approvals.deny(id, reason=reason, by=by or getpass.getuser())
    write_json(asdict(found)) if as_json else write(f"denied: {one_line(found.question)}")
