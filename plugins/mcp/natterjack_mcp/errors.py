"""Why a call came to nothing, on both sides of the wire.

::

    CallError (NatterjackError)
    ├── ToolError                              the tool itself says what is wrong
    ├── UnauthenticatedError (PermissionError) nobody knows who calls
    ├── ToolRefusedError (PermissionError)     a guard said no
    ├── ToolApprovalError (ApprovalRequiredError)   a human must allow this call
    ├── ToolBusyError                          too many calls; later
    ├── ToolTimeoutError (TimeoutError)        it took too long
    └── ToolUnavailableError                   the server is not there, or went away meanwhile

On the wire they are JSON-RPC errors with the codes that HTTP has for them; a `ToolError` is a result that is an error,
as the protocol wants it, so that a model reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from natterjack import ApprovalRequiredError, NatterjackError


class CallError(NatterjackError):
    """A call came to nothing.

    Attributes:
        code: As on the wire.
        data: What the caller's program may use.
    """

    code: ClassVar[int] = 500

    def __init__(self, message: str, data: Mapping[str, Any] | None = None) -> None:
        self.data = dict(data or {})
        super().__init__(message)


class ToolError(CallError):
    """A tool says what is wrong; raise it in a tool, and the caller reads its text."""


class UnauthenticatedError(CallError, PermissionError):
    """The server wants to know who calls, and does not."""

    code: ClassVar[int] = 401


class ToolRefusedError(CallError, PermissionError):
    """A guard does not let this caller do that; `data` has the guard."""

    code: ClassVar[int] = 403
    retry = False


class ToolApprovalError(CallError, ApprovalRequiredError):
    """A human must allow this call, which an agent of the team gets done by `ctx.tools`; `data` has the question."""

    code: ClassVar[int] = 428
    retry = False

    def __init__(self, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, data)
        self.question = str(self.data.get("question", ""))


class ToolBusyError(CallError):
    """There are too many calls at once, or of one caller."""

    code: ClassVar[int] = 429


class TooLargeError(CallError):
    """The arguments are larger than the server takes."""

    code: ClassVar[int] = 413


class ToolTimeoutError(CallError, TimeoutError):
    """The call took longer than the server lets it."""

    code: ClassVar[int] = 408


class ToolUnavailableError(CallError):
    """The tool server is not there, or went away; `data["begun"]` tells whether the call may have begun."""

    code: ClassVar[int] = 503


_KINDS = {
    kind.code: kind
    for kind in (
        UnauthenticatedError,
        ToolRefusedError,
        ToolApprovalError,
        ToolBusyError,
        ToolTimeoutError,
        ToolUnavailableError,
    )
}


def call_error(code: int, message: str, data: object = None) -> CallError:
    """Return the error that stands for one on the wire."""
    return _KINDS.get(code, CallError)(message, data if isinstance(data, Mapping) else None)
