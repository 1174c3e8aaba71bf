"""`doctor`: what is well, what is not, and what to do about it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from natterjack.cli.checks import (
    Finding,
    bad,
    check_certificate,
    check_file,
    check_machine,
    check_plugins,
    check_team,
    good,
)
from natterjack.cli.exits import ExitCode
from natterjack.cli.options import TEAM_FILE, JsonOption, NatsContextOption, ServerOption, find_server, operator
from natterjack.cli.output import clean, write, write_json
from natterjack.cli.run import run
from natterjack.errors import ConfigError, NatterjackError, PluginError
from natterjack.plugins import Plugins


def doctor(
    team_file: Annotated[Path, typer.Argument(metavar="TEAM", help="The team file.")] = TEAM_FILE,
    *,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, the broker and the team on it; fails if there is a problem.

    The broker is found like everywhere: --server, --nats-context, NATS_URL, the team file, and at last the embedded
    one that runs in this folder.
    """
    findings = run(_examine(team_file, server, nats_context))
    well = all(finding.ok for finding in findings)
    if as_json:
        write_json({"ok": well, "checks": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            _show(finding)
    if not well:
        raise typer.Exit(ExitCode.FAILED)


async def _examine(team_file: Path, url: str | None, nats_context: str | None) -> list[Finding]:
    findings = [*check_machine(), *check_file(team_file)]
    try:
        plugins = Plugins.load()
    except PluginError as error:
        return [*findings, bad("plugins", str(error), "nothing runs before that is mended")]
    findings += check_plugins(plugins)
    try:
        server = find_server(url, nats_context, team_file=team_file)
        async with operator(server) as bus:
            findings.append(good("broker", f"{server} answers"))
            findings += check_certificate(bus)
            findings += [finding async for finding in check_team(bus, team_file, plugins)]
    except ConfigError as error:
        findings.append(bad("broker", f"which one is unknown: {error}"))
    except NatterjackError as error:
        findings.append(bad("broker", str(error)))
    return findings


def _show(finding: Finding) -> None:
    word = "ok     " if finding.ok else "problem"
    if sys.stdout.isatty():
        word = typer.style(word, fg="green" if finding.ok else "red")
    write(f"{word}  {finding.check:12} {clean(finding.detail)}")
    if finding.fix:
        write(f"{'':9}{'':12} do: {clean(finding.fix)}")
