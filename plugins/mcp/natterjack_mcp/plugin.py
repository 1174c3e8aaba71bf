"""The hooks."""

from __future__ import annotations

import typer

from natterjack import hookimpl
from natterjack_mcp.commands import app, audit


@hookimpl
def natterjack_commands() -> list[typer.Typer]:
    """Bring `natterjack tools` and `natterjack audit`."""
    return [app, audit]
