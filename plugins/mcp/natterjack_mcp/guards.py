"""Guards: who may call a tool.

    @server.tool(guards=[HasRole("writer"), Not(IsAgent("intern"))])

Any callable that takes a `ToolContext` and returns whether to let its caller pass is one, `async` or not; here are the
usual ones. All guards of a tool must let a caller pass, and one that fails lets nobody pass. Lists ask them, too, so
that each caller sees what it may call.
"""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence

from natterjack import ConfigError
from natterjack_mcp.context import ToolContext

log = logging.getLogger("natterjack.tools")

Check = Callable[[ToolContext], bool | Awaitable[bool]]


class RequireAuth:
    """Passes whoever is known: by a token, a key or the broker."""

    def __call__(self, ctx: ToolContext) -> bool:
        """Tell whether the caller may pass."""
        return ctx.caller.known

    def __repr__(self) -> str:
        return "RequireAuth()"


class NameGuard(ABC):
    """Base of guards that ask for names: of roles, scopes or agents."""

    def __init__(self, *names: str) -> None:
        if not names:
            kind = type(self).__name__
            msg = f"{kind}() asks for nothing; name what a caller must be, e.g. {kind}('writer')"
            raise ConfigError(msg)
        self.names = frozenset(names)

    @abstractmethod
    def __call__(self, ctx: ToolContext) -> bool:
        """Tell whether the caller may pass."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, sorted(self.names)))})"


class HasAnyRole(NameGuard):
    """Passes who has one of these roles."""

    def __call__(self, ctx: ToolContext) -> bool:
        """Tell whether the caller may pass."""
        return not self.names.isdisjoint(ctx.roles)


class HasAllRoles(NameGuard):
    """Passes who has all of these roles."""

    def __call__(self, ctx: ToolContext) -> bool:
        """Tell whether the caller may pass."""
        return self.names <= ctx.roles


class HasRole(HasAllRoles):
    """Passes who has this role."""

    def __init__(self, role: str) -> None:
        super().__init__(role)


class HasAllScopes(NameGuard):
    """Passes whose token has all of these scopes."""

    def __call__(self, ctx: ToolContext) -> bool:
        """Tell whether the caller may pass."""
        return self.names <= ctx.caller.scopes


class HasScope(HasAllScopes):
    """Passes whose token has this scope."""

    def __init__(self, scope: str) -> None:
        super().__init__(scope)


class IsAgent(NameGuard):
    """Passes these agents."""

    def __call__(self, ctx: ToolContext) -> bool:
        """Tell whether the caller may pass."""
        return ctx.caller.name in self.names


class _Combined(ABC):
    def __init__(self, *checks: Check) -> None:
        if not checks:
            msg = f"{type(self).__name__}() asks nothing; give it guards"
            raise ConfigError(msg)
        self.checks = checks

    @abstractmethod
    async def __call__(self, ctx: ToolContext) -> bool:
        """Tell whether the caller may pass."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(told, self.checks))})"


class All(_Combined):
    """Passes whom all of these pass."""

    async def __call__(self, ctx: ToolContext) -> bool:
        """Tell whether the caller may pass."""
        for check in self.checks:
            if not await _asked(check, ctx):
                return False
        return True


class Any(_Combined):
    """Passes whom one of these passes."""

    async def __call__(self, ctx: ToolContext) -> bool:
        """Tell whether the caller may pass."""
        for check in self.checks:
            if await _asked(check, ctx):
                return True
        return False


class Not(_Combined):
    """Passes whom this one does not."""

    def __init__(self, check: Check) -> None:
        super().__init__(check)

    async def __call__(self, ctx: ToolContext) -> bool:
        """Tell whether the caller may pass."""
        return not await _asked(self.checks[0], ctx)


def told(check: object) -> str:
    """Return how a guard is named in refusals."""
    return str(getattr(check, "__name__", None) or repr(check))


async def refusing(checks: Sequence[Check], ctx: ToolContext) -> Check | None:
    """Return the first guard that does not let a caller pass."""
    for check in checks:
        try:
            if not await _asked(check, ctx):
                return check
        except Exception:
            log.exception("the guard %s of %r failed, and so lets nobody pass", told(check), ctx.target)
            return check
    return None


async def _asked(check: Check, ctx: ToolContext) -> bool:
    # Within combined guards a failure goes up: `Not` must not make a pass of it.
    found = check(ctx)
    return bool(await found if inspect.isawaitable(found) else found)
