"""Options and arguments that commands share, and what becomes of them: a server, a team, a payload."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer

from natterjack import codec
from natterjack.broker import DEFAULT_STORE, running_url
from natterjack.bus import Bus
from natterjack.cli.exits import CommandError, ExitCode
from natterjack.client import TeamClient, connect
from natterjack.errors import ConfigError, RefusedError, nearest
from natterjack.record import known_team, stored_team
from natterjack.server import API_PREFIX, Server, named_server
from natterjack.subjects import OPERATOR, check_name
from natterjack.team import Team
from natterjack.team.file import read_team

TEAM_FILE: Final = Path("team.toml")
AS: Final = "NATTERJACK_AS"
"""The environment variable that says as which user of the team a command acts."""

ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="URL", help="The NATS server; by default NATS_URL, or the broker of this folder."),
]
NatsContextOption = Annotated[
    str | None, typer.Option("--nats-context", metavar="NAME", help="A context of the nats command line.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="How long to wait.")]
CountOption = Annotated[
    int | None, typer.Option("--count", "-n", metavar="N", min=1, help="End after so many; by default at Ctrl-C.")
]
DataArgument = Annotated[
    str | None, typer.Argument(metavar="DATA", help="JSON, or else text; `-` reads standard input.")
]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="From then on: 90s, 10m, 2h or 7d ago, or 2026-05-01T08:00."),
]
StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", help="The embedded broker's folder.")]


def chosen(url: str | None, nats_context: str | None, default: str | None = None) -> Server | None:
    """Return the server that the options name, or else the environment or `default`; None where nothing does.

    Raises:
        ConfigError: The context does not exist, or a URL is none.
    """
    return _of_nats_context(nats_context) if nats_context and not url else named_server(url, default)


def _of_nats_context(name: str) -> Server:
    """Return the server of a context of the `nats` command line tool.

    Raises:
        ConfigError: There is no such context; it names the nearest one.
    """
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "nats" / "context"
    path = folder / f"{name}.json"
    if not path.is_file():
        known = [file.stem for file in folder.glob("*.json")]
        msg = f"there is no nats context {name!r}.{nearest(name, known)} `nats context ls` shows them."
        raise ConfigError(msg)
    try:
        found = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        msg = f"{path} is not valid JSON: {error}"
        raise ConfigError(msg) from error
    names = ("token", "user", "password", "nkey", "creds", "ca", "cert", "key")
    given = {key: found[key] for key in names if found.get(key)}
    return Server(
        found.get("url") or "nats://127.0.0.1:4222", prefix=found.get("jetstream_api_prefix") or API_PREFIX, **given
    )


def find_server(url: str | None, nats_context: str | None, *, team_file: Path = TEAM_FILE) -> Server:
    """Return the server to use, and never start one.

    Looked for in this order: `--server`, `--nats-context`, NATS_URL, the team file, the embedded broker that runs
    in this folder.

    Raises:
        CommandError: There is none; it says what to do.
        ConfigError: One is named wrongly.
    """
    found = chosen(url, nats_context)
    if found is None and team_file.is_file():
        found = named_server(default=read_team(team_file).server)
    if found is None and (running := running_url()):
        found = Server(running)
    if found is None:
        msg = (
            f"no broker is named, and none runs in {str(DEFAULT_STORE)!r} of this folder; start one with "
            "`natterjack up team.toml` or `natterjack broker run`, or name one with --server or NATS_URL"
        )
        raise CommandError(msg, ExitCode.UNREACHABLE)
    return found


def user() -> str:
    """Return as whom the command acts: by default as the operator.

    Raises:
        InvalidNameError: It is no name.
    """
    named = os.environ.get(AS) or OPERATOR
    return named if named == OPERATOR else check_name(named, "user")


@asynccontextmanager
async def joined(url: str | None, nats_context: str | None, *, context: bool = False) -> AsyncIterator[TeamClient]:
    """Join the team of the server that the options name; with the shared context only on demand."""
    async with connect(find_server(url, nats_context), name=user(), context=context) as client:
        yield client


@asynccontextmanager
async def overseeing(url: str | None, nats_context: str | None) -> AsyncIterator[TeamClient]:
    """Join the team of the server that the options name, to see or decide what is of all.

    Raises:
        RefusedError: The broker lets operators alone do that, and the team says that this one is none.
    """
    async with joined(url, nats_context) as client:
        try:
            yield client
        except RefusedError as error:
            bus = client.bus
            if bus.server.attests and bus.principal != OPERATOR and (known := await known_team(bus)):
                _check_operator(bus, known, error)
            raise


@asynccontextmanager
async def operator(server: Server, team: Team | None = None) -> AsyncIterator[Bus]:
    """Connect as the operator, or as an operator by name.

    Args:
        server: Where.
        team: What says who is one, where no team is provisioned yet; by default the broker alone.

    Raises:
        RefusedError: The team says that this one is none.
    """
    bus = await Bus.connect(server, principal=user())
    try:
        if bus.principal != OPERATOR and (known := await _known_team(bus) or team):
            _check_operator(bus, known)
        yield bus
    finally:
        await bus.close()


async def _known_team(bus: Bus) -> Team | None:
    """Return the team that is provisioned, as somebody who may be an operator."""
    try:
        bus.operates = True
        return await known_team(bus)
    except RefusedError:  # the broker says that it is none; the team says why
        bus.operates = False
        return await known_team(bus)


def _check_operator(bus: Bus, team: Team, cause: Exception | None = None) -> None:
    """Check what a team says of who acts; of who is not in it the broker alone decides."""
    who = bus.principal
    table = next((each for each in ("agents", "tools", "users") if who in getattr(team, each)), None)
    if table and who not in team.operators:
        may = ", ".join(map(repr, [OPERATOR, *team.operators]))
        reason = f"that is for {may}. A user may with `operator = true`. ({team.place(who, table=table)})"
        bus.audit.refused("operate", team.name, reason)
        msg = f"{who!r} may not look after the team: {reason}"
        raise RefusedError(msg) from cause


async def check_agent(client: TeamClient, name: str) -> Team:
    """Return the team that is provisioned, or raise `UnknownAgentError` if it has no agent of that name."""
    team = await stored_team(client.bus)
    team.agent(name)
    return team


_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def read_since(text: str | None) -> datetime | None:
    """Return the moment that a `--since` names; a time without a zone is a local one.

    Raises:
        BadParameter: It names none.
    """
    if text is None:
        return None
    try:
        if text[-1:] in _UNITS:
            return datetime.now(UTC) - _span(text)
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        msg = f"{text!r} is no time; write how long ago, e.g. 90s, 10m, 2h, 7d, or a time such as 2026-05-01T08:00"
        raise typer.BadParameter(msg, param_hint="--since") from error


def _span(text: str) -> timedelta:
    return timedelta(**{_UNITS[text[-1]]: float(text[:-1])})


def read_span(text: str) -> float:
    """Return how many seconds a text such as `90s`, `30m`, `12h` or `30d` says; a bare number is of seconds.

    Raises:
        ConfigError: It says none.
    """
    try:
        return _span(text if text[-1:] in _UNITS else f"{text}s").total_seconds()
    except (ValueError, OverflowError) as error:
        msg = f"{text!r} is no time; write e.g. 90s, 30m, 12h or 30d"
        raise ConfigError(msg) from error


def read_payload(text: str | None) -> Any:
    """Return the value of a DATA argument.

    Raises:
        PayloadError: It is not UTF-8, or nests too deeply.
    """
    if text is None:
        return None
    if text == "-":
        return codec.decode(sys.stdin.buffer.read().removesuffix(b"\n"))
    return codec.decode(os.fsencode(text))


def read_text(text: str) -> str:
    """Return the text of an argument; `-` reads standard input."""
    if text == "-":
        return codec.decode_text(sys.stdin.buffer.read().removesuffix(b"\n"))
    return codec.decode_text(os.fsencode(text))
