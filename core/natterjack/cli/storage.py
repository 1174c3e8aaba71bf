"""`storage`: what the team's streams hold and who fills them; with `--enforce`, that nobody fills them for others."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from natterjack.cli.holdings import Look, Store, size
from natterjack.cli.options import JsonOption, NatsContextOption, ServerOption, find_server, operator
from natterjack.cli.output import note, write_json, write_table
from natterjack.cli.places import NOBODY, places
from natterjack.cli.run import run, show_logs, stopping
from natterjack.cli.shares import Shares
from natterjack.coroutines import first_of
from natterjack.record import stored_team
from natterjack.server import Server
from natterjack.subjects import ANYONE

_MOST: Final = 3
"""Principals that the table names of a stream."""


def storage(
    *,
    enforce: Annotated[
        bool, typer.Option("--enforce", help="Refuse who stores more than its share, until Ctrl-C.")
    ] = False,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what the streams hold in which all store, and who stored most of it in the last hour.

    In secured mode `natterjack up` enforces shares; where agents run without it, let one `storage --enforce` run beside
    them.
    """
    found = find_server(server, nats_context)
    if enforce:
        show_logs()
        run(_enforce(found))
        return
    stores = run(_look(found))
    if as_json:
        write_json([_facts(store) for store in stores])
        return
    rows = [
        (store.name, size(store.held), size(store.size) if store.size else "-", _told(store), " ".join(store.refused))
        for store in stores
    ]
    write_table(["stream", "holds", "of", "stored in the last hour", "refused"], rows, empty="")


async def _look(server: Server) -> list[Store]:
    async with operator(server) as bus:
        return [await Look(bus, place).read() for place in places(await stored_team(bus))]


async def _enforce(server: Server) -> None:
    with stopping() as stop:
        async with operator(server) as bus:
            shares = Shares(bus)
            await shares.look()
            note("shares are enforced; Ctrl-C stops")
            await first_of(shares.enforce(), stop.wait())


def _facts(store: Store) -> dict[str, Any]:
    stored = dict(store.stored.most_common())
    facts = {"stream": store.name, "held": store.held, "size": store.size or None, "open": store.config["max_bytes"]}
    return facts | {"stored_in_last_hour": stored, "refused": store.refused}


def _told(store: Store) -> str:
    stored = [(who, count) for who, count in store.stored.most_common(_MOST) if count]
    return ", ".join(f"{'somebody' if who in (ANYONE, NOBODY) else who} {size(count)}" for who, count in stored)
