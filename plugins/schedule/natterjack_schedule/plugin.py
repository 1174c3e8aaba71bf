"""The hooks."""

from __future__ import annotations

import typer

from natterjack import Trigger, hookimpl
from natterjack_schedule.commands import app
from natterjack_schedule.triggers import AtTrigger, CronTrigger, EveryTrigger


@hookimpl
def natterjack_triggers() -> list[type[Trigger]]:
    """Bring the triggers."""
    return [AtTrigger, CronTrigger, EveryTrigger]


@hookimpl
def natterjack_commands() -> list[typer.Typer]:
    """Bring `natterjack schedule`."""
    return [app]
