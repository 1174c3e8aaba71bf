"""Audit: who called what, in files whose records are chained by their hashes."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from natterjack import ConfigError
from natterjack_mcp.errors import CallError
from natterjack_mcp.middleware import Call, Proceed, Result

SUFFIX: Final = ".audit.jsonl"
MAX_ARGUMENTS: Final = 4096
"""Bytes of arguments that a record holds as they are; of longer ones it holds the hash."""


class AuditMiddleware:
    """Writes down each call: who, what, when, and what came of it, before the caller hears of it.

    Each process writes a file of its own, in which each record holds the hash of the one before. `natterjack tools
    verify` finds what was changed, or is missing between others. What is missing at a file's end, or a whole file, no
    chain can tell: keep a copy where those who write it cannot. A call that is cut off by the process's death has no
    record.

    Args:
        folder: Where the files are; made if it is not there.

    Raises:
        ConfigError: It cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder, self._chain = Path(folder), _Chain()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"the audit cannot be written to {str(folder)!r}: {error.strerror}; name a folder that can be made"
            raise ConfigError(msg) from error

    async def __call__(self, call: Call, proceed: Proceed) -> Result:
        """Stand around one call."""
        begun, outcome = time.time(), "cancelled"
        try:
            result = await proceed(call)
        except CallError as error:
            outcome = f"{type(error).__name__}: {error}"
            raise
        except Exception as error:
            outcome = type(error).__name__
            raise
        else:
            outcome = "error" if result.get("isError") else "done"
            return result
        finally:
            self._chain.write(self._folder, _record(call, begun, outcome))

    def refused(self, call: Call, error: CallError) -> None:
        """Write down a call that was refused before it came to the server's middleware."""
        self._chain.write(self._folder, _record(call, time.time(), f"{type(error).__name__}: {error}"))


def _record(call: Call, begun: float, outcome: str) -> dict[str, Any]:
    ctx = call.ctx
    given = orjson.dumps(call.arguments, default=str)
    return {
        "time": round(begun, 3),
        "seconds": round(time.time() - begun, 6),
        "server": ctx.server,
        "tool": call.tool,
        "caller": ctx.caller.name,
        "attested": ctx.caller.attested,
        "request": ctx.request_id,
        "arguments": orjson.loads(given) if len(given) <= MAX_ARGUMENTS else hashlib.sha256(given).hexdigest(),
        "outcome": outcome,
        "notes": ctx.journal.entries,
    }


class _Chain:
    """The file of this process. After a failure, which may leave half a line, the next record begins another."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._pid, self._number, self._last = 0, 0, ""

    def write(self, folder: Path, record: dict[str, Any]) -> None:
        """Append a record; what it says is handed to the system before this returns."""
        if self._file is None or self._pid != os.getpid():  # never the file of a parent
            self._file = self._begin(folder)
        line, digest = _sealed({"number": self._number + 1, **record, "previous": self._last})
        try:
            _append(self._file, line)
        except OSError:
            os.close(self._file)
            self._file = None
            raise
        self._number, self._last = self._number + 1, digest

    def _begin(self, folder: Path) -> int:
        writer = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        self._pid, self._number, self._last = os.getpid(), 0, writer
        return os.open(folder / f"{writer}{SUFFIX}", flags, 0o600)


def _append(file: int, line: bytes) -> None:
    if os.write(file, line) != len(line):
        msg = "the disk is full: a record of the audit is cut off"
        raise OSError(msg)


def _sealed(record: dict[str, Any]) -> tuple[bytes, str]:
    """Return the line of a record, which ends with its hash, and the hash."""
    plain = orjson.dumps(record, default=str)
    digest = hashlib.sha256(plain).hexdigest()
    return plain[:-1] + f',"hash":"{digest}"}}\n'.encode(), digest


# Verifying


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one file.

    Attributes:
        path: Which.
        records: How many are good.
        problem: What is wrong behind them; empty: nothing.
        torn: Whether the last line is cut off, as the death of a process leaves it.
    """

    path: Path
    records: int
    problem: str = ""
    torn: bool = False


def verify(folder: Path) -> Iterator[Verdict]:
    """Verify each file of a folder."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        yield verify_file(path)


def verify_file(path: Path) -> Verdict:
    """Verify the chain of one file."""
    last, number = path.name.removesuffix(SUFFIX), 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return Verdict(path, number, torn=True)
            try:
                record = orjson.loads(line)
                digest = record.pop("hash")
                expected = _sealed(record)
                found = (record["number"], record["previous"])
            except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
                return Verdict(path, number, f"line {number + 1} is no record")
            if expected != (line, digest):
                return Verdict(path, number, f"record {number + 1} was changed")
            if found != (number + 1, last):
                return Verdict(path, number, f"record {number + 1} is missing, or another stands in its place")
            number, last = number + 1, digest
    return Verdict(path, number)
