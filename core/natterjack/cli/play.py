"""Playing the demo: a broker, three processes, one question, and the report."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from natterjack import subjects
from natterjack.broker import embed
from natterjack.broker.storelock import StoreLock
from natterjack.bus import Bus, Message
from natterjack.cli.options import operator
from natterjack.cli.supervisor import Supervisor
from natterjack.client import TeamClient
from natterjack.context import AgentContext
from natterjack.coroutines import first_of
from natterjack.dead import read_letter
from natterjack.demo.agents import EDITOR
from natterjack.demo.corpus import Corpus
from natterjack.demo.report import Report
from natterjack.errors import RunFailedError, StartError
from natterjack.events import LiveEvents
from natterjack.messages import Event
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.server import Server
from natterjack.team import Team
from natterjack.team.file import read_team

QUESTION: Final = "How does the with statement work?"
TIMEOUT: Final = 60.0
"""Seconds for the whole pipeline, from the question to the report."""
MODEL_TIMEOUT: Final = 300.0
"""The same, with a model in it."""
ALONE: Final = (
    "none: the researcher searches by itself; `natterjack install natterjack-team-tools` shares a tool server"
)

_PREFIX: Final = "natterjack-demo-"
_NEW: Final = 60.0
"""Seconds after which a demo has surely locked its folder."""

Show = Callable[[str, str], None]
"""Shows who did what."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What is needed to play: where, who, and how to show it.

    Attributes:
        server: A server named by the user; an embedded one of its own otherwise.
        servers: Servers for agents with credentials of their own.
        show: Shows progress.
        log: Shows a line that an agent's process printed.
    """

    show: Show
    log: Show
    server: Server | None = None
    servers: Mapping[str, Server] | None = None


def demo_team(docs: Path | None, plugins: Plugins, model: str | None = None) -> Team:
    """Return the demo's team, without what no plugin brings, and without its editor where no model is named.

    Without a guard, nobody can be held to `writes`; without its kind of tool server, the researcher searches by itself.

    Raises:
        CorpusError: The folder holds nothing to read.
        ConfigError: The model cannot be used.
        PluginError: No plugin brings model agents.
    """
    team = _edited(read_team(Path(str(files("natterjack.demo") / "team.toml"))), plugins, model)
    changes: dict[str, dict[str, Any]] = {name: {} for name in team.agents}
    tools = {name: spec for name, spec in team.tools.items() if spec.kind in plugins.tool_servers}
    searching = team.agents["researcher"].options if tools else {}
    if docs is not None:
        Corpus.from_folder(docs)  # fails here, once, and not in a process that is then restarted
        searching = searching | {"docs": str(docs.resolve())}
        tools = {
            name: spec.model_copy(update={"options": {"corpus": str(docs.resolve())}}) for name, spec in tools.items()
        }
    changes["researcher"] = {"tools": tuple(tools), "options": searching}
    if not plugins.guards:
        open_to_all = {"writes": None, "emits": None, "publishes": None, "asks": None}
        changes = {name: changed | open_to_all for name, changed in changes.items()}
    agents = {name: spec.model_copy(update=changes[name]) for name, spec in team.agents.items()}
    return team.model_copy(update={"agents": agents, "tools": tools})


def _edited(team: Team, plugins: Plugins, model: str | None) -> Team:
    """Return the team with an editor of that model, or with none."""
    agents = dict(team.agents)
    editor, writer = agents.pop(EDITOR), agents["writer"]
    if model is None:
        agents["writer"] = writer.model_copy(update={"asks": ()})
    else:
        options = editor.options | {"model": model}
        plugins.agent(editor.kind).create(options)  # fails here, once, if its key or package is missing
        agents[EDITOR] = editor.model_copy(update={"options": options})
        agents["writer"] = writer.model_copy(update={"options": {"model": model}})
    return team.model_copy(update={"agents": agents})


async def play(question: str, docs: Path | None, stage: Stage, model: str | None = None) -> Report:
    """Run the pipeline once and return the report.

    Args:
        question: The question.
        docs: The folder that is searched; by default the language reference.
        stage: Where, and how to show it.
        model: The model that phrases the short answer; by default none.

    Raises:
        ConfigError: The model cannot be used.
        PluginError: No plugin brings model agents.
        CorpusError: The folder holds nothing to read.
        StartError: An agent does not start, or the broker goes.
        RunFailedError: An agent gave up.
    """
    plugins = Plugins.load()
    team = demo_team(docs, plugins, model)
    async with _server(stage) as server, operator(server) as bus:
        supervisor = Supervisor(team, server, stage.log, servers=stage.servers)
        try:
            await provision(bus, team, plugins, context=AgentContext(team.context))
            await supervisor.start()
            pids = ", ".join(f"{child.label} {child.process.pid}" for child in supervisor.children if child.process)
            count = ("three", "four", "five")[len(supervisor.children) - 3]
            stage.show("team", f"{count} processes are ready: {pids}")
            if not team.tools:
                stage.show("tools", ALONE)
            return await _ask(bus, question, supervisor, stage.show, TIMEOUT if model is None else MODEL_TIMEOUT)
        finally:
            await supervisor.stop()


@asynccontextmanager
async def _server(stage: Stage) -> AsyncIterator[Server]:
    if stage.server is not None:
        stage.show("broker", f"using {stage.server}")
        yield stage.server
        return
    await asyncio.to_thread(clear_up)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder:
        async with await embed(Path(folder)) as broker:
            stage.show("broker", f"nats-server is ready on {broker.url}")
            yield Server(broker.url)


def clear_up() -> None:
    """Remove the folders of demos that were killed: this user's, not new, and locked by no process."""
    user = getattr(os, "getuid", int)()
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # e.g. another demo removes it, too
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or time.time() - found.st_mtime < _NEW:
                continue
            if lock := StoreLock.acquire(folder):
                shutil.rmtree(folder, ignore_errors=True)
                lock.release()


async def _ask(bus: Bus, question: str, supervisor: Supervisor, show: Show, timeout: float) -> Report:
    """Emit the question, and follow the events until the report, or until somebody gives up."""
    client = TeamClient(bus, AgentContext())
    given_up: asyncio.Future[Report] = asyncio.get_running_loop().create_future()

    async def on_dead(message: Message) -> None:
        letter = read_letter(message)
        if not given_up.done():
            given_up.set_exception(RunFailedError(letter.run, f"{letter.agent}: {letter.cause}"))

    async def supervise() -> Report:
        await supervisor.wait()
        msg = "the agents ended before the report was written"
        raise StartError(msg)

    dead = await bus.subscribe(subjects.dead("*", "*", "feed.dead"), on_dead)
    async with client.event_bus.subscribe() as events:
        await client.event_bus.emit("research.start", {"question": question})
        try:
            async with asyncio.timeout(timeout) as limit:
                report: Report = await first_of(_report(events, show), supervise(), given_up)
        except TimeoutError as error:
            if not limit.expired():
                raise
            msg = f"no report after {timeout:.0f} s"
            raise StartError(msg) from error
        finally:
            await dead.unsubscribe()
        return report


async def _report(events: LiveEvents, show: Show) -> Report:
    async for event in events:
        show(*_told(event))
        if event.type == "report.complete":
            return Report.model_validate(event.data)
    msg = "the events ended"  # they never do by themselves
    raise StartError(msg)


def _told(event: Event) -> tuple[str, str]:
    """Return who emitted an event, and what it says."""
    data = event.data
    texts: dict[str, Callable[[], str]] = {
        "research.start": lambda: f"asks: {data['question']}",
        "research.complete": lambda: (
            f"round {data['round']}: found {_counted(data['passages'], 'passage', 'passages')} in {data['corpus']}"
            f" by {_counted(len(data['queries']), 'query', 'queries')}"
            + (f" to {data['searched_by']}" if data.get("searched_by") else "")
        ),
        "research.more": lambda: f"quality {data['quality']}/5: asks for more research on {', '.join(data['missing'])}",
        "analysis.approved": lambda: (
            f"quality {data['quality']}/5: {'approved' if data['answerable'] else 'the corpus cannot answer this'}"
        ),
        "report.complete": lambda: (
            f"wrote the report: {_counted(data['citations'], 'citation', 'citations')}"
            f" of {_counted(len(data['passages']), 'passage', 'passages')}"
            + (f"; {len(data['phrases'])} by the model {data['model']}" if data["model"] else "")
            + (f", {data['dropped']} of its sentences left out" if data["dropped"] else "")
        ),
    }
    told = texts.get(event.type)
    return event.source, f"{told() if told else event.type}"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
