"""`provision`: what running needs is created on a server, and the team stored there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from natterjack.cli.options import TEAM_FILE, JsonOption, NatsContextOption, ServerOption, find_server, operator
from natterjack.cli.output import note, write_json, write_table
from natterjack.cli.run import run
from natterjack.plugins import Plugins
from natterjack.provision import Provisioned
from natterjack.provision import provision as provision_team
from natterjack.server import Server
from natterjack.team import Team, check_team
from natterjack.team.file import read_team, team_schema

TeamArgument = Annotated[Path, typer.Argument(metavar="TEAM", help="The team file.")]


def provision(
    team_file: TeamArgument = TEAM_FILE,
    *,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Remove what is gone from the team, with all it holds."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do nothing, and show what would be done.")] = False,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create what a team needs on a server; it can be repeated."""
    team, plugins = read_team(team_file), Plugins.load()
    check_team(team, plugins)
    found = find_server(server, nats_context, team_file=team_file)
    done = run(provisioned(team, found, plugins, prune=prune, dry=dry_run))
    if as_json:
        write_json(asdict(done))
        return
    rows = [(action, what) for action, names in asdict(done).items() for what in names]
    write_table(["would be" if dry_run else "done", "what"], rows, empty="nothing to do")
    if done.left:
        gone = f"{len(done.left)} consumers and streams are gone from the team"
        note(f"note: {gone}; --prune removes them, with all they hold")


def schema() -> None:
    """Print the JSON Schema of team files, for editors that complete and check TOML."""
    write_json(team_schema())


async def provisioned(
    team: Team, server: Server, plugins: Plugins, *, prune: bool = False, dry: bool = False
) -> Provisioned:
    """Provision a team as the operator, and return what was done."""
    async with operator(server, team) as bus:
        return await provision_team(bus, team, plugins, prune=prune, dry=dry)
