"""`natterjack credentials`: give principals of a broker in operator mode other credentials, end them, list them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from natterjack import BrokerError, ConfigError, ConnectError, CredentialsError, Server
from natterjack_permissions.authority import known_url
from natterjack_permissions.changes import end_tokens, note_change
from natterjack_permissions.folder import held
from natterjack_permissions.mint import KEYS, Mint, account_of, creds_file
from natterjack_permissions.pushes import push

app = typer.Typer(name="credentials", no_args_is_help=True, help="What agents log in with, in operator mode.")

_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LONGEST: Final = 3_650 * _UNITS["d"]
"""Seconds, ten years: what shall hold longer is better without an end, and can be revoked."""
_MOST_DIGITS: Final = 10
_HEAD: Final = ("NAME", "STATE", "ISSUED", "EXPIRES", "KEY")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The agent or tool server.")]
FolderOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder that `secure` has written.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@app.command()
def issue(
    name: NameArgument,
    *,
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="TIME", help="When they end: 90s, 30m, 12h, 30d. Else never.")
    ] = None,
    out: FolderOption = Path("secure"),
    as_json: JsonOption = False,
) -> None:
    """Give somebody other credentials: who runs with that folder goes on with them when the former ones end.

    The former ones stay valid as long as they were; `revoke` them first if they shall not.
    """
    ends = None if expires is None else time.time() + seconds(expires)
    _opened(out, name)
    with held(out):
        mint = _opened(out, name)
        mint.issue(name, ends)
        mint.write()
    _note(out, known_url(out), "issue", name)
    if as_json:
        typer.echo(json.dumps(_described(mint, name)))
        return
    typer.echo(f"wrote  {out / creds_file(name)}, which {'ends ' + _moment(ends) if ends else 'does not end'}")
    typer.echo(f"{name} needs it where it runs; servers need not be told")


@app.command()
def revoke(
    name: NameArgument,
    *,
    out: FolderOption = Path("secure"),
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Where the broker is; by default as `secure` was told.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """End all credentials and tokens that somebody has, those that were lost, too; connections are closed at once."""
    _opened(out, name)
    url = url or known_url(out)
    with held(out):
        mint = _opened(out, name)
        mint.revoke(name)
        mint.configure()
        mint.write()  # first: a server that starts later has it then
        untold = _end_tokens(out, url, mint, name)  # before its credentials end, which may be the operator's own
        servers = _pushed(out, url, mint, name)
    _note(out, url, "revoke", name)
    if untold:
        msg = f"{name} has no credentials any more, but doors still take its tokens ({untold}); revoke again"
        raise ConfigError(msg)
    if as_json:
        typer.echo(json.dumps(_described(mint, name) | {"servers": servers}))
        return
    for server in servers:
        typer.echo(f"revoked  {name} on {server}")
    typer.echo(f"{name} is let in again by:  natterjack credentials issue {name}{_there(out)}")


@app.command("list")
def list_all(*, out: FolderOption = Path("secure"), as_json: JsonOption = False) -> None:
    """Show who has credentials, since when, and until when."""
    mint = _opened(out)
    rows = [_described(mint, name) for name in mint.principals()]
    if as_json:
        typer.echo(json.dumps({"credentials": rows}))
        return
    told = [[row["name"], row["state"], _moment(row["issued"]), _moment(row["expires"]), row["key"]] for row in rows]
    for line in _table([_HEAD, *told]):
        typer.echo(line)


def seconds(text: str) -> float:
    """Return how long a text like `30d` is, in seconds.

    Raises:
        ConfigError: It is no such text.
    """
    found = re.fullmatch(r"0*([1-9]\d*)([smhd])", text)
    if not found:
        msg = f"{text!r} is no time; write e.g. 90s, 30m, 12h or 30d"
        raise ConfigError(msg)
    # By its digits first: Python reads no number of thousands of them.
    if len(found[1]) > _MOST_DIGITS or (span := int(found[1]) * _UNITS[found[2]]) > _LONGEST:
        msg = f"{text[:40]!r} is more than ten years; write at most 3650d, or nothing for credentials that do not end"
        raise ConfigError(msg)
    return span


def _opened(out: Path, name: str | None = None) -> Mint:
    mint = Mint(out)
    if not mint.exists:
        msg = (
            f"{out} is not of operator mode: make such a folder by `natterjack secure --mode operator --out DIR`."
            " In static mode, `natterjack secure --rotate NAME --apply` ends a key, and makes another."
        )
        raise ConfigError(msg)
    if name is not None:
        mint.check(name)
        mint.check_complete()
    return mint


def _pushed(out: Path, url: str, mint: Mint, name: str) -> list[str]:
    """Have the servers take that somebody is revoked, and return their names."""
    try:
        return asyncio.run(push(url, mint, {account_of(name)}))[0]
    except BrokerError as error:
        refused = isinstance(error, CredentialsError)  # then it is there, and what to do about it comes first
        cause = str(error).rstrip(".") if refused else str(error).partition(". ")[0]
        msg = (
            f"{name} is revoked in {out}, and on each server that starts with it from now on; but a server that runs"
            f" was not told, because {cause}. {'Then' if refused else 'When it is back,'}"
            f" `natterjack secure --apply{_there(out)}` tells it"
        )
        raise ConnectError(msg) from error


def _there(out: Path) -> str:
    """Return the option that names the folder, where it has not the usual name."""
    return "" if out == Path("secure") else f" --out {out}"


def _end_tokens(out: Path, url: str, mint: Mint, name: str) -> str:
    """Have doors refuse a principal's tokens; return why that failed, or nothing."""
    try:
        told = asyncio.run(end_tokens(Server(url, keys=str(out / KEYS)), {name: mint.revoked(name)}))
    except BrokerError as error:
        return str(error)
    if not told:
        typer.echo("note: no team is provisioned there yet, so no door knows; revoke again once it is", err=True)
    return ""


def _note(out: Path, url: str, verb: str, name: str) -> None:
    """Have it written down in the team's audit, if the operator is let in there."""
    try:
        asyncio.run(note_change(Server(url, keys=str(out / KEYS)), verb, who=name))
    except ConnectError as error:
        typer.echo(f"note: the audit of the team does not say so: {error}", err=True)


def _described(mint: Mint, name: str) -> dict[str, Any]:
    """Return what may be told of somebody's credentials."""
    said = mint.credentials(name)
    if said is None:
        return {"name": name, "state": "none", "issued": None, "expires": None, "key": None}
    expires = said.get("exp")
    ended = expires is not None and expires <= time.time()
    state = "revoked" if said["iat"] <= mint.revoked(name) else "expired" if ended else "valid"
    return {"name": name, "state": state, "issued": said["iat"], "expires": expires, "key": said["sub"]}


def _moment(at: float | None) -> str:
    if at is None:
        return "-"
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):  # of a token that somebody else has made
        return f"{at:g} s after 1970"


def _table(rows: Iterable[Iterable[str | None]]) -> list[str]:
    texts = [[each or "-" for each in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    pad: Callable[[str, int], str] = str.ljust
    return ["  ".join(map(pad, row, widths)).rstrip() for row in texts]
