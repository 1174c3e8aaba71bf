"""A team itself as tools: its agents, its events and its context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Final

from natterjack import NatterjackError, TeamClient
from natterjack_mcp.context import ToolContext
from natterjack_mcp.errors import ToolError
from natterjack_mcp.guards import HasScope
from natterjack_mcp.server import MCPServer

SCOPES: Final = {"ask_peer": "ask", "emit": "emit", "get_context": "read", "context_keys": "read"}
"""What a token must say, by the tool that it lets call."""
MAX_KEYS: Final = 1000
_NOTHING: Final = object()


class TeamTools:
    """Tools that act in a team.

    Args:
        team: The team.
    """

    def __init__(self, team: TeamClient) -> None:
        self._team = team

    def give(self, server: MCPServer) -> None:
        """Have a server serve them; where it knows its callers, only to those whose token has the scope."""
        known = server.auth is not None
        for name, scope in SCOPES.items():
            guards = [HasScope(scope)] if known else []
            server.tool(guards=guards, public=not known)(getattr(self, name))

    async def ask_peer(self, agent: str, question: str, ctx: ToolContext, timeout: float = 60.0) -> str:
        """Ask an agent of the team a question, and return its answer; `timeout` is in seconds."""
        with _told():
            return str(await self._team.ask_peer(agent, question, timeout=timeout, asker=ctx.caller.name))

    async def emit(self, type: str, ctx: ToolContext, data: Any = None) -> int:
        """Tell the team that something happened, e.g. of the type `research.wanted`; return the event's number."""
        with _told():
            sequence = await self._team.event_bus.emit(type, data)
        ctx.log.info("%s emitted %r, event %d", ctx.caller, type, sequence)
        return sequence

    async def get_context(self, key: str) -> dict[str, Any]:
        """Return what the team's shared context has at a key."""
        value = self._team.context.get(key, _NOTHING)
        if value is _NOTHING:
            near = get_close_matches(key, self._team.context.keys(), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`context_keys` lists the keys that are there"
            msg = f"the shared context has no key {key!r}; {hint}"
            raise ToolError(msg)
        return {"key": key, "value": value}

    async def context_keys(self, pattern: str = ">") -> list[str]:
        """List the keys of the team's shared context that match a pattern, e.g. `findings.*`; `>` is all."""
        with _told():
            found = self._team.context.keys(pattern)
        if len(found) > MAX_KEYS:
            msg = f"{len(found)} keys match {pattern!r}, more than {MAX_KEYS}; give a narrower pattern"
            raise ToolError(msg)
        return found


@contextmanager
def _told() -> Iterator[None]:
    """Have the caller read what is wrong."""
    try:
        yield
    except NatterjackError as error:
        raise ToolError(str(error)) from error
