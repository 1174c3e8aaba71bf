"""A team itself as tools: its agents, its events and its context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Final

from natterjack import Admission, BrokerError, NatterjackError, RefusedError, TeamClient, Verb
from natterjack_mcp.caller import name_of
from natterjack_mcp.context import ToolContext
from natterjack_mcp.errors import ToolError, ToolRefusedError, ToolUnavailableError
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
        admission: Knows what it lets callers do.
    """

    def __init__(self, team: TeamClient, admission: Admission) -> None:
        self._team, self._admission = team, admission

    def give(self, server: MCPServer) -> None:
        """Have a server serve them; where it knows its callers, only to those whose token has the scope."""
        known = server.auth is not None
        for name, scope in SCOPES.items():
            guards = [HasScope(scope)] if known else []
            server.tool(guards=guards, public=not known)(getattr(self, name))

    async def ask_peer(self, agent: str, question: str, ctx: ToolContext, timeout: float = 60.0) -> str:
        """Ask an agent of the team a question, and return its answer; `timeout` is in seconds."""
        await self._check(ctx, "ask", agent)
        with _told():
            return str(await self._team.ask_peer(agent, question, timeout=timeout, asker=ctx.caller.name))

    async def emit(self, type: str, ctx: ToolContext, data: Any = None) -> int:
        """Tell the team that something happened, e.g. of the type `research.wanted`; return the event's number."""
        await self._check(ctx, "emit", type)
        with _told():
            sequence = await self._team.event_bus.emit(type, data)
        ctx.log.info("%s emitted %r, event %d", ctx.caller, type, sequence)
        return sequence

    async def get_context(self, key: str, ctx: ToolContext) -> dict[str, Any]:
        """Return what the team's shared context has at a key."""
        await self._check(ctx, "read", key)
        value = self._team.context.get(key, _NOTHING)
        if value is _NOTHING:
            near = get_close_matches(key, await self._readable(ctx, ">"), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "`context_keys` lists the keys that are there"
            msg = f"the shared context has no key {key!r}; {hint}"
            raise ToolError(msg)
        return {"key": key, "value": value}

    async def context_keys(self, ctx: ToolContext, pattern: str = ">") -> list[str]:
        """List the keys of the team's shared context that match a pattern, e.g. `findings.*`; `>` is all."""
        found = await self._readable(ctx, pattern)
        if len(found) > MAX_KEYS:
            msg = f"{len(found)} keys match {pattern!r}, more than {MAX_KEYS}; give a narrower pattern"
            raise ToolError(msg)
        return found

    async def _readable(self, ctx: ToolContext, pattern: str) -> list[str]:
        with _told():
            return await self._admission.allowed(name_of(ctx.caller), "read", self._team.context.keys(pattern))

    async def _check(self, ctx: ToolContext, verb: Verb, what: str) -> None:
        """Return if the team lets the caller do that; the gateway itself may all.

        Raises:
            ToolRefusedError: It does not.
            ToolUnavailableError: Nobody can tell, because the team cannot be read.
        """
        try:
            await self._admission.check(name_of(ctx.caller), verb, what)
        except RefusedError as error:
            raise ToolRefusedError(str(error), {"guard": "team"}) from error
        except BrokerError as error:
            raise ToolUnavailableError(str(error)) from error


@contextmanager
def _told() -> Iterator[None]:
    """Have the caller read what is wrong."""
    try:
        yield
    except NatterjackError as error:
        raise ToolError(str(error)) from error
