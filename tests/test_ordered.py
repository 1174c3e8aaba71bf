"""`ordered_by`: one after another per key, in the order of the stream, whatever fails, dies or is delivered again."""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natterjack import Agent, AgentProcess, AgentRuntime, ConfigError, Event, EventTrigger, RunContext
from natterjack import provision as provisioning
from natterjack.bus import Bus, Message
from natterjack.context import AgentContext
from natterjack.dead import dead_letters
from natterjack.guards import Guards
from natterjack.host import AgentHost, Place
from natterjack.needs import agent_triggers
from natterjack.ordering import Lanes
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.server import Server
from natterjack.team import AgentSpec, Team
from natterjack.testing import NatsServer, until

Handle = Callable[[Event], Awaitable[Any]]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "natterjack")


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dead replica held comes again soon."""
    monkeypatch.setattr(provisioning, "ACK_WAIT", 10**9)


class Worker(Agent):
    """Keeps what it begins and ends, by key, and never works on two events of one key."""

    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self._handle = handle
        self.begun: list[tuple[str, int]] = []
        self.done: dict[str, list[int]] = defaultdict(list)
        self.busy: set[str] = set()
        self.most = 0

    async def handle(self, event: Event, ctx: RunContext) -> None:
        key = str(event.data.get("key"))
        assert key == "None" or key not in self.busy, f"two events of {key} at once"
        self.busy.add(key)
        self.most = max(self.most, len(self.busy))
        self.begun.append((key, event.data["n"]))
        try:
            await self._handle(event)
            self.done[key].append(event.data["n"])
        finally:
            self.busy.discard(key)


@asynccontextmanager
async def running(server: NatsServer, worker: Agent, **given: Any) -> AsyncIterator[AgentRuntime]:
    runtime = AgentRuntime(server.url)
    options: dict[str, Any] = {"ordered_by": "key", "retry_delay": 0.01} | given
    runtime.add_process(AgentProcess("worker", agent=worker, triggers=[EventTrigger("job")], **options))
    async with runtime:
        yield runtime


async def nothing(_event: Event) -> None:
    await asyncio.sleep(0)


def in_order(done: dict[str, list[int]], count: int) -> bool:
    """Whether all are done, and the first time of each comes in order; a repetition may come after a crash."""
    for key, numbers in done.items():
        if list(dict.fromkeys(numbers)) != sorted(set(numbers)):
            raise AssertionError(f"{key}: {numbers}")
    return sum(len(set(numbers)) for numbers in done.values()) == count


async def test_one_key_one_after_another_and_keys_in_parallel(own_server: NatsServer) -> None:
    gate = asyncio.Event()

    async def wait(_event: Event) -> None:
        await gate.wait()

    worker = Worker(wait)
    async with running(own_server, worker, concurrency=3) as runtime:
        for n in range(20):
            await runtime.event_bus.emit("job", {"key": n % 5, "n": n})
        await until(lambda: len(worker.busy) == 3)
        gate.set()
        await until(lambda: in_order(worker.done, 20))
        assert worker.most == 3


async def test_what_fails_holds_back_only_its_own_key(own_server: NatsServer, bus: Bus) -> None:
    sent = asyncio.Event()

    async def fail(event: Event) -> None:
        if event.data["n"] == 0 and event.attempt < 3:
            await sent.wait()  # so that the others need not be sent, too, before the first retry
            raise ValueError("not yet")
        if event.data["n"] == 1:
            raise ValueError("never")

    worker = Worker(fail)
    async with running(own_server, worker, retry_delay=0.05, max_attempts=3, concurrency=2) as runtime:
        for n in range(30):
            await runtime.event_bus.emit("job", {"key": "bad" if n < 10 else f"good{n % 2}", "n": n})
        sent.set()
        await until(lambda: sum(map(len, worker.done.values())) == 29)
        bad = [n for key, n in worker.begun if key == "bad"]
        assert bad == [0, 0, 0, 1, 1, 1, *range(2, 10)]
        first_retry = [n for _, n in worker.begun].index(0, 1)
        assert {n for _, n in worker.begun[:first_retry]} >= {10, 11}  # others went on meanwhile
    assert [letter.attempts for letter in await dead_letters(bus)] == [3]


async def test_what_has_no_key_waits_for_nobody(own_server: NatsServer) -> None:
    gate = asyncio.Event()

    async def wait(event: Event) -> None:
        if event.data["n"] < 2:
            await gate.wait()

    worker = Worker(wait)
    async with running(own_server, worker) as runtime:
        given: list[dict[str, Any]] = [{}, {"key": None}, {"key": {"deep": 1}}, {"key": {"deep": 1}}, {"key": "x"}]
        for n, data in enumerate(given):
            await runtime.event_bus.emit("job", {**data, "n": n})
        await until(lambda: sum(map(len, worker.done.values())) == 3)
        assert sorted(n for _, n in worker.begun) == [0, 1, 2, 3, 4]
        gate.set()
        await until(lambda: sum(map(len, worker.done.values())) == 5)


async def test_stopping_gives_back_what_waits(own_server: NatsServer) -> None:
    worker = Worker(nothing)
    for start in range(0, 100, 20):
        async with running(own_server, worker) as runtime:
            for n in range(start, start + 20):
                await runtime.event_bus.emit("job", {"key": 1, "n": n})
    async with running(own_server, worker):
        await until(lambda: in_order(worker.done, 100))
    assert worker.done["1"] == list(range(100))


def test_a_wrong_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="'ordered_by' is 'a b': 'a b' is no valid path of a field"):
        AgentProcess("a", agent=Worker(nothing), ordered_by="a b")


async def test_provisioning_changes_a_consumer_that_is_there(own_server: NatsServer, bus: Bus) -> None:
    async def group(ordered_by: str | None) -> tuple[Any, list[str]]:
        spec = AgentSpec.model_validate({"kind": "x:Y", "on": ["job"], "ordered_by": ordered_by})
        done = await provision(bus, Team(agents={"worker": spec}), Plugins.load())
        config = (await bus.api("CONSUMER.INFO.EVENTS.worker=event-job"))["config"]
        return config.get("priority_groups"), done.updated

    both = ["consumer worker=inbox on INBOX", "consumer worker=event-job on EVENTS"]
    assert await group(None) == (None, [])
    assert await group("key") == (["ordered"], both)
    assert await group("other") == (["ordered"], [])
    assert await group(None) == (None, both)


# Replicas


SPEC = AgentSpec.model_validate(
    {"kind": "x:Y", "on": ["job"], "ordered_by": "key", "concurrency": 4, "retry_delay": 0.01, "max_attempts": 100}
)


@dataclass
class Replica:
    """One process's worth of the agent."""

    host: AgentHost
    context: AgentContext

    async def kill(self) -> None:
        """End it as a crash would: the server hears nothing more of what it holds."""
        await self.host.bus.close()
        await self.host.stop(0)
        await self.context.close()

    async def stop(self) -> None:
        await self.host.stop(5)
        await self.context.close()


async def start(server: NatsServer, worker: Worker) -> Replica:
    bus, context = await Bus.connect(Server(server.url), principal="worker"), AgentContext()
    await context.attach(bus)
    plugins = Plugins.load()
    place = Place(Team(agents={"worker": SPEC}), plugins, Guards(), context)
    host = AgentHost("worker", worker, agent_triggers(SPEC, plugins)[1:], [], place, bus)
    await host.start()
    return Replica(host, context)


@pytest.mark.usefixtures("short_wait")
async def test_another_replica_takes_over_in_order(own_server: NatsServer, bus: Bus) -> None:
    await provision(bus, Team(agents={"worker": SPEC}), Plugins.load())
    hang = asyncio.Event()

    async def first(event: Event) -> None:
        if event.data["n"] == 4:
            await hang.wait()

    one, two = Worker(first), Worker(nothing)
    replicas = [await start(own_server, one)]
    for n in range(20):
        await bus.store("events.job", b'{"key": %d, "n": %d}' % (n % 2, n))
    await until(lambda: ("0", 4) in one.begun and len(one.done["1"]) == 10)
    replicas.append(await start(own_server, two))
    for n in range(20, 30):
        await bus.store("events.job", b'{"key": 0, "n": %d}' % n)
    await replicas[0].kill()
    await until(lambda: two.done["0"] == [*range(4, 20, 2), *range(20, 30)], 30)
    await replicas[1].stop()
    assert one.done["0"] == [0, 2]


async def test_more_events_than_are_held_at_once_survive_a_kill(
    own_server: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits behind those of the dead one must not fill the place that they need."""
    monkeypatch.setattr("natterjack.delivery.WINDOW", 8)
    monkeypatch.setitem(provisioning._PINNED, "priority_timeout", 10**9)  # the next is pinned, and gets new ones,
    monkeypatch.setattr(provisioning, "ACK_WAIT", 3 * 10**9)  # before those come again that the dead one held
    await provision(bus, Team(agents={"worker": SPEC}), Plugins.load())
    done: dict[str, list[int]] = defaultdict(list)
    hang = asyncio.Event()

    async def first(event: Event) -> None:
        if event.data["n"] >= 4:
            await hang.wait()

    one, two = Worker(first), Worker(nothing)
    one.done = two.done = done
    replica = await start(own_server, one)
    for n in range(60):
        await bus.store("events.job", b'{"key": %d, "n": %d}' % (n % 3, n))
    await until(lambda: len(one.busy) == 3)
    await replica.kill()
    replica = await start(own_server, two)
    await until(lambda: in_order(done, 60), 30)
    await replica.stop()


@pytest.mark.usefixtures("short_wait")
@pytest.mark.parametrize("seed", range(3))
async def test_order_holds_under_kills(own_server: NatsServer, bus: Bus, seed: int) -> None:
    await provision(bus, Team(agents={"worker": SPEC}), Plugins.load())
    chance = random.Random(seed)

    async def work(event: Event) -> None:
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        if chance.random() < 0.05:
            raise ValueError("not now")

    done: dict[str, list[int]] = defaultdict(list)  # what all replicas did, in the order in which they did it

    async def replica() -> Replica:
        worker = Worker(work)
        worker.done = done
        return await start(own_server, worker)

    replicas = [await replica(), await replica()]
    for n in range(300):
        await bus.store("events.job", b'{"key": %d, "n": %d}' % (chance.randrange(6), n))
        if n % 60 == 30:
            victim = replicas.pop(chance.randrange(2))
            await (victim.kill() if chance.random() < 0.7 else victim.stop())
            replicas.append(await replica())
        if n == 170:
            own_server.kill()
            own_server.start()
    await until(lambda: in_order(done, 300), 40)
    await asyncio.gather(*(each.stop() for each in replicas))
    assert await dead_letters(bus) == []


# The lanes by themselves


@dataclass
class Delivered:
    """A message as a consumer delivers it."""

    reply: str
    subject: str = "s"
    data: bytes = b""
    headers: dict[str, str] | None = None


def sequence(message: Message) -> int:
    return int(message.reply.split(".")[5])


class Game:
    """Lanes with a handler that repeats some, and a server that knows what is not acknowledged."""

    def __init__(self, keys: list[int]) -> None:
        self.keys, self.pending = keys, set(range(len(keys)))
        self.done: dict[int, list[int]] = defaultdict(list)
        self.tasks: set[asyncio.Task[None]] = set()
        self.over = asyncio.Event()
        self.lanes = Lanes(
            lambda message: keys[sequence(message)], self.handle, self.ignore, self.outstanding, self.spawn
        )

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.add(asyncio.create_task(work))

    async def handle(self, message: Message, again: bool) -> float | None:
        await asyncio.sleep(0)
        number = sequence(message)
        if number % 3 == 0 and not again:
            return 0.0
        if number in self.pending:  # else it had been done: the journal says so
            self.done[self.keys[number]].append(number)
        self.pending.discard(number)
        if not self.pending:
            self.over.set()
        return None

    def ignore(self, message: Message) -> None:
        """It has its verdict."""

    async def outstanding(self) -> int:
        return len(self.pending)

    async def play(self, lost: list[int], again: list[int]) -> None:
        count = len(self.keys)
        for delivery, number in enumerate([*range(count), *again, *lost], 1):
            if number not in lost or delivery > count:
                self.lanes.add(Delivered(f"$JS.ACK.S.c.1.{number}.{delivery}.0.0"))
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await self.over.wait()
        self.lanes.stop()
        await asyncio.wait(self.tasks)


@given(
    keys=st.lists(st.integers(0, 3), min_size=1, max_size=25),
    lost=st.sets(st.integers(0, 24)),
    again=st.lists(st.integers(0, 24), max_size=10),
)
@settings(max_examples=100, deadline=None)
def test_lanes_keep_the_order_whatever_is_lost_and_repeated(keys: list[int], lost: set[int], again: list[int]) -> None:
    async def play() -> Game:
        game = Game(keys)
        there = range(len(keys))
        await game.play([n for n in sorted(lost) if n in there], [n for n in again if n in there])
        return game

    game = asyncio.run(play())
    assert all(numbers == sorted(numbers) for numbers in game.done.values())
    assert sum(map(len, game.done.values())) == len(keys)
    assert [task.exception() for task in game.tasks] == [None] * len(game.tasks)
