"""The hooks."""

from __future__ import annotations

import typer

from natterjack import ToolServer, hookimpl
from natterjack_mcp.commands import app
from natterjack_mcp.component import MCPTools


@hookimpl
def natterjack_commands() -> list[typer.Typer]:
    """Bring `natterjack tools`."""
    return [app]


@hookimpl
def natterjack_tool_servers() -> list[type[ToolServer]]:
    """Bring tool servers of the kind `mcp`."""
    return [MCPTools]
