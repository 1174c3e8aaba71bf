"""`natterjack secure`: from a team file to a broker where each principal has an account and a key of its own."""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from natterjack import ConfigError, read_team
from natterjack_permissions.authority import Authority, authority
from natterjack_permissions.keys import keep, path_of, public
from natterjack_permissions.mint import Mint
from natterjack_permissions.pushes import push
from natterjack_permissions.reload import reload

app = typer.Typer(name="secure")


class Mode(StrEnum):
    """How servers know who may do what."""

    STATIC = "static"
    OPERATOR = "operator"


URL: Final = "nats://127.0.0.1:4222"
OURS_ONCE: Final = "nats-server.conf"
"""What is written where it is not there, and left alone then."""


@app.command()
def secure(
    team_file: Annotated[Path, typer.Argument(metavar="TEAM", help="The team file.")] = Path("team.toml"),
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where keys and configuration go.")] = Path(
        "secure"
    ),
    url: Annotated[str, typer.Option("--url", metavar="URL", help="Where clients reach the broker.")] = URL,
    mode: Annotated[
        Mode | None,
        typer.Option(
            "--mode",
            help="How servers know who may do what: by their configuration, or by tokens that an operator signs, for"
            " agents that come and go while it runs. By default as the folder is, and static if it is new.",
        ),
    ] = None,
    rotate: Annotated[
        list[str] | None, typer.Option("--rotate", metavar="NAME", help="Give this principal another key; repeatable.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Show what would change; exit with 1 if anything.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Have the running broker take it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Make a broker where each agent may do exactly what the team file says, and what is not said is denied.

    The same team and keys give the same files. Keys stay as they are; those of new agents are made.
    """
    found = authority(read_team(team_file))
    mint = minted(found, out, url, rotate or []) if in_operator_mode(out, mode) else None
    changed = mint.differences() if mint else _changed(found, out, url, rotate or [])
    if check:
        _show(changed, out, as_json=as_json)
        raise typer.Exit(1 if changed else 0)
    if mint:
        mint.write()
        servers = asyncio.run(push(url, mint))[0] if apply else []
    else:
        write(found, out, url, rotate or [])
        servers = asyncio.run(reload(url, path_of(out / "keys", "sys"))) if apply else []
    if as_json:
        typer.echo(json.dumps({"written": sorted(changed), "reloaded": servers}))
        return
    for name in sorted(changed):
        typer.echo(f"wrote  {out / name}")
    for name in servers:
        typer.echo(f"reloaded  {name}")
    typer.echo(_next_step(out, url, changed=bool(changed), applied=bool(servers)))


def write(found: Authority, out: Path, url: str, rotate: list[str] | None = None) -> None:
    """Write keys and configuration.

    Args:
        found: Who may do what.
        out: The folder.
        url: Where clients reach the broker.
        rotate: Who gets another key.
    """
    _check_names(found, rotate or [])
    keys = keep(out / "keys", found.principals, rotate or [])
    for name, (_, text) in _differing(found, out, url, keys).items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


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


def minted(found: Authority, out: Path, url: str, rotate: list[str]) -> Mint:
    """Return what would be written in operator mode."""
    _check_names(found, rotate)
    mint = Mint(out)
    mint.team(found.accounts, rotate)
    for name, text in found.files(out.resolve(), url, None).items():
        if name != OURS_ONCE or mint.text(name) is None:
            mint.put(name, text)
    return mint


def _check_names(found: Authority, rotate: list[str]) -> None:
    for name in rotate:
        if name not in found.principals:
            msg = f"{name!r} has no key here, so none to rotate; there are {', '.join(found.principals)}"
            raise ConfigError(msg)


def _changed(found: Authority, out: Path, url: str, rotate: list[str]) -> dict[str, tuple[str, str]]:
    """Return what would be written: by name, what there is and what there would be; of keys, nothing is shown."""
    _check_names(found, rotate)
    paths = {name: path_of(out / "keys", name) for name in found.principals}
    new = {name for name, path in paths.items() if name in rotate or not path.exists()}
    keys = {name: f"<a new key of {name}>" if name in new else public(path) for name, path in paths.items()}
    made = {str(paths[name].relative_to(out)): ("", "") for name in new}
    return made | _differing(found, out, url, keys)


def _differing(found: Authority, out: Path, url: str, keys: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the files that are not as they would be: by name, what there is and what there would be."""
    differing = {}
    for name, text in found.files(out.resolve(), url, keys).items():
        path = out / name
        before = path.read_text() if path.exists() else None
        if before != text and not (name == OURS_ONCE and before is not None):
            differing[name] = before or "", text
    return differing


def _show(changed: Mapping[str, tuple[str, str]], out: Path, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"changes": sorted(changed)}))
        return
    for name, (before, after) in sorted(changed.items()):
        typer.echo(f"{'would change' if before else 'would write'}  {out / name}")
        for line in _differences(before, after) if before else ():
            typer.echo(f"    {line}")
    typer.echo("nothing would change" if not changed else "")


def _differences(before: str, after: str) -> Iterator[str]:
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0):
        if not line.startswith(("---", "+++", "@@")):
            yield line


def _next_step(out: Path, url: str, *, changed: bool, applied: bool) -> str:
    if applied:
        return "the broker has it; agents that run keep their connections"
    start = f"nats-server -c {out / OURS_ONCE}"
    team = f"NATS_URL={url} NATS_KEYS={out / 'keys'} natterjack up team.toml"
    if not changed:
        return f"nothing changed. A broker that runs with it: {start}"
    return f"start the broker:  {start}\n  (or, if it runs:  the same command with --apply)\nthen the team:     {team}"
