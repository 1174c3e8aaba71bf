"""What the package brings: the guard, and the command `secure`."""

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
    """Bring `secure`."""
    from natterjack_permissions.secure import app  # lazy: only the command line needs it

    return [app]
