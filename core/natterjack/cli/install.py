"""`install` and `uninstall`: plugins, in whatever environment this is."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points, requires
from pathlib import Path
from typing import Annotated

import typer

from natterjack.cli.exits import CommandError, ExitCode
from natterjack.cli.installers import Change, canonical, command
from natterjack.cli.output import note, write
from natterjack.errors import nearest
from natterjack.plugins import GROUP

DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the command and do nothing.")]


def install(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="A plugin, e.g. `permissions`; a distribution, path or URL."),
    ] = None,
    *,
    editable: Annotated[
        list[str] | None, typer.Option("--editable", "-e", metavar="DIR", help="A plugin that you work on.")
    ] = None,
    no_deps: Annotated[
        bool, typer.Option("--no-deps", help="Install nothing that they depend on, e.g. beside weights of a model.")
    ] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Install plugins with pip, uv, pipx or `uv tool`, whichever manages this environment."""
    if not names and not editable:
        msg = "name what to install, e.g. `natterjack install permissions`, or `-e DIR` for a plugin that you work on"
        raise CommandError(msg, ExitCode.USAGE)
    known = first_party()
    change = Change([known.get(name, name) for name in names or ()], editable or (), alone=no_deps)
    _run(change, dry_run=dry_run)
    if not dry_run:
        _tell_of_sync(change)
        subprocess.run([sys.executable, "-m", "natterjack", "plugins", "list"], check=False)


def uninstall(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="A plugin, or its distribution.")],
    *,
    dry_run: DryRunOption = False,
) -> None:
    """Uninstall plugins."""
    installed = _installed()
    _run(Change([_installed_distribution(name, installed) for name in names], remove=True), dry_run=dry_run)


def first_party() -> dict[str, str]:
    """Return the distributions of Natterjack's own plugins by their short names."""
    named = [canonical(line) for line in requires("natterjack") or () if "extra ==" in line.replace("'", '"')]
    return {name.removeprefix("natterjack-"): name for name in named if name.startswith("natterjack-")}


def _installed() -> dict[str, str]:
    """Return the distributions of all installed plugins, by the plugin's name and by their own."""
    found: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        if point.dist is not None:
            found[point.name] = found[canonical(point.dist.name)] = point.dist.name
    return found


def _installed_distribution(name: str, installed: dict[str, str]) -> str:
    found = installed.get(name) or installed.get(canonical(name))
    if canonical(name) == "natterjack":
        msg = "natterjack is what runs the plugins, and no plugin; uninstall it with what installed it, e.g. pip"
        raise CommandError(msg, ExitCode.USAGE)
    if found is None:
        msg = f"no plugin {name!r} is installed.{nearest(name, installed)} `natterjack plugins list` shows what is."
        raise CommandError(msg, ExitCode.UNKNOWN)
    return found


def _run(change: Change, *, dry_run: bool) -> None:
    words = command(change, Path(sys.prefix))
    write(f"$ {shlex.join(words)}")
    if dry_run:
        return
    code = subprocess.run(words, check=False).returncode  # noqa: S603 - what was printed
    if code:
        msg = f"`{Path(words[0]).name}` ended with exit code {code}; what it says stands above"
        raise CommandError(msg)


def _tell_of_sync(change: Change) -> None:
    """A project of uv is made anew from its pyproject.toml, without what was only installed."""
    prefix = Path(sys.prefix)
    if prefix.name == ".venv" and (prefix.parent / "uv.lock").exists():
        what = shlex.join([*change.names, *_editable(change.editable)])
        keep = "" if change.alone else f"; `uv add {what}` keeps it"
        note(f"note: `uv sync` removes what pyproject.toml does not name{keep}")


def _editable(folders: Iterable[str]) -> Iterable[str]:
    return (word for folder in folders for word in ("--editable", folder))
