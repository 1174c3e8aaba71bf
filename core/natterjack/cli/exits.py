"""Exit codes: the one place that says which error ends a command with which."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from natterjack.errors import (
    BrokerNotFoundError,
    BrokerStartError,
    ConnectError,
    DisconnectedError,
    NatterjackError,
    NotProvisionedError,
    PluginError,
    UnknownAgentError,
    UsageError,
)


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    UNKNOWN = 4
    INTERRUPTED = 130


MEANINGS: Final = (
    "Exit codes: 0 done; 1 what was asked for failed (a peer's error, a run that failed, a problem that doctor found);"
    " 2 wrong usage, a wrong team file, or a plugin that is missing or broken;"
    " 3 no broker can be reached, or it refuses the credentials; 4 not provisioned, or no such name; 130 interrupted."
)


class CommandError(NatterjackError):
    """What a command itself finds wrong.

    Attributes:
        code: What it exits with.
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        self.code = code
        super().__init__(message)


_CODES: Final[tuple[tuple[type[NatterjackError], ExitCode], ...]] = (
    (NotProvisionedError, ExitCode.UNKNOWN),
    (UnknownAgentError, ExitCode.UNKNOWN),
    (UsageError, ExitCode.USAGE),
    (PluginError, ExitCode.USAGE),
    (ConnectError, ExitCode.UNREACHABLE),
    (DisconnectedError, ExitCode.UNREACHABLE),
    (BrokerNotFoundError, ExitCode.UNREACHABLE),
    (BrokerStartError, ExitCode.UNREACHABLE),
)


def exit_code(error: NatterjackError) -> ExitCode:
    """Return what a command exits with after this error."""
    if isinstance(error, CommandError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)
