"""One agent in one process: `agent run`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Annotated

import typer

from natterjack.cli.child import READY
from natterjack.cli.lifeline import PARENT, Lifeline
from natterjack.cli.options import NatsContextOption, ServerOption, find_server
from natterjack.cli.output import write
from natterjack.cli.run import run, show_logs, stopping
from natterjack.context import AgentContext
from natterjack.coroutines import first_of
from natterjack.errors import UnknownAgentError
from natterjack.host import AgentHost
from natterjack.runtime import start_agent
from natterjack.server import Server
from natterjack.toolhost import ToolHost, start_tool_server

Doors = Mapping[str, Mapping[str, str]]

app = typer.Typer(no_args_is_help=True, help="Run one agent of a team.")


@app.callback()
def agent() -> None:
    """Run one agent of a team."""


@app.command("run")
def run_agent(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The agent, or tool server, as its team calls it.")],
    *,
    http: Annotated[
        str | None,
        typer.Option("--http", metavar="HOST:PORT", help="Have it asked over HTTP, too; needs natterjack-http."),
    ] = None,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
) -> None:
    """Run one agent, or tool server, of the team that is provisioned on a server, until SIGINT or SIGTERM.

    It needs no team file: a URL, a credential and the packages of its plugins will do.
    """
    show_logs()
    doors = {"http": {"listen": http}} if http else {}
    run(_serve(name, find_server(server, nats_context), doors))


async def _serve(name: str, server: Server, doors: Doors) -> None:
    with stopping() as stop, _lifeline(stop) as lifeline:
        started = await first_of(_start(name, server, doors), stop.wait())
        if not isinstance(started, tuple):
            return
        host, context = started
        drain = host.spec.drain_timeout
        if lifeline is not None:
            lifeline.drain = drain
        write(f"agent {name} {READY}")
        try:
            error = await first_of(stop.wait(), host.failed())
        finally:
            await host.stop(drain)
            await context.close()
        if isinstance(error, Exception):
            raise error


async def _start(name: str, server: Server, doors: Doors) -> tuple[AgentHost | ToolHost, AgentContext]:
    try:
        return await start_agent(name, server, doors=doors)
    except UnknownAgentError:
        if doors:  # of agents only
            raise
        return await start_tool_server(name, server), AgentContext()


@contextmanager
def _lifeline(stop: asyncio.Event) -> Iterator[Lifeline | None]:
    """Give the line to the supervisor, for a process that has one."""
    if not os.environ.get(PARENT):
        yield None
        return
    with closing(Lifeline(stop)) as lifeline:
        yield lifeline
