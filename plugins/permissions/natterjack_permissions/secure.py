"""`natterjack secure`: from a team file to a broker where each principal has an account and a key of its own."""

from __future__ import annotations

import asyncio
import difflib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Final

import typer

from natterjack import BrokerError, read_team
from natterjack_permissions.authority import URL, Authority, authority, checked, known_url
from natterjack_permissions.broker import TLS, port_of
from natterjack_permissions.folder import held
from natterjack_permissions.keys import OURS_ONCE
from natterjack_permissions.mint import KEYS, NEXT_SIGNER, ROTATED
from natterjack_permissions.plan import Mode, Plan, planned
from natterjack_permissions.tls import Certificates

app = typer.Typer(name="secure")
_LOGINS: Final = (".nk", ".creds", ".pem")
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
    found, url = authority(read_team(team_file)), checked(url) if url else known_url(out)
    with nullcontext() if check else held(out):
        plan = planned(found, out, url, rotate or (), hosts=host or (), mode=mode, tls=tls, tokens=tokens)
        if check:
            raise typer.Exit(1 if _show(plan, as_json=as_json) else 0)
        servers = plan.apply() if apply else []
        if not apply:
            plan.put()
    if as_json:
        typer.echo(json.dumps({"written": sorted(plan.changed), "reloaded": servers}))
        return
    for line in (*_done(plan, servers), *_port(out, url), *_left(out / KEYS, found)):
        typer.echo(line)
    typer.echo(_next_step(team_file, out, url, changed=bool(plan.changed), applied=bool(servers)))


def _show(plan: Plan, *, as_json: bool) -> bool:
    """Show what would change, and what the running broker has not taken; return whether there is anything."""
    ending = plan.certificates.ending() if plan.certificates else []
    pending, unasked = (None, "") if plan.changed else _pending(plan)
    if as_json:
        typer.echo(json.dumps({"changes": sorted(plan.changed), "ending": ending, "pending": pending}))
        return bool(plan.changed or pending)
    for line in (*ending, *([f"the broker was not asked whether it has all of it: {unasked}"] if unasked else [])):
        typer.echo(f"note: {line}")
    for name, (before, after) in sorted(plan.changed.items()):
        typer.echo(f"{'would change' if before else 'would write'}  {plan.out / name}")
        for line in _differences(before, after) if before else ():
            typer.echo(f"    {line}")
    for name in pending or ():
        typer.echo(f"not applied   {name}: the running broker goes by something else")
    if not plan.changed:
        typer.echo("no file would change, but --apply is due" if pending else "nothing would change")
    return bool(plan.changed or pending)


def _pending(plan: Plan) -> tuple[list[str] | None, str]:
    """Return what the running broker has not taken; or why it was not asked."""
    try:
        return asyncio.run(plan.pending()), ""
    except BrokerError as error:
        return None, str(error)


def _differences(before: str, after: str) -> Iterator[str]:
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0):
        if not line.startswith(("---", "+++", "@@")):
            yield line


def _done(plan: Plan, servers: Iterable[str]) -> Iterator[str]:
    for name in sorted(plan.changed):
        yield f"{'wrote  ' if (plan.out / name).exists() else 'removed'}  {plan.out / name}"
    yield from (f"reloaded  {name}" for name in servers)
    yield from (f"note: {line}" for line in _advice(plan.out, plan.certificates))


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
