"""What the package brings: the guard, and the commands `secure`, `explain`, `credentials` and `callout`."""

from __future__ import annotations

import typer

from natterjack import Guard, hookimpl
from natterjack_permissions.guard import PermissionGuard


@hookimpl
def natterjack_guards() -> list[type[Guard]]:
    """Bring the guard."""
    return [PermissionGuard]


@hookimpl
def natterjack_commands() -> list[typer.Typer]:
    """Bring `secure`, `explain`, `credentials` and `callout`."""
    from natterjack_permissions import callout, credentials, explain, secure  # lazy: only the command line needs them

    return [secure.app, explain.app, credentials.app, callout.app]
