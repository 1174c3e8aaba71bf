"""`up`: a whole team on this machine, with a broker if none is named."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from natterjack.broker import Broker, embed
from natterjack.cli.advice import warnings
from natterjack.cli.exits import CommandError, ExitCode
from natterjack.cli.options import TEAM_FILE, NatsContextOption, ServerOption, chosen, operator, user
from natterjack.cli.output import clean, write
from natterjack.cli.provision import provisioned
from natterjack.cli.reload import Reloader, check_installed
from natterjack.cli.run import renewing, run, show_logs, stopping
from natterjack.cli.shares import Shares
from natterjack.cli.supervisor import Supervisor
from natterjack.cli.wiring import import_runtime, is_file
from natterjack.coroutines import first_of
from natterjack.errors import NatterjackError
from natterjack.plugins import Plugins
from natterjack.runtime import AgentRuntime, TeamRuntime
from natterjack.server import Server
from natterjack.service import discover
from natterjack.subjects import OPERATOR
from natterjack.team import Team, check_team
from natterjack.team.file import read_team

log = logging.getLogger("natterjack.up")

_COLORS: Final = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")


def up(
    team: Annotated[str, typer.Argument(metavar="TEAM", help="A team file, or MODULE:NAME of an AgentRuntime.")] = str(
        TEAM_FILE
    ),
    *,
    single_process: Annotated[
        bool, typer.Option("--single-process", help="All agents in this process, instead of one for each.")
    ] = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="Renew agents when their code or the team file changes.")
    ] = False,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
) -> None:
    """Start a team and keep it running until Ctrl-C; without a server, with a broker of its own.

    SIGHUP has it read the team file again and replace its processes one after another, while others go on.
    """
    if reload:
        if single_process or not is_file(team):
            msg = "agents are renewed one by one, so each needs a process of its own: name a team file alone"
            raise typer.BadParameter(msg, param_hint="--reload")
        check_installed()
    runtime = None if is_file(team) else import_runtime(team)
    described = read_team(Path(team)) if runtime is None else runtime.team
    plugins = Plugins.load()
    if runtime is None:
        check_team(described, plugins)  # before anything starts
        _make_importable(Path(team).resolve().parent)
    if single_process or runtime is not None:
        show_logs()
    if runtime is None:
        named = chosen(server, nats_context, described.server)
    else:
        named = runtime.choose_server(chosen(server, nats_context) if server or nats_context else None)
    options = Options(Path(team), nats_context, single_process=single_process, reload=reload)
    run(_up(described, runtime, named, plugins, options))


def _make_importable(folder: Path) -> None:
    """Let agents be imported that lie beside the team file, here and in the processes of agents."""
    sys.path.insert(0, str(folder))
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for.

    Attributes:
        path: The team file, if it is one.
        nats_context: Name of the context that says where the server is.
        single_process: All agents in one process.
        reload: Watch files.
    """

    path: Path
    nats_context: str | None
    single_process: bool
    reload: bool


async def _up(team: Team, runtime: AgentRuntime | None, named: Server | None, plugins: Plugins, asked: Options) -> None:
    with stopping() as stop:
        async with _broker(named) as (server, broker):
            _announce(team, server, broker, asked.nats_context)
            if asked.single_process and runtime is None:
                runtime = TeamRuntime(team, server, plugins)
            if runtime is not None:
                runtime.choose_server(server, user())
            serving = (
                _serve_here(runtime) if runtime is not None else _serve_processes(team, server, plugins, asked, stop)
            )
            beside: list[Awaitable[Any]] = [broker.wait_lost()] if broker else []
            if server.of(user()).attests:
                beside.append(_enforce_shares(server))
            ended = await first_of(serving, stop.wait(), *beside)
            if isinstance(ended, str):
                raise CommandError(ended, ExitCode.UNREACHABLE)
            _say("stopped", "all agents have ended")


@asynccontextmanager
async def _broker(named: Server | None) -> AsyncIterator[tuple[Server, Broker | None]]:
    """Give the named server, or else that of a broker which this process owns or joins."""
    if named is not None:
        yield named, None
        return
    async with await embed() as broker:
        yield Server(broker.url), broker


async def _serve_here(runtime: AgentRuntime) -> None:
    began = time.monotonic()
    async with runtime:
        _say_ready(len(runtime.team.agents), began)
        await runtime.wait()


async def _serve_processes(team: Team, server: Server, plugins: Plugins, asked: Options, stop: asyncio.Event) -> None:
    began = time.monotonic()
    await _warn_of_others(team, server)
    await provisioned(team, server, plugins)
    supervisor = Supervisor(team, server, _Prefixed(team))
    with renewing(stop) as renew:
        try:
            await supervisor.start()
            ready = partial(_say_ready, sum(child.agent in team.agents for child in supervisor.children), began)
            again = partial(provisioned, server=server, plugins=plugins)
            reloader = Reloader(asked.path, team, plugins, supervisor, again, partial(_say, "reload"))
            if not asked.reload:
                ready()
            watching = [reloader.run(ready)] if asked.reload else []
            await first_of(supervisor.wait(), reloader.renew_on(renew), *watching)
        finally:
            await asyncio.shield(supervisor.stop())


async def _enforce_shares(server: Server) -> None:
    """See to it that no agent fills the streams for others, as long as that can be done."""
    try:
        async with operator(server) as bus:
            await Shares(bus).enforce()
    except NatterjackError as error:
        log.error("nobody looks any more at who fills the team's streams: %s", error)  # noqa: TRY400 - it is told whole
    await asyncio.Event().wait()


async def _warn_of_others(team: Team, server: Server) -> None:
    """Say which agents of this team run already: started twice is no harm, and seldom meant."""
    try:
        async with operator(server) as bus:
            others = Counter(info.name for info in await discover(bus, team.agents) if info.name in team.agents)
    except NatterjackError as error:  # who may not look around may still start a team
        log.debug("cannot tell who runs already: %s", error)
        return
    if others:
        told = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in sorted(others.items()))
        _say("warning", f"already running elsewhere: {told}; the processes of both share the work, like replicas")


# What it prints


def _announce(team: Team, server: Server, broker: Broker | None, nats_context: str | None) -> None:
    _say("broker", f"{server} ({_whose(broker)})")
    for warning in warnings(team):
        _say("warning", warning)
    _say("team", f"{team.name}: {', '.join(team.agents)}")
    if team.tools:
        _say("tools", ", ".join(team.tools))
    if example := example_command(team, server, nats_context):
        if "$NATS_URL" in example and broker is not None:
            _say("try", 'eval "$(natterjack broker env)"   # once in that shell: the address holds a token')
        _say("try", example)


def _whose(broker: Broker | None) -> str:
    if broker is None:
        return "joined: it was named"
    if broker.owned:
        return f"embedded, ends with this command; its data is in {str(broker.store)!r}"
    return f"joined: another process owns it, and this command ends with it; its data is in {str(broker.store)!r}"


def example_command(team: Team, server: Server, nats_context: str | None = None) -> str:
    """Return a command that gives the team something to do; no secret is in it.

    It is one of the nats tool, but where each principal has a key: there it is of the one who starts the team.
    """
    emitted = {pattern for spec in team.agents.values() for pattern in spec.emitted}
    awaited = team.heard("emit")
    external = [*team.outside, *(pattern for pattern in awaited if pattern not in emitted), *awaited]
    if not external:
        return ""
    event = external[0].replace("*", "example").replace(">", "example")
    if server.keys:
        named = "" if user() == OPERATOR else f" --as {user()}"
        return f"natterjack{named} emit {event} '{{}}' --server " + (
            str(server) if str(server) == server.url else '"$NATS_URL"'
        )
    if nats_context:
        where = f"--context {nats_context}"
    else:
        where = f"--server {server}" if str(server) == server.url else '--server "$NATS_URL"'
    return f"nats {where} pub events.{event} '{{}}'"


def _say(word: str, text: str) -> None:
    style = {"warning": "yellow", "ready": "green"}.get(word)
    label = f"{word:8}"
    write(f"{typer.style(label, fg=style) if style and sys.stdout.isatty() else label} {clean(text)}")


def _say_ready(count: int, began: float) -> None:
    agents = "1 agent" if count == 1 else f"{count} agents"
    _say("ready", f"{agents} in {time.monotonic() - began:.1f} s; Ctrl-C stops")


class _Prefixed:
    """Shows what the agents' processes print, each line with its agent's name."""

    def __init__(self, team: Team) -> None:
        self._width = max(map(len, team.processes), default=0)
        self._colors = dict(zip(team.processes, _COLORS * (len(team.processes) // len(_COLORS) + 1), strict=False))

    def __call__(self, label: str, line: str) -> None:
        prefix = f"{label:{self._width}} |"
        if sys.stdout.isatty():
            prefix = typer.style(prefix, fg=self._colors.get(label.partition("/")[0]))
        write(f"{prefix} {clean(line)}")
