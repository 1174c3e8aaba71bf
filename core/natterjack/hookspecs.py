"""The whole plugin contract on one screen: each hook returns classes, and is called once.

A plugin is a distribution with one entry point in the group `natterjack`, naming a module with functions
marked `@hookimpl`. Hooks are plain functions; only the objects they bring are async.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import typer

    from natterjack.components import Agent, Guard, Journal, PeerScheme, Trigger
    from natterjack.middleware import Middleware
    from natterjack.toolserver import ToolServer

hookspec = pluggy.HookspecMarker("natterjack")
hookimpl = pluggy.HookimplMarker("natterjack")


@hookspec
def natterjack_agents() -> list[type[Agent]]:
    """Kinds of agent: `kind = "<name>"` in the team file."""
    return []


@hookspec
def natterjack_triggers() -> list[type[Trigger]]:
    """Kinds of trigger: `on = [{ <name> = … }]` in the team file."""
    return []


@hookspec
def natterjack_tool_servers() -> list[type[ToolServer]]:
    """Kinds of tool server: `kind = "<name>"` in a table `[tools.<name>]` of the team file."""
    return []


@hookspec
def natterjack_guards() -> list[type[Guard]]:
    """Guards; each installed one is asked, and a refusal wins."""
    return []


@hookspec
def natterjack_journals() -> list[type[Journal]]:
    """Kinds of journal: `journal = "<name>"` in the team file."""
    return []


@hookspec
def natterjack_peers() -> list[type[PeerScheme]]:
    """Address schemes for `cross_agents`: `<name>://…`."""
    return []


@hookspec
def natterjack_middleware() -> list[type[Middleware]]:
    """Middleware around handle, answer, emit and calls of tools; each installed one is used, in order of its name."""
    return []


@hookspec
def natterjack_commands() -> list[typer.Typer]:
    """Commands added to `natterjack`; each app has a name."""
    return []
