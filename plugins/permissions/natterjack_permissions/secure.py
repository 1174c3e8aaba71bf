"""`natterjack secure`: from a team file to a broker where each principal has an account and a key of its own."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from natterjack import ConfigError, Server, read_team
from natterjack_permissions.authority import TABLE, URL, Authority, authority, known_url
from natterjack_permissions.broker import TLS, port_of
from natterjack_permissions.changes import end_tokens, note_change
from natterjack_permissions.keys import OURS_ONCE, differing, keep, path_of, public, store
from natterjack_permissions.mint import KEYS, NEXT_SIGNER, ROTATED, Mint
from natterjack_permissions.pushes import push
from natterjack_permissions.reload import reloading
from natterjack_permissions.tls import AUTHORITY, SERVER, Certificates, hosts_of

app = typer.Typer(name="secure")
_LOGINS: Final = (".nk", ".creds", ".pem")
_MOST_TOLD: Final = 20
"""Files, and rows of the table, that the audit names of a change."""
_LONGEST: Final = 250
"""Characters of a row there: a record of the audit has 16 KiB at most."""


class Mode(StrEnum):
    """How servers know who may do what."""

    STATIC = "static"
    OPERATOR = "operator"


TlsOption = Annotated[
    bool, typer.Option("--tls", help="Make certificates, too; later they are looked after without being told.")
]
HostOption = Annotated[
    list[str] | None, typer.Option("--host", metavar="HOST", help="Another host of the servers; repeatable.")
]
ModeOption = Annotated[
    Mode | None,
    typer.Option(
        "--mode",
        help="How servers know who may do what: by their configuration, or by tokens that an operator signs, for"
        " agents that come and go while it runs. By default as the folder is, and static if it is new.",
    ),
]
TokensOption = Annotated[
    bool, typer.Option("--tokens", help="Take tokens of the team, too; `natterjack callout` looks at them then.")
]


@app.command()
def secure(
    team_file: Annotated[Path, typer.Argument(metavar="TEAM", help="The team file.")] = Path("team.toml"),
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where keys and configuration go.")] = Path(
        "secure"
    ),
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help=f"Where clients reach the broker; once said, it stays. ({URL})"),
    ] = None,
    mode: ModeOption = None,
    tokens: TokensOption = False,
    tls: TlsOption = False,
    host: HostOption = None,
    rotate: Annotated[
        list[str] | None,
        typer.Option(
            "--rotate",
            metavar="NAME",
            help="Another key and certificate for it, `server`, `ca` or `callout`; repeatable.",
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Show what would change; exit with 1 if anything.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Have the running broker take it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Make a broker where each agent may do exactly what the team file says, and what is not said is denied.

    The same team and keys give the same files. Keys stay as they are; those of new agents are made.
    """
    found, rotate, url = authority(read_team(team_file)), rotate or [], url or known_url(out)
    certificates = certificates_of(found, out, url, host or [], make=tls, callout=tokens or Mint(out).takes_tokens)
    mint = minted(found, out, url, rotate, certificates, tokens=tokens) if in_operator_mode(out, mode) else None
    _check_tokens(mint, tokens=tokens)
    renewed = certificates.changes(rotate) if certificates else {}
    changed = (mint.differences() if mint else _changed(found, out, url, rotate, certificates)) | renewed
    if check:
        _show(changed, certificates, out, as_json=as_json)
        raise typer.Exit(1 if changed else 0)

    def put() -> None:
        if mint:
            mint.write()
        else:
            write(found, out, url, rotate, tls=certificates is not None)
        if certificates:
            certificates.write(rotate)

    servers: list[str] = []
    if apply:
        reloads = not mint or bool(renewed) or tokens
        servers = asyncio.run(_apply(put, out, url, mint, _facts(changed, rotate), reloads=reloads))
    else:
        put()
    if as_json:
        typer.echo(json.dumps({"written": sorted(changed), "reloaded": servers}))
        return
    for line in (*_done(changed, servers, out, certificates), *_port(out, url), *_left(out / KEYS, found)):
        typer.echo(line)
    typer.echo(_next_step(team_file, out, url, changed=bool(changed), applied=bool(servers)))


def _facts(changed: Mapping[str, tuple[str, str]], rotated: Collection[str]) -> dict[str, object]:
    """Return what the audit says of a change: keys, files, and rows of the table of who may do what."""
    old, new = ([line for line in text.splitlines() if line.startswith("| ")] for text in changed.get(TABLE, ("", "")))
    gone, come = [row for row in old if row not in new], [row for row in new if row not in old]
    rows = {name: [row[:_LONGEST] for row in each[:_MOST_TOLD]] for name, each in (("before", gone), ("now", come))}
    return {"rotated": list(rotated), "written": sorted(changed)[:_MOST_TOLD], **rows}


async def _apply(
    put: Callable[[], None], out: Path, url: str, mint: Mint | None, facts: Mapping[str, object], *, reloads: bool
) -> list[str]:
    """Write it, have it written down, and return the names of the servers that have it then."""
    servers: list[str] = []
    if reloads:
        async with reloading(url, out / "keys") as reload:  # logs in before its own key may become another one
            put()
            servers = await reload()
    else:
        put()
    servers = (await push(url, mint))[0] if mint else servers
    if mint and (ended := mint.revocations()):
        await end_tokens(Server(url, keys=str(out / KEYS)), ended)
    await note_change(Server(url, keys=str(out / "keys")), "secure", digest=_digest(out), **facts)
    return servers


def _digest(out: Path) -> str:
    """Return what identifies the accounts that are written."""
    return hashlib.sha256((out / "accounts.conf").read_bytes()).hexdigest()


def certificates_of(
    found: Authority, out: Path, url: str, hosts: Iterable[str] = (), *, make: bool = True, callout: bool = False
) -> Certificates | None:
    """Return the certificates of a folder, or None if it has none and none are to be made."""
    certificates = Certificates(out, found.principals, [*hosts_of(url), *hosts], callout=callout)
    return certificates if make or certificates.are_there else None


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
        ConfigError: It is of the other mode.
    """
    is_operator = Mint(out).exists
    if mode is not None and (is_operator or (out / "accounts.conf").exists()):
        there = Mode.OPERATOR if is_operator else Mode.STATIC
        if mode is not there:
            msg = f"{out} is of mode {there}; name another folder for mode {mode}, by --out"
            raise ConfigError(msg)
    return is_operator or mode is Mode.OPERATOR


def _check_tokens(mint: Mint | None, *, tokens: bool) -> None:
    if tokens and mint is None:
        msg = "tokens of the team are taken in operator mode: add --mode operator"
        raise ConfigError(msg)


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
    found: Authority, out: Path, url: str, rotate: list[str], certificates: Certificates | None
) -> dict[str, tuple[str, str]]:
    """Return what would be written: by name, what there is and what there would be; of keys, nothing is shown."""
    _check_names(found, rotate, certificates)
    paths = {name: path_of(out / "keys", name) for name in found.principals}
    new = {name for name, path in paths.items() if name in rotate or not path.exists()}
    keys = {name: f"<a new key of {name}>" if name in new else public(path) for name, path in paths.items()}
    files = found.files(out.resolve(), url, keys, tls=certificates is not None)
    return differing(out, files) | {str(paths[name].relative_to(out)): ("", "") for name in new}


def _show(
    changed: Mapping[str, tuple[str, str]], certificates: Certificates | None, out: Path, *, as_json: bool
) -> None:
    ending = certificates.ending() if certificates else []
    if as_json:
        typer.echo(json.dumps({"changes": sorted(changed), "ending": ending}))
        return
    for line in ending:
        typer.echo(f"note: {line}")
    for name, (before, after) in sorted(changed.items()):
        typer.echo(f"{'would change' if before else 'would write'}  {out / name}")
        for line in _differences(before, after) if before else ():
            typer.echo(f"    {line}")
    typer.echo("nothing would change" if not changed else "")


def _differences(before: str, after: str) -> Iterator[str]:
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0):
        if not line.startswith(("---", "+++", "@@")):
            yield line


def _done(
    changed: Iterable[str], servers: Iterable[str], out: Path, certificates: Certificates | None
) -> Iterator[str]:
    for name in sorted(changed):
        yield f"{'wrote  ' if (out / name).exists() else 'removed'}  {out / name}"
    yield from (f"reloaded  {name}" for name in servers)
    yield from (f"note: {line}" for line in _advice(out, certificates))


def _left(keys: Path, found: Authority) -> Iterator[str]:
    """Yield what nobody needs any more: it is kept, as a name that comes back has its key then."""
    left = sorted(path for path in keys.glob("*.*") if path.suffix in _LOGINS and path.stem not in found.principals)
    if left:
        names = ", ".join(map(str, left))
        yield f"note: nobody in the team has {names}, and the broker lets none of them in: remove them"


def _port(out: Path, url: str) -> Iterator[str]:
    """Yield what is to do where the server's own file has another port than the URL."""
    there = re.search(r"^\s*port\s*[:=]?\s*(\d+)", (out / OURS_ONCE).read_text(), re.MULTILINE)
    ports = [port_of(each) for each in url.split(",")]
    if there and int(there[1]) not in ports:
        yield (
            f"note: {out / OURS_ONCE} is yours, and has port {there[1]} still: write `port: {ports[0]}` there and start"
            " the broker again, unless something between it and its clients changes the port"
        )


def _advice(out: Path, certificates: Certificates | None) -> Iterator[str]:
    """Yield what is left to do about certificates, and about the callout's keys."""
    if (out / NEXT_SIGNER).exists():
        yield (
            f"step 1 of 2: {out / ROTATED} has the next keys, too. When servers know them, and each machine with a"
            " callout has that folder, go on with another `--rotate callout`"
        )
    if certificates is None:
        return
    if TLS not in (out / OURS_ONCE).read_text():
        yield f"{out / OURS_ONCE} is yours: add the line  {TLS}"
    if certificates.told:
        yield certificates.told
    yield from certificates.ending()


def _next_step(team_file: Path, out: Path, url: str, *, changed: bool, applied: bool) -> str:
    if applied:
        return "the broker has it; agents that run keep their connections"
    start = f"nats-server -c {out / OURS_ONCE}"
    team = f"NATS_URL={url} NATS_KEYS={out / 'keys'} natterjack up {team_file}"
    if not changed:
        return f"nothing changed. A broker that runs with it: {start}"
    return f"start the broker:  {start}\n  (or, if it runs:  the same command with --apply)\nthen the team:     {team}"
