"""Middleware: what stands around each call of a tool, whatever transport it came by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from natterjack import Admission, Bus
from natterjack_mcp.auth import Auth, TeamAuth
from natterjack_mcp.context import ToolContext
from natterjack_mcp.errors import UnauthenticatedError

Result = dict[str, Any]
"""Of a tool, as on the wire: `content`, `structuredContent`, `isError`."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool.

    Attributes:
        tool: Its name.
        arguments: As the caller gave them.
        ctx: As the tool will have it.
    """

    tool: str
    arguments: Mapping[str, Any]
    ctx: ToolContext


Proceed = Callable[[Call], Awaitable[Result]]
Middleware = Callable[[Call, Proceed], Awaitable[Result]]
"""Awaits `proceed(call)`, or raises a `CallError`; it sees refusals of what is within as errors, too."""


class AuthMiddleware:
    """Lets only those call whom the server knows; and without guards, lets nobody.

    Args:
        auth: Knows them.
    """

    def __init__(self, auth: Auth) -> None:
        self.auth = self._own = auth

    def share(self, bus: Bus, server: str) -> None:
        """Know nobody any more whom the team has revoked, whichever way it comes."""
        self.auth = TeamAuth(self._own, Admission(bus))

    async def __call__(self, call: Call, proceed: Proceed) -> Result:
        """Stand around one call.

        Raises:
            UnauthenticatedError: Nobody knows who calls.
        """
        if not call.ctx.caller.known:
            msg = f"the tool {call.tool!r} is only for callers that are known; {self.auth.asks_for}"
            raise UnauthenticatedError(msg)
        return await proceed(call)
