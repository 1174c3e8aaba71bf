"""The commands `natterjack tools list`, `call` and `inspect`: what serves the team, and a call by hand."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from typing import Annotated, Any, Final

import orjson
import typer

from natterjack import Bus, ConfigError, Envelope, TeamClient, connect
from natterjack_mcp.client import NatsTools
from natterjack_mcp.errors import CallError
from natterjack_mcp.kind import TOKEN

INFO = "$SRV.INFO"
"""Where every micro service says what it is (ADR-32)."""
WINDOW = 0.3
"""Seconds in which they answer."""
OPERATOR: Final = "operator"
"""As whom programs act by default."""

Url = Annotated[str | None, typer.Option("--server", metavar="URL", help="NATS server; NATS_URL by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
As = Annotated[str, typer.Option("--as", metavar="NAME", help="As which agent; by default as the operator.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds.")]


def list_tools(*, server: Url = None, agent: As = OPERATOR, as_json: Json = False) -> None:
    """List the tool servers of the team that run, how often each, and the tools that may be called."""
    rows = asyncio.run(_servers(server, agent))
    if as_json:
        typer.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    if not rows:
        typer.echo(
            "no tool server runs; start one with `natterjack up`, or `natterjack tools serve … --nats`", err=True
        )
    for row in rows:
        typer.echo(f"{row['server']}  {row['replicas']} replicas  {row['problem'] or ', '.join(row['tools'])}")


async def running(bus: Bus, window: float = WINDOW) -> Counter[str]:
    """Return how many replicas of each tool server answer within `window` seconds."""
    told = [json.loads(each.data) for each in await bus.gather(INFO, window=window)]
    return Counter(each["name"] for each in told if each.get("metadata", {}).get("natterjack") == "tools")


async def _servers(url: str | None, agent: str) -> list[dict[str, Any]]:
    async with connect(url, name=agent, context=False) as team:
        mine = sorted((await running(team.bus)).items())
        return [{"server": name, "replicas": count, **await _tools(team, name)} for name, count in mine]


async def _tools(team: TeamClient, name: str) -> dict[str, Any]:
    try:
        found = await _client(team, name).list(timeout=5.0)
    except CallError as error:
        return {"tools": [], "problem": str(error)}
    return {"tools": [each.tool for each in found], "problem": ""}


def call_tool(
    tool: Annotated[str, typer.Argument(metavar="SERVER.TOOL")],
    arguments: Annotated[str, typer.Argument(metavar="JSON", help='Its arguments, e.g. {"query": "toads"}.')] = "{}",
    *,
    server: Url = None,
    agent: As = OPERATOR,
    timeout: Timeout = 60.0,
) -> None:
    """Call a tool of the team, and print its result; the token in NATTERJACK_TOKEN is shown."""
    name, tool_name = _split(tool)
    try:
        given = json.loads(arguments)
    except ValueError as error:
        msg = f"the arguments are no JSON: {error}"
        raise ConfigError(msg) from error
    if not isinstance(given, dict):
        msg = f'the arguments are {given!r}; write an object, e.g. {{"query": "toads"}}'
        raise ConfigError(msg)

    async def call() -> Any:
        async with connect(server, name=agent, context=False) as team:
            return await _client(team, name).call(tool_name, given, timeout=timeout, envelope=Envelope())

    result = asyncio.run(call())
    typer.echo(result if isinstance(result, str) else orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())


def inspect_tool(
    tool: Annotated[str, typer.Argument(metavar="SERVER[.TOOL]")],
    *,
    server: Url = None,
    agent: As = OPERATOR,
    timeout: Timeout = 10.0,
) -> None:
    """Show what a server's tools do, and which arguments they take, as JSON."""
    name, dot, wanted = tool.partition(".")

    async def find() -> Any:
        async with connect(server, name=agent, context=False) as team:
            return await _client(team, name).list(timeout=timeout)

    found = [each for each in asyncio.run(find()) if not dot or each.tool == wanted]
    if dot and not found:
        msg = f"{name!r} has no tool {wanted!r} that may be called; `natterjack tools inspect {name}` shows all"
        raise ConfigError(msg)
    told = [{"tool": each.tool, "description": each.description, "arguments": each.schema} for each in found]
    typer.echo(orjson.dumps(told[0] if dot else told, option=orjson.OPT_INDENT_2).decode())


def _client(team: TeamClient, name: str) -> NatsTools:
    return NatsTools(name, team.bus, os.environ.get(TOKEN))


def _split(tool: str) -> tuple[str, str]:
    server, _, name = tool.partition(".")
    if not name:
        msg = f"{tool!r} is no address of a tool; write SERVER.TOOL, e.g. team-tools.web_search"
        raise ConfigError(msg)
    return server, name
