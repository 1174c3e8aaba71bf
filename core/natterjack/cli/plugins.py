"""Plugins: `plugins list`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from natterjack.cli.options import JsonOption
from natterjack.cli.output import write_json, write_table
from natterjack.plugins import LoadedPlugin, Plugins

app = typer.Typer(no_args_is_help=True, help="See which plugins are installed.")


@app.callback()
def plugins() -> None:
    """See which plugins are installed."""


@app.command("list")
def list_plugins(*, as_json: JsonOption = False) -> None:
    """List installed plugins, what each brings, and why one is broken."""
    found = Plugins.load()
    if as_json:
        write_json({"loaded": [asdict(one) for one in found.loaded], "broken": [asdict(one) for one in found.broken]})
        return
    rows = [(one.name, f"{one.distribution} {one.version}", "ok", _brings(one)) for one in found.loaded]
    rows += [(one.name, f"{one.distribution} {one.version}", "broken", one.cause) for one in found.broken]
    write_table(["plugin", "package", "state", "brings, or the cause"], rows, empty="no plugins")


def _brings(plugin: LoadedPlugin) -> str:
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in plugin.brings.items())
