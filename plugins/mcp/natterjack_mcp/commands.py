"""The commands `natterjack tools` and `natterjack audit`."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from natterjack import ConfigError
from natterjack_mcp.audit import verify
from natterjack_mcp.looking import call_tool, inspect_tool, list_tools
from natterjack_mcp.server import MCPServer

app = typer.Typer(name="tools", no_args_is_help=True, help="Serve tools to agents (MCP), and call them.")


@app.callback()
def tools() -> None:
    """Serve tools to agents (MCP), and call them."""


@app.command()
def serve(
    target: Annotated[str, typer.Argument(metavar="MODULE:SERVER", help="An MCPServer in a module of this folder.")],
    *,
    http: Annotated[str | None, typer.Option("--http", metavar="HOST:PORT", help="Serve over HTTP; path /mcp.")] = None,
    stdio: Annotated[bool, typer.Option("--stdio", help="Serve the program that starts this one.")] = False,
    nats: Annotated[bool, typer.Option("--nats", help="Serve the team on the server of NATS_URL.")] = False,
    name: Annotated[
        str | None, typer.Option("--name", help="What it is called there; its own name by default.")
    ] = None,
) -> None:
    """Serve a tool server in one way or several, until it is stopped. Started twice over NATS, both share the work."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    load(target).run(stdio=stdio, http=http, nats=nats, name=name)


app.command("list")(list_tools)
app.command("call")(call_tool)
app.command("inspect")(inspect_tool)


def load(target: str) -> MCPServer:
    """Return the server that `module:name` is.

    Raises:
        ConfigError: It is none.
    """
    module_name, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        msg = f"{module_name!r} cannot be imported from here: {error}"
        raise ConfigError(msg) from error
    found = getattr(module, name or "server", None)
    if isinstance(found, MCPServer):
        return found
    servers = [each for each, value in vars(module).items() if isinstance(value, MCPServer)]
    near = get_close_matches(name, servers, n=1) or servers
    hint = f"; did you mean '{module_name}:{near[0]}'?" if near else f"; {module_name} has no server at all"
    msg = f"{target!r} is no MCPServer{hint}"
    raise ConfigError(msg)


audit = typer.Typer(name="audit", no_args_is_help=True, help="Look after what tool servers write down.")


@audit.callback()
def look_after() -> None:
    """Look after what tool servers write down."""


@audit.command("verify")
def verify_audit(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of an AuditMiddleware.", exists=True)],
) -> None:
    """Find records that were changed, or are missing between others; exit code 1 if there are any."""
    found = list(verify(folder))
    for each in found:
        state = each.problem or ("good, the last line is cut off" if each.torn else "good")
        typer.echo(f"{each.path.name}  {each.records} records  {state}")
    if not found:
        typer.echo(f"no audit is in {folder}", err=True)
    if any(each.problem for each in found):
        raise typer.Exit(1)
