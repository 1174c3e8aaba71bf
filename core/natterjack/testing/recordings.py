"""Runs that were recorded: what an agent did once, it is to do again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from natterjack import codec
from natterjack.bus import Bus
from natterjack.components import Agent, Entry
from natterjack.journal import ENDINGS, SLEEP, STEP, WAITING, StreamJournal
from natterjack.messages import Event
from natterjack.plugins import Plugins
from natterjack.process import AgentProcess, TeamProcess
from natterjack.runs import RunContext
from natterjack.runtime import AgentRuntime
from natterjack.server import Server
from natterjack.subjects import OPERATOR
from natterjack.team import AgentSpec
from natterjack.testing.servers import NatsServer
from natterjack.tickets import Ticket, leave

PATIENCE = 30.0
"""Seconds that a replay may take."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One run that is done, as its journal has it.

    Attributes:
        agent: Whose.
        run: Its id.
        made_by: Kind and options of the agent, as a team file has them.
        entries: What it journaled.
    """

    agent: str
    run: str
    made_by: Mapping[str, Any]
    entries: list[Entry]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `natterjack runs export` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        agent, run = found["agent"], found["run"]
        return cls(agent, run, found["made_by"], [Entry(agent, run, **entry) for entry in found["entries"]])

    @property
    def calls(self) -> list[str]:
        """The calls that its handler made, e.g. `step price`: in their order, or if several tasks made them, sorted."""
        made = {each.data["position"]: _told(each.kind, each.data.get("name", "")) for each in self._made()}
        if self.branched:
            return sorted(made.values())
        return [made[position] for position in sorted(made, key=int)]

    @property
    def branched(self) -> bool:
        """Whether several tasks made them: then their order differs each time."""
        return any("." in each.data["position"] for each in self._made())

    def _made(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind in (STEP, SLEEP, WAITING)]

    @property
    def waits(self) -> list[str]:
        """Types of the events for which it waited."""
        return sorted({entry.data["name"] for entry in self.entries if entry.kind == WAITING})

    @property
    def result(self) -> Any:
        """What its handler returned."""
        return self.entries[-1].data["result"]


def _told(kind: str, name: str) -> str:
    return f"{kind} {name}".rstrip()


@dataclass(slots=True)
class Replay:
    """What an agent does when a recorded run is replayed.

    Attributes:
        calls: The calls that its handler made, as in `Recording.calls`.
        result: What it returned, as JSON gives it back.
        error: What it raised instead.
    """

    calls: list[str] = field(default_factory=list)
    result: Any = None
    error: BaseException | None = None


async def replay(server: NatsServer, recording: Recording, agent: Agent | None = None) -> Replay:
    """Have an agent handle the event of a recorded run again; each step returns what was recorded, and does nothing.

    What the handler does outside of steps is done, on this server: there is nobody whom it could ask, and the shared
    context is empty.

    Example::

        recording = Recording.load(Path("run.json"))
        replayed = await replay(own_server, recording)
        assert replayed.calls == recording.calls
        assert replayed.result == recording.result

    Args:
        server: Where it happens, e.g. the fixture `own_server`.
        recording: The run.
        agent: Who does it; by default one is made as it was in the team of the recorded run.

    Raises:
        ConfigError: The agent cannot be made.
        TimeoutError: Its handler does not end.
    """
    spec = AgentSpec.model_validate(recording.made_by)
    plugins = Plugins.load()
    player = _Player(agent or TeamProcess(recording.agent, spec, plugins).make_agent(plugins))
    runtime = AgentRuntime(server.url)
    runtime.add_process(AgentProcess(recording.agent, agent=player, waits=recording.waits, max_attempts=100))
    async with runtime:
        bus = await Bus.connect(Server(server.url), principal=OPERATOR)
        try:
            journal = StreamJournal().attach(bus)
            for entry in recording.entries:
                if entry.kind not in ENDINGS:
                    await journal.write(entry)
            await leave(bus, recording.agent, Ticket(recording.run, 0.0))
            async with asyncio.timeout(PATIENCE):
                await player.ended.wait()
        finally:
            await bus.close()
    replayed = player.replayed
    if recording.branched:
        replayed.calls.sort()
    return replayed


class _Player(Agent):
    """The agent, whose calls are noted."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self._agent = agent
        self.replayed, self.ended = Replay(), asyncio.Event()

    async def start(self) -> None:
        await self._agent.start()

    async def stop(self) -> None:
        await self._agent.stop()

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        replayed = Replay()
        try:
            result = await self._agent.handle(event, _Noted(ctx, replayed.calls))
            replayed.result = codec.decode(codec.encode(result))
        except BaseException as error:
            replayed.error = error
            raise
        finally:
            self.replayed = replayed
            self.ended.set()
        return result


class _Noted(RunContext):
    """A run in which only what was recorded is there."""

    def __init__(self, ctx: RunContext, calls: list[str]) -> None:
        self.__dict__.update(vars(ctx))
        self._calls = calls

    def step(self, name: str, *_: Any, **__: Any) -> Coroutine[Any, Any, Any]:
        def refuse() -> None:
            msg = f"the recorded run had no step {name!r} here"
            raise AssertionError(msg)

        self._calls.append(_told(STEP, name))
        return super().step(name, refuse)

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        self._calls.append(SLEEP)
        return super().sleep(seconds)

    def wait_for(self, type: str, **options: Any) -> Coroutine[Any, Any, Event]:
        self._calls.append(_told(WAITING, type))
        return super().wait_for(type, **options)
