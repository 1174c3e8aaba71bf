"""One agent in one process: `agent run`."""

from __future__ import annotations

import os
from typing import Annotated, Final

import typer

from natterjack.cli.options import NatsContextOption, ServerOption, find_server
from natterjack.cli.output import write
from natterjack.cli.run import first_of, run, show_logs, stop_with_parent, stopping
from natterjack.cli.supervisor import PARENT, READY
from natterjack.runtime import start_agent
from natterjack.server import Server

app = typer.Typer(no_args_is_help=True, help="Run one agent of a team.")

DRAIN_TIMEOUT: Final = 10.0
"""Seconds that running work has to end after the first signal."""


@app.callback()
def agent() -> None:
    """Run one agent of a team."""


@app.command("run")
def run_agent(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The agent, as its team calls it.")],
    *,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
) -> None:
    """Run one agent of the team that is provisioned on a server, until SIGINT or SIGTERM.

    It needs no team file: a URL, a credential and the packages of its plugins will do.
    """
    show_logs()
    run(_serve(name, find_server(server, nats_context)))


async def _serve(name: str, server: Server) -> None:
    with stopping() as stop:
        if os.environ.get(PARENT):
            stop_with_parent(stop)
        started = await first_of(start_agent(name, server), stop.wait())
        if not isinstance(started, tuple):
            return
        host, context = started
        write(f"agent {name} {READY}")
        try:
            error = await first_of(stop.wait(), host.failed())
        finally:
            await host.stop(DRAIN_TIMEOUT)
            await context.close()
        if isinstance(error, Exception):
            raise error
