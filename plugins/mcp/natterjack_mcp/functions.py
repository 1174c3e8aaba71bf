"""Functions of users, made into what the SDK takes: `ctx` is injected, and a plain `def` runs in a thread."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable
from typing import Any, Final

from anyio import to_thread
from mcp import MCPError
from mcp.server.mcpserver.exceptions import ResourceError
from mcp.server.mcpserver.exceptions import ToolError as SDKToolError

from natterjack import ConfigError
from natterjack_mcp.context import ToolContext, current
from natterjack_mcp.errors import CallError, ToolError

CONTEXT: Final = "ctx"
"""The parameter that is injected; or one of any name that is annotated as `ToolContext`."""


def adapted(function: Callable[..., Any], before: Callable[[], Awaitable[None]] | None = None) -> Any:
    """Return a coroutine function without `ctx`, which waits for `before` and then calls the given one.

    Raises:
        ConfigError: Its annotations cannot be read.
    """
    signature = _signature(function)
    injected = [name for name, each in signature.parameters.items() if _is_context(name, each.annotation)]
    shown = [each for name, each in signature.parameters.items() if name not in injected]
    asynchronous = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - of an object that can be called
    )

    async def call(**arguments: Any) -> Any:
        try:
            if before is not None:
                await before()
            arguments |= dict.fromkeys(injected, current()) if injected else {}
            if asynchronous:
                return await function(**arguments)
            # A thread cannot be stopped: nobody waits for one whose caller has gone.
            return await to_thread.run_sync(functools.partial(function, **arguments), abandon_on_cancel=True)
        except ToolError as error:
            raise _deliberate(error) from error
        except CallError as error:
            raise wire_error(error) from error

    call.__name__ = getattr(function, "__name__", type(function).__name__)
    call.__doc__ = inspect.getdoc(function)
    call.__module__ = function.__module__
    call.__annotations__ = {each.name: each.annotation for each in shown if each.annotation is not each.empty}
    call.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return call


def wire_error(error: CallError) -> MCPError:
    """Return the error that tells a caller why nothing came of a call."""
    return MCPError(code=error.code, message=str(error), data=error.data or None)


def _deliberate(error: ToolError) -> Exception:
    method = current().method
    return ResourceError(str(error)) if method == "resources/read" else SDKToolError(str(error))


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, TypeError, ValueError) as error:
        name = getattr(function, "__name__", function)
        msg = f"the annotations of {name!r} cannot be read: {error}; its types must be importable where it is defined"
        raise ConfigError(msg) from error


def _is_context(name: str, annotation: Any) -> bool:
    return name == CONTEXT or annotation is ToolContext or ToolContext in typing.get_args(annotation)
