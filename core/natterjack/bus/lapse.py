"""Credentials that the server lets in no more: what is said, and how long renewed ones are waited for."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson

from natterjack.server import Server

log = logging.getLogger("natterjack.bus")

RETRY: Final = 5.0
"""Seconds between attempts with the same credentials: somebody may change the server's mind."""
_LOOK: Final = 0.25
"""Seconds between looks at the file."""
REFUSALS: Final = (
    "authorization violation",
    "authentication expired",
    "authentication revoked",
    "account active connections exceeded",  # it may have none: its principal is in the team no more
)
UNREADABLE: Final = "can be read in"


class Lapse:
    """Waits for renewed credentials while a connection is refused, and ends that after a while.

    Args:
        server: Where, with the credentials.
        principal: Whose they are.

    Attributes:
        file: Where they are, if in a file, which may have others at any time.
        end: Why the connection cannot go on, once it has waited long enough.
    """

    def __init__(self, server: Server, principal: str) -> None:
        self._server, self._principal = server, principal
        is_seed = server.nkey is not None and server.nkey.startswith("SU")
        self.file = server.creds or (None if is_seed else server.nkey)
        self._watched = self.file or server.token_file
        self.end = ""
        self._cause = ""
        self._since: float | None = None
        self._tried: object = None

    def lost(self, text: str) -> bool:
        """Take why the server closes a connection, and tell whether it is about credentials: there may be others."""
        found = any(words in text.lower() for words in REFUSALS)
        self._cause = text.strip("'") if found else ""
        return found

    def note(self, text: str) -> bool:
        """Take why an attempt failed, and tell whether it is about credentials; the first time, say what to do."""
        if not any(words in text.lower() for words in (*REFUSALS, UNREADABLE)):
            return False
        if self._since is None:
            self._since = time.monotonic()
            self._cause = text if UNREADABLE in text else self._cause or text
            log.error("%s; it goes on then, and ends in %g s otherwise", self._told(), self._server.patience)
        return True

    def ended(self) -> None:
        """Take it that the server has let it in."""
        self._cause, self._since = "", None

    async def pause(self) -> None:
        """Return once it makes sense to try again: with renewed credentials at once. Otherwise, `end` says why not."""
        ends = time.monotonic() + RETRY
        while (stamp := self._stamp()) == self._tried and self._since is not None and time.monotonic() < ends:
            if time.monotonic() - self._since >= self._server.patience:
                self.end = f"{self._told()}. Nobody did so within {self._server.patience:g} s"
                return
            await asyncio.sleep(_LOOK)
        self._tried = stamp

    def _told(self) -> str:
        return f"{self._server} lets {self._principal!r} in no more ({self._cause}). {advice(self._server)}"

    def _stamp(self) -> object:
        """Return what changes when the file of credentials does."""
        with suppress(OSError):
            found = Path(self._watched).stat() if self._watched else None
            return found and (found.st_mtime_ns, found.st_size, found.st_ino)
        return "not there"


def advice(server: Server) -> str:
    """Return what to do about credentials that are refused."""
    if server.creds and not Path(server.creds).exists():
        return "It is gone, as of one that the team has no more; `natterjack secure` makes it for all that it has"
    if server.creds:
        who = Path(server.creds).stem
        return f"{_ended(_second_line, server.creds)}Renew {server.creds}: `natterjack credentials issue {who}`"
    if server.nkey and Path(server.nkey).stem == "sys":  # without it no command reaches the server
        return f"If {server.nkey} is the newest, have the servers read their configuration: SIGHUP, or another start"
    if server.nkey and not server.nkey.startswith("SU"):
        told = f"Renew {server.nkey}, or have the broker take it: `natterjack secure --apply`"
        return f"{told}. Or the team has it no more"
    if server.token:
        where = server.token_file or "NATS_TOKEN"
        return f"{_ended(read_token, server.token)}Put another token into {where}, e.g. of `natterjack token mint`"
    return "Name others: a token, nkey or creds file"


def read_token(token: str) -> str:
    """Return a token, or that of the file which it names, as `file:PATH`.

    Raises:
        OSError: It cannot be read.
    """
    return Path(token.removeprefix("file:")).read_text().strip() if token.startswith("file:") else token


def read_creds(path: str) -> str:
    """Return what a file of credentials has, read at once, so that token and seed belong together.

    Raises:
        OSError: It cannot be read.
        ValueError: It has not both.
    """
    import nkeys  # lazy: only who has such a file needs it

    text = Path(path).read_text()
    lines = text.splitlines()
    for begin in ("BEGIN NATS USER JWT", "BEGIN USER NKEY SEED"):  # nats-py would look for the first one for ever
        at = next((number for number, line in enumerate(lines) if begin in line), len(lines))
        if at + 2 >= len(lines):
            msg = f"there is no {begin.removeprefix('BEGIN ')}"
            raise ValueError(msg)
    nkeys.from_seed(lines[at + 1].strip().encode())
    return text if text.endswith("\n") else text + "\n"


def _second_line(path: str) -> str:
    return Path(path).read_text().splitlines()[1]


def _ended(read: Callable[[str], str], where: str) -> str:
    """Return when a token ended, if it has."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        ends = float(unverified(read(where))["exp"])
        if ends <= time.time():
            return f"It ended at {datetime.fromtimestamp(ends, UTC):%Y-%m-%d %H:%M:%S} UTC. "
    return ""


def unverified(token: str) -> dict[str, Any]:
    """Return what a JWT says, whoever made it; nothing, if it is none."""
    parts = token.split(".")
    with suppress(ValueError):
        said = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))) if len(parts) == 3 else {}
        return said if isinstance(said, dict) else {}
    return {}
