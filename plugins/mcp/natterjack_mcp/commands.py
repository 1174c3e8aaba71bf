"""The command `natterjack tools`."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from natterjack import ConfigError
from natterjack_mcp.audit import verify
from natterjack_mcp.auth import JWTAuth
from natterjack_mcp.looking import Url, call_tool, inspect_tool, list_tools
from natterjack_mcp.server import MCPServer

log = logging.getLogger("natterjack.tools")

KEY: Final = "NATTERJACK_TOKEN_KEY"
"""Environment variable with the key of tokens."""

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


@app.command()
def gateway(
    *,
    http: Annotated[str, typer.Option("--http", metavar="HOST:PORT", help="Where; path /mcp.")],
    server: Url = None,
    jwks: Annotated[str | None, typer.Option("--jwks", metavar="URL", help="Of the JWK set of others' tokens.")] = None,
    public_key: Annotated[
        Path | None, typer.Option("--public-key", metavar="FILE", help="PEM: the key of others' tokens.")
    ] = None,
    audience: Annotated[
        str | None, typer.Option("--audience", metavar="NAME", help="Whom tokens are for (`aud`).")
    ] = None,
    issuer: Annotated[str | None, typer.Option("--issuer", metavar="NAME", help="Who made them (`iss`).")] = None,
) -> None:
    """Serve all tool servers of the team as one, and its agents, events and context as tools, to any MCP client.

    Callers show a token of the key in NATTERJACK_TOKEN_KEY; without one, only this machine's programs may call.
    """
    import anyio

    from natterjack_mcp.gateway import serve_gateway
    from natterjack_mcp.http import Address

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    auth = _auth(jwks, public_key, audience=audience, issuer=issuer)
    anyio.run(serve_gateway, Address.read(http), auth, server, backend_options={"use_uvloop": sys.platform != "win32"})


def _auth(jwks: str | None, public_key: Path | None, **claims: Any) -> JWTAuth | None:
    """Return what knows callers, after a word on how they show who they are."""
    if jwks and public_key:
        msg = "--jwks and --public-key are both given; one of them says how tokens are verified"
        raise ConfigError(msg)
    if jwks:
        return JWTAuth(jwks=jwks, **claims)
    if public_key:
        return JWTAuth.of(f"file:{public_key}", **claims)
    if os.environ.get(KEY):
        more = "".join(f" --{name} {value}" for name, value in claims.items() if value)
        log.info(
            "callers show a token; `natterjack token mint NAME --scope ask --scope emit --scope read%s` makes one", more
        )
        return JWTAuth.of(f"env:{KEY}", **claims)
    if any(claims.values()):
        msg = f"tokens are wanted, and there is no key to verify them: set {KEY}, or give --jwks or --public-key"
        raise ConfigError(msg)
    log.warning("callers show no token, and any program of this machine may call; set %s to know them", KEY)
    return None


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


@app.command("verify")
def verify_audit(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of an AuditMiddleware.", exists=True)],
) -> None:
    """Find records of calls that were changed, or are missing between others; exit code 1 if there are any."""
    found = list(verify(folder))
    for each in found:
        state = each.problem or ("good, the last line is cut off" if each.torn else "good")
        typer.echo(f"{each.path.name}  {each.records} records  {state}")
    if not found:
        typer.echo(f"no audit is in {folder}", err=True)
    if any(each.problem for each in found):
        raise typer.Exit(1)
