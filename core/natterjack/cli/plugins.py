"""Plugins: `plugins list`, `plugins new`, `plugins reference`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from natterjack.cli.exits import CommandError
from natterjack.cli.install import first_party
from natterjack.cli.options import JsonOption
from natterjack.cli.output import write, write_json, write_table
from natterjack.cli.reference import reference, updated
from natterjack.cli.scaffold import SORTS, check_plugin_name, package_files
from natterjack.plugins import LoadedPlugin, Plugins

app = typer.Typer(no_args_is_help=True, help="See which plugins are installed; write a new one.")


@app.callback()
def plugins() -> None:
    """See which plugins are installed; write a new one."""


@app.command("list")
def list_plugins(*, as_json: JsonOption = False) -> None:
    """List installed plugins, what each brings, and why one is broken."""
    found = Plugins.load()
    if as_json:
        write_json({"loaded": [asdict(one) for one in found.loaded], "broken": [asdict(one) for one in found.broken]})
        return
    rows = [(one.name, f"{one.distribution} {one.version}", _state(one), _brings(one)) for one in found.loaded]
    rows += [(one.name, f"{one.distribution} {one.version}", "broken", one.cause) for one in found.broken]
    write_table(["plugin", "package", "state", "brings, or the cause"], rows, empty="no plugins")


def _state(plugin: LoadedPlugin) -> str:
    return "deprecated" if plugin.warnings else "ok"


def _brings(plugin: LoadedPlugin) -> str:
    brought = [f"{kind}: {', '.join(names)}" for kind, names in plugin.brings.items()]
    return "; ".join([*brought, *plugin.warnings])


SortOfPlugin = StrEnum("SortOfPlugin", {name.replace("-", "_").upper(): name for name in SORTS})  # type: ignore[misc]  # the names are data


@app.command("new")
def new_plugin(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Its name, e.g. `rain-gauge`; the package is natterjack-NAME.")],
    *,
    kind: Annotated[SortOfPlugin, typer.Option("--kind", "-k", help="What it brings.")],
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="DIR", help="Where; a new folder natterjack-NAME by default.")
    ] = None,
) -> None:
    """Write an installable plugin: package, tests by the contract of its kind, README, example."""
    short, sort = check_plugin_name(name), SORTS[kind.value]
    own = ctx.find_root().command
    if kind.value == "command" and isinstance(own, TyperGroup) and short in own.commands:
        msg = f"Natterjack has a command {short!r} of its own; choose another name"
        raise CommandError(msg)
    _check_free(short, kind.value)
    folder = folder or Path(f"natterjack-{short.replace('_', '-')}")
    files = package_files(short, kind.value)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{str(folder)!r} is there already, and nothing was written; name another with --dir"
        raise CommandError(msg)
    try:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"{str(folder)!r} cannot be written: {error}"
        raise CommandError(msg) from error
    write(f"wrote {folder}: {sort.does[0].lower()}{sort.does[1:]}\n")
    for path in files:
        write(f"  {path}")
    write("\nNext:")
    for line in _next_commands(folder, files, short):
        write(f"  {line}")


def _check_free(name: str, kind: str) -> None:
    """Raise if an installed plugin has this name: only one of the two could be loaded."""
    if name in first_party():
        msg = f"{first_party()[name]} is a plugin of Natterjack's own; choose another name"
        raise CommandError(msg)
    for plugin in Plugins.load().loaded:
        if plugin.name == name or name in plugin.brings.get(SORTS[kind].kind, ()):
            what = f"{plugin.distribution} {plugin.version}, which is installed"
            msg = f"{what}, has the name {name!r} already; choose another"
            raise CommandError(msg)


def _next_commands(folder: Path, files: dict[str, str], name: str) -> list[str]:
    team = "example/team.toml" in files
    return [
        f"cd {shlex.quote(str(folder))}",
        "natterjack install -e . pytest pytest-asyncio",
        "pytest",
        "natterjack up example/team.toml" if team else f"natterjack plugins list    # shows {name}",
    ]


@app.command("reference")
def show_reference(
    *,
    into: Annotated[
        Path | None, typer.Option("--into", metavar="FILE", help="Write it between the markers of this file.")
    ] = None,
) -> None:
    """Print all hooks and what plugins implement and are given, with their arguments, as Markdown."""
    if into is None:
        write(reference().rstrip())
        return
    try:
        into.write_text(updated(into.read_text(encoding="utf-8")), encoding="utf-8")
    except (OSError, ValueError) as error:
        msg = f"{str(into)!r} cannot be written: {error}"
        raise CommandError(msg) from error
