"""The gate: the one place through which each request of each transport goes, to the middleware and the guards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import orjson
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

from natterjack import ConfigError
from natterjack_mcp.approval import approval_needed
from natterjack_mcp.auth import Auth
from natterjack_mcp.caller import Caller, who_calls
from natterjack_mcp.context import ToolContext, current, working
from natterjack_mcp.errors import CallError, TooLargeError, ToolError, ToolRefusedError, UnauthenticatedError
from natterjack_mcp.functions import wire_error
from natterjack_mcp.guards import Check, refusing, told
from natterjack_mcp.middleware import AuthMiddleware, Call, Middleware, Proceed, Result

Kind = Literal["tool", "resource", "prompt"]

MAX_ARGUMENTS: Final = 4 * 1024**2
"""Bytes of a call's arguments, as JSON; transports have limits of their own, but for pipes."""
_TARGETS: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
_LISTS: Final[Mapping[str, tuple[Kind, str, str]]] = {
    "tools/list": ("tool", "tools", "name"),
    "prompts/list": ("prompt", "prompts", "name"),
    "resources/list": ("resource", "resources", "uri"),
    "resources/templates/list": ("resource", "resourceTemplates", "uriTemplate"),
}


@dataclass(frozen=True, slots=True)
class _Door:
    guards: Sequence[Check]
    public: bool
    approval: bool


class Gate:
    """Middleware of the SDK.

    Attributes:
        middleware: Of calls, outermost first.
    """

    def __init__(self, server: str) -> None:
        self.middleware: tuple[Middleware, ...] = ()
        self._server = server
        self._doors: dict[tuple[Kind, str], _Door] = {}

    def add(self, kind: Kind, name: str, guards: Sequence[Check], *, public: bool, approval: bool = False) -> None:
        """Guard something; with `approval`, a human must allow each call.

        Raises:
            ConfigError: There is one of that name, or what should guard it are no guards.
        """
        if (kind, name) in self._doors:
            msg = f"{self._server} has a {kind} {name!r} already; give one of them another name"
            raise ConfigError(msg)
        given: Sequence[object] = guards
        if wrong := [each for each in given if isinstance(each, type) or not callable(each)]:
            msg = f"{wrong[0]!r} guards no {kind}; a guard is called with the context, e.g. HasRole('writer')"
            raise ConfigError(msg)
        self._doors[kind, name] = _Door(tuple(guards), public, approval)

    def remove(self, kind: Kind, name: str) -> None:
        """Forget it.

        Raises:
            ConfigError: It is not there.
        """
        if self._doors.pop((kind, name), None) is None:
            msg = f"{self._server} has no {kind} {name!r}"
            raise ConfigError(msg)

    def names(self, kind: Kind) -> frozenset[str]:
        """Return what it guards of a kind."""
        return frozenset(name for each, name in self._doors if each == kind)

    @property
    def auth(self) -> Auth | None:
        """What knows callers, if anything does."""
        return next((each.auth for each in self.middleware if isinstance(each, AuthMiddleware)), None)

    @property
    def approves(self) -> frozenset[str]:
        """The tools each call of which a human must allow."""
        return frozenset(name for (_, name), door in self._doors.items() if door.approval)

    async def check(self, kind: Kind, name: str) -> None:
        """Let the caller of the current request pass.

        Raises:
            UnauthenticatedError: Nobody knows who it is, and the server wants to know.
            ToolRefusedError: A guard refuses it.
        """
        ctx = current()
        if self.auth is not None and not ctx.caller.known:
            msg = f"the {kind} {name!r} of {self._server} is only for callers that are known; {self.auth.asks_for}"
            raise UnauthenticatedError(msg)
        if guard := await self._refusing(kind, name, ctx):
            msg = f"{ctx.caller} may not use the {kind} {name!r} of {self._server}: {guard} refuses"
            raise ToolRefusedError(msg, {"guard": guard})

    async def _refusing(self, kind: Kind, name: str, ctx: ToolContext) -> str | None:
        door = self._doors.get((kind, name))
        if door is None:
            return None  # there is none of that name, which the SDK tells
        if self.auth is not None and not ctx.caller.known:
            return "a server that knows its callers"
        if not door.guards:
            return None if door.public or self.auth is None else "a server that knows its callers and finds no guard"
        found = await refusing(door.guards, ctx)
        return None if found is None else told(found)

    # As the SDK calls it

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """Stand around one message."""
        if ctx.request_id is None:
            return await call_next(ctx)
        target = (ctx.params or {}).get(_TARGETS.get(ctx.method, ""), "")
        tool_context = ToolContext(self._server, ctx.method, str(target), who_calls(), ctx.session.report_progress)
        with working(tool_context):
            try:
                if ctx.method == "tools/call":
                    return await self._call(tool_context, ctx, call_next)
                result = await call_next(ctx)
                return await self._listed(ctx.method, result, tool_context) if ctx.method in _LISTS else result
            except CallError as error:
                raise wire_error(error) from error

    async def _call(
        self, tool_context: ToolContext, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        given = (ctx.params or {}).get("arguments")
        arguments: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        if (size := len(orjson.dumps(arguments))) > MAX_ARGUMENTS:
            msg = (
                f"the arguments have {size:,} bytes of at most {MAX_ARGUMENTS:,}; send a reference to what is so large"
            )
            raise TooLargeError(msg)

        async def guarded(call: Call) -> Result:
            await self.check("tool", call.tool)
            door = self._doors.get(("tool", call.tool))
            if door is not None and door.approval and not call.ctx.caller.approved:
                raise approval_needed(self._server, call.tool, call.arguments, call.ctx.caller.name)
            changed = {} if call.arguments is arguments else {"arguments": dict(call.arguments)}
            result = await call_next(replace(ctx, params={**(ctx.params or {}), **changed}))
            return result if isinstance(result, dict) else {}

        proceed: Proceed = guarded
        for each in reversed(self.middleware):
            proceed = _around(each, proceed)
        call = Call(tool_context.target, arguments, tool_context)
        try:
            return await proceed(call)
        except ToolError as error:
            return {"content": [{"type": "text", "text": str(error)}], "isError": True, "resultType": "complete"}

    async def _listed(self, method: str, result: HandlerResult, ctx: ToolContext) -> HandlerResult:
        """Leave in a list what its reader may use."""
        if not isinstance(result, dict):
            return result
        kind, field, key = _LISTS[method]
        items = result.get(field, ())
        return {**result, field: [each for each in items if not await self._refusing(kind, each[key], ctx)]}


def call_of(server: str, message: Mapping[str, Any], caller: Caller) -> Call:
    """Return the call that a message wants, which does not come as far as the gate; for the audit."""
    params = message.get("params") or {}
    target, given = str(params.get("name") or params.get("uri") or ""), params.get("arguments")
    ctx = ToolContext(server, str(message["method"]), target, caller, _tell_nobody)
    return Call(target, given if isinstance(given, Mapping) else {}, ctx)


async def _tell_nobody(done: float, total: float | None, message: str | None) -> None:
    """Do nothing: there is no progress of what is not begun."""


def _around(middleware: Middleware, proceed: Proceed) -> Proceed:
    return lambda call: middleware(call, proceed)
