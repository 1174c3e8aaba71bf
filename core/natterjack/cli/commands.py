"""The group of all commands: ours, and those that plugins bring."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from natterjack.cli.output import note
from natterjack.errors import PluginError
from natterjack.plugins import Plugins


class Commands(TyperGroup):
    """Our commands at once; plugins are loaded only for the help, and for a name that is none of ours."""

    _loaded = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Return all names, ours first."""
        self._load()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, or None; typer then names the nearest one."""
        if cmd_name not in self.commands:
            self._load()
        return super().get_command(ctx, cmd_name)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        try:
            brought: list[typer.Typer] = Plugins.load().commands
        except PluginError as error:  # must not take the help away
            note(f"warning: no plugin's commands: {error}")
            return
        for app in brought:
            command = get_command(app)
            if command.name in self.commands:
                note(f"warning: the command {command.name!r} of a plugin is ignored: Natterjack has its own")
            else:
                self.add_command(command)
