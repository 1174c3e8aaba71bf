"""The contracts of `natterjack.testing`: every built-in component keeps its own, and a broken one is found out."""

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import orjson
import pytest
import pytest_asyncio
from pydantic import BaseModel

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    Component,
    Entry,
    Envelope,
    Event,
    Guard,
    Journal,
    Message,
    Middleware,
    PluginError,
    Right,
    RunContext,
    StartError,
    TeamClient,
    ToolClient,
    ToolInfo,
    ToolServer,
    ToolServerContext,
    ToolSubjects,
    Trigger,
    TriggerContext,
    Verb,
)
from natterjack.builtin.agents import PythonAgent
from natterjack.builtin.journals import FileJournal
from natterjack.builtin.peers import NatsPeers
from natterjack.builtin.plugin import natterjack_agents, natterjack_journals, natterjack_peers, natterjack_triggers
from natterjack.builtin.triggers import ContextTrigger, EventTrigger, InboxTrigger, MessageTrigger, SubjectTrigger
from natterjack.bus import Bus
from natterjack.journal import StreamJournal
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.subjects import JOURNAL
from natterjack.team import Team
from natterjack.testing import NatsServer, ScriptedAgent, ScriptedClock
from natterjack.testing.contracts import (
    AgentContract,
    ComponentContract,
    GuardContract,
    JournalContract,
    MiddlewareContract,
    PeerContract,
    ToolServerContract,
    TriggerContract,
)

# The built-in components


class TestEventTrigger(TriggerContract):
    component = EventTrigger
    settings: ClassVar[dict[str, Any]] = {"event_type": "contract.*"}
    wrong_settings = ({"event_type": "a..b"}, {"event_type": 7})

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        await team.event_bus.emit("contract.due")


class TestMessageTrigger(TriggerContract):
    component = MessageTrigger
    settings: ClassVar[dict[str, Any]] = {"topic": "contract.>"}
    wrong_settings = ({"topic": ">.b"},)

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        await team.event_bus.publish("contract.due")


class TestContextTrigger(TriggerContract):
    component = ContextTrigger
    settings: ClassVar[dict[str, Any]] = {"keys": "contract.*"}
    wrong_settings = ({"keys": "a..b"}, {"keys": 7}, {"keys": "Fin ance/budget"}, {"keys": "a", "own": "perhaps"})

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        await team.context.set("contract.due", 1)


class TestSubjectTrigger(TriggerContract):
    component = SubjectTrigger
    settings: ClassVar[dict[str, Any]] = {"subject": "contract.*"}
    wrong_settings = ({"subject": "events.a"}, {"subject": ">"}, {"subject": "a b"}, {"subject": 7})

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        await team.bus.publish("contract.due", b"1")


class TestFileJournal(JournalContract):
    component = FileJournal
    wrong_settings = ({"folder": 7},)

    def make(self, folder: Path) -> Journal:
        return FileJournal(folder)

    async def read(self, folder: Path, run: str) -> list[Entry]:
        lines = (folder / "tested.jsonl").read_bytes().splitlines()
        return [entry for entry in (Entry(**orjson.loads(line)) for line in lines) if entry.run == run]

    async def spoil(self, journal: Journal, folder: Path) -> bool:
        (folder / "tested.jsonl").mkdir()
        return True


class TestStreamJournal(JournalContract):
    component = StreamJournal

    @pytest_asyncio.fixture(autouse=True)
    async def _provisioned(self, bus: Bus) -> None:
        await provision(bus, Team(), Plugins.load())
        self.bus = bus

    def make(self, folder: Path) -> Journal:
        journal = StreamJournal()
        journal.attach(self.bus)
        return journal

    async def read(self, folder: Path, run: str) -> list[Entry]:
        journal = StreamJournal()
        journal.attach(self.bus)
        return await journal.read("tested", run)

    async def spoil(self, journal: Journal, folder: Path) -> bool:
        await self.bus.api(f"STREAM.DELETE.{JOURNAL}")
        return True


class TestNatsPeers(PeerContract):
    component = NatsPeers

    @pytest_asyncio.fixture(autouse=True)
    async def _peer(self, runtime: AgentRuntime, own_server: NatsServer) -> AsyncIterator[None]:
        runtime.add_process(AgentProcess("there", agent=ScriptedAgent(answers="yes")))
        self.address, self.absent = f"{own_server.url}/there", f"{own_server.url}/nobody"
        async with runtime:
            await runtime.ask_peer("there", "warm?")  # what an agent subscribes to with its first question stays
            yield


class Imported(Agent):
    """What the built-in kind of agent imports."""

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        return event.data

    async def answer(self, question: str, ctx: RunContext) -> str:
        return question


class TestPythonAgent(AgentContract):
    component = PythonAgent
    settings: ClassVar[dict[str, Any]] = {"target": "contract_agents:Imported"}
    wrong_settings = ({"target": "contract_agents:Importde"}, {"target": "nowhere:X"})

    @pytest.fixture(autouse=True)
    def _importable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "contract_agents", SimpleNamespace(Imported=Imported))


BY_HAND = {InboxTrigger}
"""Every agent has it, and no team file names it."""


# Others


class Tick(Trigger):
    """Fires every so many seconds."""

    name = "contract-tick"

    class Config(BaseModel):
        every: float

    async def run(self, ctx: TriggerContext) -> None:
        while True:
            await ctx.clock.sleep(self.config.every)
            await ctx.fire(ctx.clock.now())


class TestTick(TriggerContract):
    component = Tick
    settings: ClassVar[dict[str, Any]] = {"every": 3600}
    wrong_settings = ({"every": "often"},)

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        await clock.advance(3600)


class Closed(Guard):
    """Lets nobody emit."""

    name = "contract-closed"

    def refuse(self, principal: str, verb: Verb, what: str) -> str | None:
        return "it is closed" if verb == "emit" else None


class TestClosed(GuardContract):
    component = Closed
    refused = ("anybody", "emit", "anything")
    allowed = ("anybody", "write", "anything")


class Quiet(Middleware):
    """Changes nothing."""

    name = "contract-quiet"


class TestQuiet(MiddlewareContract):
    component = Quiet


class Idle(ToolServer):
    """Serves nothing."""

    name = "contract-idle"

    async def serve(self, ctx: ToolServerContext) -> None:
        ctx.ready()
        await asyncio.Event().wait()


class TestIdle(ToolServerContract):
    component = Idle


class Shout(ToolServer):
    """Says again in capitals what it is sent."""

    name = "contract-shout"

    async def serve(self, ctx: ToolServerContext) -> None:
        async def answer(message: Message) -> None:
            await ctx.bus.publish(message.reply, message.data.upper())

        serving = await ctx.bus.subscribe(ToolSubjects(ctx.name).call("shout"), answer, queue=ctx.name)
        ctx.ready()
        try:
            await asyncio.Event().wait()
        finally:
            await serving.drain()

    @classmethod
    def client(cls, server: str, bus: Bus) -> ToolClient:
        return Shouting(server, bus)


class Shouting:
    def __init__(self, server: str, bus: Bus) -> None:
        self.subjects, self.bus = ToolSubjects(server), bus

    async def start(self) -> None:
        pass

    async def call(self, tool: str, arguments: Mapping[str, Any], *, timeout: float, envelope: Envelope) -> Any:
        del envelope
        reply = await self.bus.request(self.subjects.call(tool), arguments["text"].encode(), timeout=timeout)
        return reply.data.decode()

    async def list(self, *, timeout: float) -> Sequence[ToolInfo]:
        del timeout
        return [ToolInfo("", "shout", "")]

    async def close(self) -> None:
        pass


class TestShout(ToolServerContract):
    component = Shout
    call = ("shout", {"text": "toads"})
    result = "TOADS"


class Parrot(Imported):
    """An agent that only answers."""

    name = "contract-parrot"
    handle = Agent.handle


class TestParrot(AgentContract):
    component = Parrot


# What a contract finds


class Deaf(Tick):
    """Does not mind being cancelled."""

    async def run(self, ctx: TriggerContext) -> None:
        await ctx.fire()
        released = asyncio.Event()
        asyncio.get_running_loop().call_later(0.5, released.set)
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                ctx.log.info("no")


class Brief(Tick):
    """Fires once, and ends."""

    async def run(self, ctx: TriggerContext) -> None:
        await ctx.fire()


class Greedy(EventTrigger):
    """Does not say what it needs."""

    def needs(self, agent: str) -> list[Right]:
        return []


class Leaky(Tick):
    """Leaves a task behind."""

    async def run(self, ctx: TriggerContext) -> None:
        self.task = asyncio.create_task(asyncio.Event().wait())
        await ctx.fire()
        await asyncio.Event().wait()


class Fickle(Guard):
    """Fails where it knows nothing."""

    name = "contract-fickle"

    def refuse(self, principal: str, verb: Verb, what: str) -> str | None:
        return {"a": "no"}[what]


class Slow(Closed):
    """Takes its time."""

    async def refuse(self, principal: str, verb: Verb, what: str) -> str | None:  # type: ignore[override]
        return "no"


class Forgetful(Journal):
    """Keeps nothing."""

    name = "contract-forgetful"

    async def write(self, entry: Entry) -> None:
        """Forget it."""


class Nameless(Journal):
    """Has no name."""

    async def write(self, entry: Entry) -> None:
        """Forget it."""


class Crude(Tick):
    """Checks its settings by itself, and badly."""

    @classmethod
    def create(cls, settings: Mapping[str, Any]) -> Self:
        return cls(cls.Config(every=settings["every"]))


class _Forgetful(JournalContract):
    component = Forgetful

    async def read(self, folder: Path, run: str) -> list[Entry]:
        return []

    async def spoil(self, journal: Journal, folder: Path) -> bool:
        return True


class _Event(TestEventTrigger):
    __test__ = False


class _Fired(TestTick):
    """Of triggers that fire by themselves."""

    __test__ = False

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        """Nothing is to be done."""


def of(contract: type[ComponentContract], component: type[Component]) -> Any:
    """The contract, on another component."""
    return type("Changed", (contract,), {"component": component})()


async def run(test: Callable[..., Any], folder: Path) -> None:
    """One test of a contract."""
    outcome = test(folder) if "tmp_path" in inspect.signature(test).parameters else test()
    if inspect.isawaitable(outcome):
        await outcome


class Impatient(ScriptedAgent):
    """Does not wait long for what never comes."""

    async def handled(self, count: int = 1, timeout: float = 2.0) -> Sequence[Event]:
        return await super().handled(count, timeout)


CANCELLING, FIRING = "test_cancelling_ends_it_and_leaves_no_task", "test_fires_with_exactly_the_rights_it_needs"
FAULTS: dict[str, tuple[type[ComponentContract], type[Component], str]] = {
    "deaf": (_Fired, Deaf, CANCELLING),
    "leaky": (_Fired, Leaky, CANCELLING),
    "brief": (_Fired, Brief, FIRING),
    "needs too little": (_Event, Greedy, FIRING),
    "needs not its consumers": (_Event, Greedy, "test_needs_cover_its_consumers"),
    "settings": (_Fired, Crude, "test_wrong_settings_are_config_errors"),
    "partial": (TestClosed, Fickle, "test_is_total"),
    "async guard": (TestClosed, Slow, "test_is_synchronous"),
    "forgets": (_Forgetful, Forgetful, "test_keeps_what_is_written_in_order"),
    "silent": (_Forgetful, Forgetful, "test_tells_when_it_cannot_write"),
    "nameless": (_Forgetful, Nameless, "test_class_is_complete"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_contract_finds_what_breaks_it(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.testing.contracts.trigger.PROMPTLY", 0.1)
    monkeypatch.setattr("natterjack.testing.contracts.component.PROMPTLY", 0.1)
    monkeypatch.setattr("natterjack.testing.contracts.trigger.ScriptedAgent", Impatient)
    contract, component, name = FAULTS[fault]
    test = getattr(of(contract, component), name)
    before = asyncio.all_tasks()
    with pytest.raises((AssertionError, pytest.fail.Exception, KeyError, PluginError, StartError)):
        await run(test, tmp_path)
    left = asyncio.all_tasks() - before
    if left:
        _, endless = await asyncio.wait(left, timeout=2)
        for task in endless:
            task.cancel()


async def test_a_contract_that_is_not_filled_in_says_what_to_do() -> None:
    with pytest.raises(NotImplementedError, match="override `provoke`"):
        await of(TriggerContract, Tick).provoke(None, None)
    with pytest.raises(NotImplementedError, match="override `read`"):
        await of(JournalContract, Forgetful).read(Path(), "one")


def test_all_built_in_components_are_tested() -> None:
    hooks: list[Callable[[], list[Any]]] = [
        natterjack_agents,
        natterjack_journals,
        natterjack_peers,
        natterjack_triggers,
    ]
    built_in = {component for hook in hooks for component in hook()}
    tested = {value.component for value in globals().values() if hasattr(value, "component")}
    assert built_in - tested - BY_HAND == set()
