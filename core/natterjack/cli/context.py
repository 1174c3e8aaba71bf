"""The shared context: `context get|set|delete|list|watch|history`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated

import typer

from natterjack.cli.exits import CommandError, ExitCode
from natterjack.cli.options import (
    CountOption,
    JsonOption,
    NatsContextOption,
    ServerOption,
    joined,
    read_payload,
)
from natterjack.cli.output import local, note, one_line, text_of, write, write_json, write_table
from natterjack.cli.run import asynchronous, run
from natterjack.client import TeamClient
from natterjack.context import AgentContext
from natterjack.errors import nearest
from natterjack.record import stored_team
from natterjack.subjects import check_type

app = typer.Typer(no_args_is_help=True, help="Read and change the shared context.")

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Tokens joined by dots, e.g. findings")]

BucketOption = Annotated[
    str, typer.Option("--bucket", metavar="NAME", help="A bucket of the team, instead of the main context.")
]


async def _check_bucket(client: TeamClient, bucket: str) -> None:
    team = await stored_team(client.bus)
    if bucket not in team.buckets:
        known = ", ".join(team.buckets) or "none"
        msg = f"team {team.name!r} has no bucket {bucket!r}.{nearest(bucket, team.buckets)} It has: {known}."
        raise CommandError(msg, ExitCode.UNKNOWN)


@asynccontextmanager
async def _joined(bucket: str, server: str | None, nats_context: str | None) -> AsyncIterator[AgentContext]:
    async with joined(server, nats_context, context=not bucket) as client:
        if bucket:
            await _check_bucket(client, bucket)
        yield await client.bucket(bucket) if bucket else client.context


@app.command()
@asynchronous
async def get(
    key: KeyArgument,
    *,
    bucket: BucketOption = "",
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the value of a key."""
    async with _joined(bucket, server, nats_context) as context:
        _check_key(context, key)
        value = context.get(key)
        write_json(value) if as_json else write(text_of(value))


def _check_key(context: AgentContext, key: str) -> None:
    known = context.keys()
    if check_type(key, "context key") not in known:
        msg = f"the context has no key {key!r}.{nearest(key, known)} `natterjack context list` shows them."
        raise CommandError(msg, ExitCode.UNKNOWN)


@app.command()
def set(
    key: KeyArgument,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="JSON, or else text; `-` reads standard input; after `--` also -5.")
    ],
    *,
    expected: Annotated[
        int | None, typer.Option("--expected", min=0, help="Only if the key has this revision; 0: if it is new.")
    ] = None,
    bucket: BucketOption = "",
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a key."""
    data = read_payload(value)

    async def store() -> None:
        async with _joined(bucket, server, nats_context) as context:
            revision = await context.set(key, data, expected=expected)
        _tell_written(key, revision, as_json=as_json)

    run(store())


@app.command()
@asynchronous
async def delete(
    key: KeyArgument,
    *,
    bucket: BucketOption = "",
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a key."""
    async with _joined(bucket, server, nats_context) as context:
        _check_key(context, key)
        revision = await context.delete(key)
    _tell_written(key, revision, as_json=as_json)


def _tell_written(key: str, revision: int, *, as_json: bool) -> None:
    write_json({"key": key, "revision": revision}) if as_json else write(f"{key} has revision {revision}")


@app.command("list")
@asynchronous
async def list_keys(
    pattern: Annotated[str, typer.Argument(help="E.g. draft.*")] = ">",
    *,
    bucket: BucketOption = "",
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """List all keys with their values."""
    async with _joined(bucket, server, nats_context) as context:
        keys = context.keys(pattern)
        values = {key: context.get(key) for key in keys}
    if as_json:
        write_json(values)
    else:
        write_table(["key", "value"], [*values.items()], empty="the context is empty")


@app.command()
@asynchronous
async def watch(
    pattern: Annotated[str, typer.Argument(help="E.g. findings, draft.* or >")] = ">",
    *,
    count: CountOption = None,
    bucket: BucketOption = "",
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print changes as they come, one line each."""
    async with _joined(bucket, server, nats_context) as context:
        changes = context.watch(pattern)
        note(f"watching keys that match {pattern!r}; Ctrl-C ends it")
        seen = 0
        async for change in changes:
            value = "(deleted)" if change.deleted else one_line(change.value)
            line = f"{change.revision}  {change.key}  {change.writer or '-'}  {value}"
            write_json(asdict(change)) if as_json else write(line)
            seen += 1
            if seen == count:
                return


@app.command()
@asynchronous
async def history(
    key: KeyArgument,
    *,
    bucket: BucketOption = "",
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the last 16 versions of a key, oldest first."""
    async with _joined(bucket, server, nats_context) as context:
        revisions = await context.history(key)
        if not revisions:
            _check_key(context, key)
    if as_json:
        write_json([asdict(revision) for revision in revisions])
        return
    rows = [(r.revision, local(r.time), r.writer, "(deleted)" if r.deleted else r.value) for r in revisions]
    write_table(["revision", "time", "writer", "value"], rows, empty="no versions")
