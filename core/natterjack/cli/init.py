"""`init`: a team to begin with."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Final

import typer

from natterjack.cli.exits import CommandError
from natterjack.cli.output import write

_TEAM: Final = """\
# A team of agents. `natterjack up` starts it; `natterjack doctor` tells what is wrong.

[team]
name = "{name}"
external = ["visitor.arrived"]      # events that come from outside the team

[context]                           # state that all agents share, to begin with
visitors = []

[agents.greeter]
kind = "agents:Greeter"             # class Greeter in agents.py
on = ["visitor.arrived"]            # events that wake it
emits = ["visitor.*"]               # events that it may emit
writes = ["visitors"]               # keys of the shared state that it may write
"""

_AGENTS: Final = '''\
"""The team's agents."""

from natterjack import Agent, Event, RunContext


class Greeter(Agent):
    """Greets visitors, and remembers them."""

    async def handle(self, event: Event, ctx: RunContext) -> str:
        """Called for each event that `on` names; it is stored, and given again if this fails."""
        name = event.data.get("name", "stranger")
        await ctx.shared.update("visitors", lambda visitors: [*(visitors or []), name])
        await ctx.emit("visitor.greeted", {"name": name})
        return f"Hello, {name}!"

    async def answer(self, question: str, ctx: RunContext) -> str:
        """Called for each question: `natterjack ask greeter "Who was here?"`."""
        visitors = ctx.shared.get("visitors", [])
        return f"{len(visitors)} so far: {', '.join(visitors)}" if visitors else "Nobody yet."
'''

_TEST: Final = '''\
"""The team's tests: `pip install pytest pytest-asyncio`, then `pytest`."""

import asyncio

import pytest
from agents import Greeter

from natterjack import AgentProcess, AgentRuntime, EventTrigger


@pytest.mark.asyncio
async def test_greeter_remembers_whom_it_greeted(nats_server) -> None:
    """`nats_server` is a real broker for tests; it comes with Natterjack."""
    runtime = AgentRuntime(nats_server.url)
    runtime.add_process(AgentProcess("greeter", agent=Greeter, triggers=[EventTrigger("visitor.arrived")]))
    async with runtime, asyncio.timeout(10):
        async with runtime.event_bus.subscribe("visitor.greeted") as greetings:
            await runtime.event_bus.emit("visitor.arrived", {"name": "Ada"})
            greeting = await anext(greetings)
        assert greeting.data == {"name": "Ada"}
        assert await runtime.ask_peer("greeter", "Who was here?") == "1 so far: Ada"
'''


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", show_default=False, help="Where; here by default.")
    ] = Path(),
) -> None:
    """Write a small team: team.toml, agents.py and a test."""
    name = _team_name(folder)
    files = {"team.toml": _TEAM.format(name=name), "agents.py": _AGENTS, "test_agents.py": _TEST}
    present = [file for file in files if (folder / file).exists()]
    if present:
        msg = f"{folder / present[0]} is there already, and nothing was written; name another folder"
        raise CommandError(msg)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"{str(folder)!r} cannot be written: {error}"
        raise CommandError(msg) from error
    write(f"wrote {', '.join(str(folder / file) for file in files)}\n\nNext:")
    for line in _next_commands(folder):
        write(f"  {line}")


def _team_name(folder: Path) -> str:
    """Return the folder's name as a team's name."""
    return re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")[:64] or "team"


def _next_commands(folder: Path) -> list[str]:
    enter = [] if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    return [
        *enter,
        "natterjack up",
        'natterjack emit visitor.arrived \'{"name": "Ada"}\'     # in another terminal',
        'natterjack ask greeter "Who was here?"',
    ]
