"""A whole team whose agents may do exactly what their components need, by plain subject permissions and by accounts.

Every agent has a user of its own, with the permissions that provisioning would grant; or an account of its own, as
`natterjack secure` makes it. All of the kernel must work with them, and what is not granted must fail at once, even
where no guard of ours stands before it.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from natterjack import (
    PeerRefusedError,
    RefusedError,
    Right,
    RunFailedError,
    TeamClient,
    Trigger,
    TriggerContext,
    connect,
)
from natterjack.bus import Bus
from natterjack.context import AgentContext
from natterjack.dead import DeadLetter, dead_letters, retry
from natterjack.events import EventBus
from natterjack.guards import Guards
from natterjack.host import AgentHost
from natterjack.needs import agent_permissions
from natterjack.peers import Peers
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.runtime import start_agent
from natterjack.server import Server
from natterjack.team import Team
from natterjack.testing import NatsServer, until
from natterjack.testing.narrow import login_of, narrow_config
from natterjack_permissions.testing import secured_broker

SOURCE = '''
"""Three agents that use every facility."""
import asyncio
import contextlib
from natterjack import Agent, ConflictError, PeerTimeoutError

class Researcher(Agent):
    async def handle(self, event, ctx):
        if event.type == "beat":
            return await ctx.shared.update("findings.beats", lambda value: (value or 0) + 1)
        await ctx.journal.append("note", {"topic": event.data["topic"]})
        await ctx.shared.set("findings.topic", event.data["topic"])
        assert [each.value for each in await ctx.shared.history("findings.topic")][-1] == event.data["topic"]
        first = await ctx.emit("research.progress", {"done": 1}, id=f"{ctx.run_id}-1")
        assert await ctx.emit("research.progress", {"done": 1}, id=f"{ctx.run_id}-1") == first
        opinion = await ctx.ask_peer("analyst", event.data["topic"], timeout=10)
        try:
            await ctx.ask_peer("analyst", "hang", timeout=0.05)
        except PeerTimeoutError:
            await ctx.emit("research.progress", {"late": True})
        answers = await ctx.broadcast(["analyst", "boss"], "all", timeout=10)
        chunks = ctx.ask_stream("boss", "in parts", timeout=10, on_query=self.explain)
        assert "".join([chunk async for chunk in chunks]) == "in parts, because of toads or newts" + "." * 1000
        async with ctx.ask_stream("analyst", "hang", timeout=10) as chunks:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await anext(chunks)
        await ctx.publish("reports.draft", {"opinion": opinion, "answers": sorted(answers)})
        return {"topic": event.data["topic"], "opinion": opinion}

    async def explain(self, query):
        return f"{query.prompt} toads or newts"

    async def answer(self, question, ctx):
        return f"{ctx.caller} asks {question}"

class Analyst(Agent):
    cancelled = 0

    async def handle(self, event, ctx):
        try:
            await ctx.shared.set("analysis", 1, expected=0)
        except ConflictError:
            await ctx.shared.update("analysis", lambda value: value + 1)
        return await ctx.ask_peer("researcher", "why?", timeout=10)

    async def answer(self, question, ctx):
        if question == "hang":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                Analyst.cancelled += 1
                raise
        if question == "in parts":
            yield "in parts, "
            yield await ctx.query("because of", timeout=10)
            for _ in range(1000):
                yield "."
        else:
            yield f"{question} is fine"

class Writer(Agent):
    seen = []

    async def handle(self, event, ctx):
        Writer.seen.append((event.type, event.attempt, event.data))
        if event.data.get("poison") or event.attempt == 1:
            raise ValueError("not now")
        await ctx.shared.set("draft", event.data)
        return "written"
'''

TEAM = Team.model_validate(
    {
        "name": "newsroom",
        "external": ["research.start"],
        "context": {"status": "new"},
        "agents": {
            "researcher": {
                "kind": "newsroom_agents:Researcher",
                "on": ["research.start", {"beat": {}}],
                "emits": ["research.*"],
                "publishes": ["reports.*"],
                "result_event": "research.complete",
                "asks": ["analyst", "boss"],
                "cross_agents": {"boss": "analyst"},
                "writes": ["findings.>"],
            },
            "analyst": {
                "kind": "newsroom_agents:Analyst",
                "on": ["research.complete"],
                "emits": [],
                "publishes": [],
                "asks": ["researcher"],
                "writes": ["analysis"],
                "ordered_by": "topic",
            },
            "writer": {
                "kind": "newsroom_agents:Writer",
                "on": [{"message": "reports.*"}, "*.poison"],
                "emits": [],
                "publishes": [],
                "asks": [],
                "writes": ["draft"],
                "retry_delay": 0.05,
                "max_attempts": 2,
            },
        },
    }
)


class Beat(Trigger):
    """Fires twice with one id, and stays."""

    name: ClassVar = "beat"
    fired: ClassVar[list[int]] = []

    def needs(self, agent: str) -> list[Right]:
        return []

    async def run(self, ctx: TriggerContext) -> None:
        for _ in range(2):
            self.fired.append(await ctx.fire({"n": 1}, id="one"))
        await asyncio.Event().wait()


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    """What is installed, the trigger of this test among it."""
    plugins = Plugins.load()
    plugins.triggers["beat"] = Beat
    monkeypatch.setattr(Plugins, "load", lambda: plugins)
    (tmp_path / "newsroom_agents.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    Beat.fired.clear()
    yield plugins
    sys.modules.pop("newsroom_agents", None)


@dataclass
class Narrow:
    """A server that grants agents what they need, and no more."""

    server: NatsServer
    login: Callable[[str], Server]


@pytest.fixture(params=["one account", "an account each"])
def server(request: pytest.FixtureRequest, plugins: Plugins, tmp_path: Path) -> Iterator[Narrow]:
    granted = agent_permissions(TEAM, plugins, attested=request.param == "an account each")
    if request.param == "one account":
        with NatsServer(narrow_config(granted)) as server:
            yield Narrow(server, partial(login_of, server))
    else:
        with secured_broker(granted, tmp_path / "keys") as (server, login):
            yield Narrow(server, lambda name: replace(login.of(name), keys=None))


Start = Callable[[str], Awaitable[tuple[AgentHost, AgentContext]]]


@pytest.fixture
async def stack(server: Narrow, plugins: Plugins) -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        bus = await Bus.connect(server.login("operator"), principal="operator")
        stack.push_async_callback(bus.close)
        await provision(bus, TEAM, plugins)
        yield stack


@pytest.fixture
async def client(server: Narrow, stack: AsyncExitStack) -> TeamClient:
    return await stack.enter_async_context(connect(server.login("operator")))


async def start(stack: AsyncExitStack, server: Narrow, name: str) -> AgentContext:
    host, context = await start_agent(name, server.login(name))
    stack.push_async_callback(context.close)
    stack.push_async_callback(host.stop, 5.0)
    return context


async def start_team(stack: AsyncExitStack, server: Narrow) -> dict[str, AgentContext]:
    return {name: await start(stack, server, name) for name in TEAM.agents}


def violations(server: Narrow) -> list[str]:
    return [line for line in server.server.log().splitlines() if "violation" in line.lower()]


async def test_all_works_with_what_is_granted(
    server: Narrow, stack: AsyncExitStack, client: TeamClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with stack:
        contexts = await start_team(stack, server)
        agents = sys.modules["newsroom_agents"]
        assert [agent.name for agent in await client.agents()] == ["analyst", "researcher", "writer"]
        live = await stack.enter_async_context(client.event_bus.subscribe("research.>"))
        run = await client.inject_event("researcher", {"type": "research.start", "topic": "toads"})
        assert await run.result(timeout=10) == {"topic": "toads", "opinion": "toads is fine"}
        seen = [await anext(live) for _ in range(3)]
        assert [(event.type, event.source) for event in seen] == [
            ("research.progress", "researcher"),
            ("research.progress", "researcher"),
            ("research.complete", "researcher"),
        ]
        assert seen[1].data == {"late": True}
        await until(lambda: agents.Analyst.cancelled == 2)
        await client.event_bus.emit("research.start", {"topic": "newts"})
        await until(lambda: client.context.get("analysis") == 2)
        draft = {"opinion": "newts is fine", "answers": ["analyst", "boss"]}
        await until(lambda: client.context.get("draft") == draft)
        assert client.context.get("findings.topic") == "newts"
        await until(lambda: all(context.get("draft") == draft for context in contexts.values()))
        assert await client.ask_peer("researcher", "how?", timeout=5) == "operator asks how?"
        await until(lambda: len(Beat.fired) == 2)
        assert Beat.fired[0] == Beat.fired[1]
        await until(lambda: client.context.get("findings.beats") == 1)
    assert violations(server) == []
    assert "refuse" not in caplog.text


async def test_dead_letters_attempts_and_a_new_process(
    server: Narrow, stack: AsyncExitStack, client: TeamClient, caplog: pytest.LogCaptureFixture
) -> None:
    async with stack:
        heard: list[str] = []
        await client.bus.listen("feed.dead.>", lambda message: heard.append(message.subject))
        await start(stack, server, "writer")
        agents = sys.modules["newsroom_agents"]
        await client.event_bus.emit("some.poison", {"poison": True})
        letters = await letters_of(client, 1)
        assert [(each.agent, each.attempts, each.cause) for each in letters] == [("writer", 2, "ValueError: not now")]
        await retry(client.bus, letters[0].number)
        await until(lambda: len(agents.Writer.seen) == 4)
        run = await client.inject_event("writer", {"type": "a", "poison": True})
        with pytest.raises(RunFailedError, match="not now"):
            await run.result(timeout=10)
        await client.bus.store("messages.reports.x", b"\xff")  # nobody can read it: dead at once
        assert "UTF-8" in (await letters_of(client, 3))[-1].cause
        await until(lambda: len(heard) == 4)
        assert {subject.rpartition(".")[0] for subject in heard} == {"feed.dead.writer"}
        # A replica that joins later, or a process that starts again, finds the same rights.
        await start(stack, server, "writer")
        await client.event_bus.publish("reports.x", {"n": 1})
        await until(lambda: client.context.get("draft") == {"n": 1})
        server.server.kill()
        server.server.start()
        await client.event_bus.publish("reports.x", {"n": 2})
        await until(lambda: client.context.get("draft") == {"n": 2}, timeout=20)
    assert violations(server) == []


async def letters_of(client: TeamClient, count: int) -> list[DeadLetter]:
    """The dead letters, once there are so many."""

    async def enough() -> list[DeadLetter]:
        found = await dead_letters(client.bus)
        return found if len(found) == count else []

    return await until(enough)


Act = Callable[[Bus], Awaitable[Any]]


def api(name: str, body: dict[str, Any] | None = None) -> Act:
    return lambda bus: bus.api(name, body)


def store(subject: str) -> Act:
    return lambda bus: bus.store(subject, b"{}")


def hear(subject: str) -> Act:
    async def ignore(message: object) -> None:
        """Nothing is ever heard."""

    return lambda bus: bus.subscribe(subject, ignore)


FORBIDDEN: dict[str, Act] = {
    "emit another type": lambda bus: EventBus(bus, Guards()).emit("analysis.done"),
    "emit a deeper type": lambda bus: EventBus(bus, Guards()).emit("research.start.now"),
    "publish to another topic": lambda bus: EventBus(bus, Guards()).publish("secrets"),
    "store as somebody": store("stored.events.operator.research.start"),
    "feign a live event": lambda bus: bus.request("feed.events.operator.x", timeout=5),
    "another's inbox": store("inbox.writer.research.start"),
    "another's journal": store("journal.writer.run.1"),
    "an event that another delays": store("delay.writer.x"),
    "an event of its own that is due": store("delay.researcher.due.research.start"),
    "another's dead letter": store("dead.writer.inbox"),
    "another's key": store("$KV.context.draft"),
    "feign a key": lambda bus: bus.request("feed.context.draft", timeout=5),
    "the team": store("$KV.team.team"),
    "cancel another's request": lambda bus: bus.request("agents.cancel.writer.x", timeout=5),
    "discover": lambda bus: bus.request("$SRV.PING", timeout=5),
    "pull another's events": lambda bus: bus.request("$JS.API.CONSUMER.MSG.NEXT.INBOX.writer=inbox", timeout=5),
    "look at another's consumer": api("CONSUMER.INFO.INBOX.writer=inbox"),
    "make a consumer": api("CONSUMER.CREATE.EVENTS", {"stream_name": "EVENTS", "config": {}}),
    "delete its consumer": api("CONSUMER.DELETE.INBOX.researcher=inbox"),
    "make a stream": api("STREAM.CREATE.MINE", {"name": "MINE", "subjects": ["mine"]}),
    "purge": api("STREAM.PURGE.EVENTS"),
    "delete a message": api("STREAM.MSG.DELETE.DEAD", {"seq": 1}),
    "read another's journal": lambda bus: bus.last("JOURNAL", "journal.writer.run.1"),
    "read any journal": lambda bus: bus.at("JOURNAL", 1),
    "serve for another": hear("agents.ask.writer"),
    "serve for all": hear("agents.ask.*"),
    "take another's prompts": hear("agents.prompt.natterjack.newsroom.writer"),
    "hear another's answers": hear("agents.answer.writer.*"),
    "answer another's question": lambda bus: bus.request("agents.answer.writer.x", timeout=5),
    "prompt whom one may not ask": lambda bus: bus.request("agents.prompt.natterjack.newsroom.writer", timeout=5),
    "feign another's heartbeat": lambda bus: bus.request("agents.hb.natterjack.newsroom.writer", timeout=5),
    "hear another's journal": hear("feed.journal.writer.>"),
    "hear all events": hear("feed.events.>"),
    "hear questions of all": hear("agents.>"),
    "read another's replies": hear("_INBOX.writer.>"),
    "hear stores": hear("events.>"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_what_is_not_granted_is_refused_at_once(server: Narrow, stack: AsyncExitStack, what: str) -> None:
    async with stack:
        bus = await Bus.connect(server.login("researcher"), principal="researcher")
        stack.push_async_callback(bus.close)
        begun = time.perf_counter()
        with pytest.raises(RefusedError, match="the broker refuses 'researcher'"):
            await FORBIDDEN[what](bus)
        assert time.perf_counter() - begun < 3


async def test_broker_refuses_to_ask_whom_one_may_not(server: Narrow, stack: AsyncExitStack) -> None:
    async with stack:
        bus = await Bus.connect(server.login("analyst"), principal="analyst")
        stack.push_async_callback(bus.close)
        peers = Peers(bus, Guards())
        with pytest.raises(PeerRefusedError, match="the broker refuses 'analyst'"):
            await peers.ask("writer", "?", timeout=5)
        answers = await peers.broadcast(["writer", "researcher"], "?", timeout=5)
        assert {name: error.code for name, error in answers.failures.items()} == {"writer": 403, "researcher": 503}


async def test_broker_refuses_a_context_write(server: Narrow, stack: AsyncExitStack) -> None:
    async with stack:
        context = await start(stack, server, "analyst")
        bus = await Bus.connect(server.login("analyst"), principal="analyst")
        stack.push_async_callback(bus.close)
        context.guards = Guards()  # as a client of somebody's own make would have it
        with pytest.raises(RefusedError, match="the broker refuses 'analyst'"):
            await context.acting_as("analyst", bus).set("draft", "mine")
        assert context.get("draft") is None


async def test_agent_cannot_start_as_another(server: Narrow, stack: AsyncExitStack) -> None:
    async with stack:
        tasks = asyncio.all_tasks()
        with pytest.raises(RefusedError):
            await start_agent("writer", server.login("analyst"))
        assert asyncio.all_tasks() <= tasks
