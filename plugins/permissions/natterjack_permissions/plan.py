"""What `secure` would write for a team into a folder; how it is written, and how the running broker takes it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final

import typer

from natterjack import BrokerError, ConfigError, Server
from natterjack_permissions.authority import TABLE, Authority
from natterjack_permissions.changes import end_tokens, note_change
from natterjack_permissions.folder import restoring
from natterjack_permissions.keys import OURS_ONCE, differing, keep, path_of, public, store
from natterjack_permissions.mint import KEYS, ROTATED, Mint
from natterjack_permissions.pushes import lacking, push
from natterjack_permissions.reload import behind, reloading
from natterjack_permissions.tls import AUTHORITY, SERVER, Certificates, hosts_of

_MOST_TOLD: Final = 20
"""Files, and rows of the table, that the audit names of a change."""
_LONGEST: Final = 250
"""Characters of a row there: a record of the audit has 16 KiB at most."""
_PARTS: Final = ("accounts.conf", "tls.conf")
"""Of a server's configuration, what is written anew."""


class Mode(StrEnum):
    """How servers know who may do what."""

    STATIC = "static"
    OPERATOR = "operator"


class Plan:
    """What would be written.

    Args:
        found: Who may do what.
        out: The folder.
        url: Where clients reach the broker.
        rotate: Who gets another key.
        certificates: Those of the folder, if it has any or shall have.
        mint: What an operator signs; None: the folder is of static mode.
        tokens: Whether servers are to take tokens of the team from now on, which their configuration says.

    Attributes:
        changed: By the names of files below the folder, what there is and what would be; of keys, nothing.
    """

    def __init__(
        self,
        found: Authority,
        out: Path,
        url: str,
        rotate: Collection[str] = (),
        certificates: Certificates | None = None,
        mint: Mint | None = None,
        *,
        tokens: bool = False,
    ) -> None:
        self.found, self.out, self.url, self.rotate = found, out, url, rotate
        self.certificates, self.mint, self._tokens = certificates, mint, tokens
        self._renewed = certificates.changes(rotate) if certificates else {}
        files = mint.differences() if mint else _changed(found, out, url, rotate, certificates)
        self.changed = files | self._renewed

    def put(self) -> None:
        """Write it."""
        if self.mint:
            self.mint.write()
        else:
            write(self.found, self.out, self.url, self.rotate, tls=self.certificates is not None)
        if self.certificates:
            self.certificates.write(self.rotate)

    def apply(self) -> list[str]:
        """Write it, have the running broker take it, and return the names of its servers.

        Raises:
            ConnectError: None answers, or the key of `sys` is none of theirs.
            ConfigError: One does not take it.
            BrokerError: One does not say in time that it does.
        """
        return asyncio.run(self._apply(reloads=not self.mint or bool(self._renewed) or self._tokens))

    async def _apply(self, *, reloads: bool) -> list[str]:
        servers: list[str] = []
        if reloads:
            async with reloading(self.url, self.out / KEYS) as reload:  # logs in before its own key becomes another one
                with restoring(self.out):
                    self.put()
                    servers = await reload()
        else:
            self.put()
        servers = (await push(self.url, self.mint))[0] if self.mint else servers
        await self._tell()
        return servers

    async def _tell(self) -> None:
        """Have the team hear of what the servers have taken: its doors, and its audit."""
        server = Server(self.url, keys=str(self.out / KEYS))
        try:
            if self.mint and (ended := self.mint.revocations()):
                await end_tokens(server, ended)
            await note_change(server, "secure", digest=_digest(self.out), **self._facts())
        except BrokerError as error:
            typer.echo(f"note: the broker has it, but the team's doors and audit were not told: {error}", err=True)

    async def pending(self) -> list[str]:
        """Return what the running broker has not as it is written: names of accounts, or of servers.

        Raises:
            BrokerError: None answers, or the key of `sys` is none of theirs.
        """
        if self.mint:
            return await lacking(self.url, self.mint)
        return await behind(self.url, self.out / KEYS, [self.out / name for name in _PARTS])

    def _facts(self) -> dict[str, object]:
        """Return what the audit says of a change: keys, files, and rows of the table of who may do what."""
        old, new = (
            [line for line in text.splitlines() if line.startswith("| ")] for text in self.changed.get(TABLE, ("", ""))
        )
        gone, come = [row for row in old if row not in new], [row for row in new if row not in old]
        rows = {name: [row[:_LONGEST] for row in each[:_MOST_TOLD]] for name, each in (("before", gone), ("now", come))}
        return {"rotated": list(self.rotate), "written": sorted(self.changed)[:_MOST_TOLD], **rows}


def _digest(out: Path) -> str:
    """Return what identifies the accounts that are written."""
    return hashlib.sha256((out / "accounts.conf").read_bytes()).hexdigest()


def planned(
    found: Authority,
    out: Path,
    url: str,
    rotate: Collection[str] = (),
    *,
    hosts: Iterable[str] = (),
    mode: Mode | None = None,
    tls: bool = False,
    tokens: bool = False,
) -> Plan:
    """Return what would be written into a folder.

    Args:
        found: Who may do what.
        out: The folder.
        url: Where clients reach the broker.
        rotate: Who gets another key.
        hosts: Other hosts of the servers, for their certificate.
        mode: The folder's mode; by default as it is, and static where it is new.
        tls: Whether certificates are made where there are none.
        tokens: Whether servers take tokens of the team, too, from now on.

    Raises:
        ConfigError: The folder is of another mode, or lacks what signs for it; or there is no such key to rotate.
    """
    by_token = tokens or Mint(out).takes_tokens
    made = Certificates(out, found.principals, [*hosts_of(url), *hosts], callout=by_token)
    certificates, mint = made if tls or made.are_there else None, None
    if in_operator_mode(out, mode):
        mint = minted(found, out, url, rotate, certificates, tokens=tokens)
    elif tokens:
        msg = "tokens of the team are taken in operator mode: add --mode operator"
        raise ConfigError(msg)
    return Plan(found, out, url, rotate, certificates, mint, tokens=tokens)


def write(found: Authority, out: Path, url: str, rotate: Collection[str] = (), *, tls: bool = False) -> None:
    """Write keys and configuration.

    Args:
        found: Who may do what.
        out: The folder.
        url: Where clients reach the broker.
        rotate: Who gets another key.
        tls: Whether there are certificates beside the keys.
    """
    keys = keep(out / "keys", found.principals, rotate)
    for name, (_, text) in differing(out, found.files(out.resolve(), url, keys, tls=tls)).items():
        store(out / name, text.encode(), 0o644)


def in_operator_mode(out: Path, mode: Mode | None) -> bool:
    """Tell whether a folder is, or shall be, of operator mode.

    Raises:
        ConfigError: It is of the other mode, or lacks what signs for it.
    """
    mint = Mint(out)
    is_operator = mint.exists
    mint.check_complete()
    if mode is not None and (is_operator or (out / "accounts.conf").exists()):
        there = Mode.OPERATOR if is_operator else Mode.STATIC
        if mode is not there:
            msg = f"{out} is of mode {there}; name another folder for mode {mode}, by --out"
            raise ConfigError(msg)
    return is_operator or mode is Mode.OPERATOR


def minted(
    found: Authority,
    out: Path,
    url: str,
    rotate: Collection[str],
    certificates: Certificates | None = None,
    *,
    tokens: bool = False,
) -> Mint:
    """Return what would be written in operator mode."""
    mint = Mint(out)
    by_token = found.rights if tokens or mint.takes_tokens else ()  # no operators: a key of tokens is no master key
    _check_names(found, rotate, certificates, *([ROTATED] if mint.takes_tokens else ()))
    mint.team(found.accounts, rotate, by_token=by_token)
    for name, text in found.files(out.resolve(), url, None, tls=certificates is not None).items():
        if name != OURS_ONCE or mint.text(name) is None:
            mint.put(name, text)
    return mint


def _check_names(found: Authority, rotate: Iterable[str], certificates: Certificates | None, *more: str) -> None:
    known = [*found.principals, *more, *((SERVER, AUTHORITY) if certificates else ())]
    for name in rotate:
        if name not in known:
            msg = f"{name!r} has no key here, so none to rotate; there are {', '.join(known)}"
            raise ConfigError(msg)
        if known.count(name) > 1:
            msg = f"--rotate {name} would be two things, one of them the keys of {name!r} in the team: rename that one"
            raise ConfigError(msg)


def _changed(
    found: Authority, out: Path, url: str, rotate: Collection[str], certificates: Certificates | None
) -> dict[str, tuple[str, str]]:
    """Return what would be written: by name, what there is and what there would be; of keys, nothing is shown."""
    _check_names(found, rotate, certificates)
    paths = {name: path_of(out / "keys", name) for name in found.principals}
    new = {name for name, path in paths.items() if name in rotate or not path.exists()}
    keys = {name: f"<a new key of {name}>" if name in new else public(path) for name, path in paths.items()}
    files = found.files(out.resolve(), url, keys, tls=certificates is not None)
    return differing(out, files) | {str(paths[name].relative_to(out)): ("", "") for name in new}
