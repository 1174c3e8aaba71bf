"""`natterjack`: all commands in one place, and what becomes of their errors."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final, NoReturn

import typer

from natterjack.cli import (
    agent,
    agents,
    approvals,
    asyncapi,
    audit,
    bench,
    broker,
    context,
    dead,
    demo,
    doctor,
    events,
    graph,
    init,
    install,
    journal,
    peers,
    plugins,
    provision,
    runs,
    storage,
    token,
    up,
)
from natterjack.cli.commands import Commands
from natterjack.cli.exits import MEANINGS, ExitCode, exit_code
from natterjack.cli.options import AS
from natterjack.cli.output import clean, note, write
from natterjack.errors import NatterjackError

DEBUG: Final = "NATTERJACK_DEBUG"
"""Environment variable: show the traceback of an error."""

_BUILD, _SERVE, _TALK, _LOOK = "Begin", "Run", "Talk to a team", "Look into it"

app = typer.Typer(
    name="natterjack",
    cls=Commands,
    epilog=MEANINGS,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` tells errors in one line
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # lazy: no other command needs it

        write(f"natterjack {version('natterjack')}")
        raise typer.Exit


@app.callback()
def natterjack(
    *,
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks; also by {DEBUG}=1.")] = False,
    user: Annotated[
        str | None, typer.Option("--as", metavar="USER", help=f"Act as this user of the team; also by {AS}=USER.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Teams of agents that coordinate over NATS."""
    del version
    if debug:
        os.environ[DEBUG] = "1"  # for the processes of `up`, too
    if user:
        os.environ[AS] = user


app.command(rich_help_panel=_BUILD)(demo.demo)
app.command(rich_help_panel=_BUILD)(init.init)
app.command(rich_help_panel=_BUILD)(doctor.doctor)
app.command(rich_help_panel=_BUILD)(provision.schema)
app.command(rich_help_panel=_BUILD)(bench.bench)
app.add_typer(plugins.app, name="plugins", rich_help_panel=_BUILD)
app.command(rich_help_panel=_BUILD)(install.install)
app.command(rich_help_panel=_BUILD)(install.uninstall)

app.command(rich_help_panel=_SERVE)(up.up)
app.command(rich_help_panel=_SERVE)(provision.provision)
app.add_typer(agent.app, name="agent", rich_help_panel=_SERVE)
app.add_typer(broker.app, name="broker", rich_help_panel=_SERVE)
app.add_typer(token.app, name="token", rich_help_panel=_SERVE)

app.command(rich_help_panel=_TALK)(events.emit)
app.command(rich_help_panel=_TALK)(events.publish)
app.command(rich_help_panel=_TALK)(peers.ask)
app.command(rich_help_panel=_TALK)(peers.broadcast)

app.command(rich_help_panel=_LOOK)(graph.graph)
app.command(rich_help_panel=_LOOK)(asyncapi.asyncapi)
app.command(rich_help_panel=_LOOK)(agents.agents)
app.add_typer(events.app, name="events", rich_help_panel=_LOOK)
app.add_typer(context.app, name="context", rich_help_panel=_LOOK)
app.add_typer(runs.app, name="runs", rich_help_panel=_LOOK)
app.add_typer(approvals.app, name="approvals", rich_help_panel=_LOOK)
app.add_typer(journal.app, name="journal", rich_help_panel=_LOOK)
app.add_typer(dead.app, name="dead", rich_help_panel=_LOOK)
app.command(rich_help_panel=_LOOK)(storage.storage)
app.add_typer(audit.app, name="audit", rich_help_panel=_LOOK)


def main() -> NoReturn:
    """Run the command line; every error is a line on standard error, without a traceback, and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # an ASCII terminal is no error
    try:
        app(prog_name="natterjack")  # also by `python -m`
    except NatterjackError as error:
        _tell(str(error), error)
        sys.exit(exit_code(error))
    except Exception as error:
        _tell(f"unexpected {type(error).__name__}: {error}; {DEBUG}=1 shows where, and please report it", error)
        sys.exit(ExitCode.FAILED)
    sys.exit(ExitCode.OK)


def _tell(text: str, error: Exception) -> None:
    if os.environ.get(DEBUG):
        import traceback  # lazy: rarely needed

        traceback.print_exception(error)
    for line in clean(text).splitlines() or [""]:
        note(line if line.startswith(" ") else f"error: {line}")
