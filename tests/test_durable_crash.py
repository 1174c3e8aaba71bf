"""Durable runs in processes that are killed and paused: what is finished is done once, and nothing is lost."""

import asyncio
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from natterjack.bus import Bus
from natterjack.components import Entry
from natterjack.dead import dead_letters
from natterjack.errors import BrokerError
from natterjack.journal import StreamJournal
from natterjack.testing import NatsServer, until

PROGRAM = """
import asyncio, logging, os, pathlib, signal, sys
from natterjack import Agent, AgentProcess, AgentRuntime, EventTrigger

url, folder, place = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])

def note(text):
    os.write(effects, b"%s\\n" % text.encode())

class Worker(Agent):
    async def handle(self, event, ctx):
        return await getattr(self, event.type)(event, ctx)

    async def ten(self, event, ctx):
        for n in range(11):
            if n == place:
                os.kill(os.getpid(), signal.SIGKILL)
            if n < 10:
                await ctx.step(f"step {n}", note, f"step {n}")
        return "ended"

    async def slow(self, event, ctx):
        return await ctx.step("slow", self.wait)

    async def wait(self):
        note(f"begun {place}")
        while not (folder / f"go {place}").exists():
            await asyncio.sleep(0.02)
        return place

    async def nap(self, event, ctx):
        await ctx.step("before", note, "before")
        await ctx.sleep(3)
        await ctx.step("after", note, "after")

    async def count(self, event, ctx):
        await asyncio.sleep(0.001)
        note(str(event.data))

async def main():
    runtime = AgentRuntime(url)
    events = [EventTrigger(type) for type in ("ten", "slow", "nap", "count")]
    many = 1 if place >= 100 else 64
    runtime.add_process(AgentProcess("worker", agent=Worker(), triggers=events, concurrency=many, max_attempts=3))
    async with runtime:
        note("ready")
        await runtime.wait()

logging.basicConfig(filename=folder / "log", level=logging.WARNING)
effects = os.open(folder / "effects", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
asyncio.run(main())
"""


class Replica:
    """The program above, as a process."""

    def __init__(self, server: NatsServer, folder: Path) -> None:
        self._command = [sys.executable, "-c", PROGRAM, server.url, str(folder)]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, place: int = -1) -> None:
        ready = self.effects.count("ready")
        self._process = subprocess.Popen([*self._command, str(place)])  # noqa: ASYNC220 - a millisecond, once
        await until(lambda: self.effects.count("ready") > ready or not self.alive, 30)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    @property
    def effects(self) -> list[str]:
        path = self._folder / "effects"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def replicas(own_server: NatsServer, tmp_path: Path) -> Iterator[list[Replica]]:
    replicas = [Replica(own_server, tmp_path) for _ in range(4)]
    yield replicas
    for replica in replicas:
        replica.send(signal.SIGCONT)
        replica.kill()


async def shorten_ack_wait(bus: Bus, stream: str, durable: str) -> None:
    """Let the server miss a replica after a second instead of thirty."""
    config = (await bus.api(f"CONSUMER.INFO.{stream}.{durable}"))["config"] | {"ack_wait": 10**9}
    await bus.api(f"CONSUMER.DURABLE.CREATE.{stream}.{durable}", {"stream_name": stream, "config": config})


async def entries(bus: Bus, kind: str | None = None) -> list[Entry]:
    return [entry async for entry in StreamJournal().attach(bus).entries("worker", kind=kind)]


async def until_done(bus: Bus) -> None:
    async def done() -> bool:
        return bool(await entries(bus, "done"))

    await until(done, 30)


@pytest.mark.timeout(180)
async def test_a_run_that_is_killed_at_each_place_does_each_step_once(bus: Bus, replicas: list[Replica]) -> None:
    replica = replicas[0]
    await replica.start()
    replica.kill()
    await shorten_ack_wait(bus, "EVENTS", "worker=event-ten")
    await bus.store("events.ten", b"")
    for place in range(11):
        await replica.start(place)
        await until(lambda: not replica.alive, 30)
        assert [line for line in replica.effects if line != "ready"] == [f"step {n}" for n in range(place)]
    await replica.start()
    await until_done(bus)
    assert Counter(replica.effects)["step 9"] == 1
    assert len(await entries(bus, "step")) == 10
    assert len(await entries(bus, "begun")) == 1
    assert await dead_letters(bus) == []


async def test_a_replica_that_is_paused_past_its_lease_stops_quietly(
    bus: Bus, replicas: list[Replica], tmp_path: Path
) -> None:
    paused, other = replicas[:2]
    await paused.start(100)
    await shorten_ack_wait(bus, "EVENTS", "worker=event-slow")
    await bus.store("events.slow", b"")
    await until(lambda: "begun 100" in paused.effects)
    paused.send(signal.SIGSTOP)
    (tmp_path / "go 101").touch()
    await other.start(101)
    await until_done(bus)
    paused.send(signal.SIGCONT)
    (tmp_path / "go 100").touch()

    async def idle() -> bool:
        """It has left the run, and takes the next."""
        await bus.store("events.nap", b"")
        return "before" in paused.effects

    other.kill()
    await until(idle)
    assert [entry.data["result"] for entry in await entries(bus, "step") if entry.data["name"] == "slow"] == [101]
    assert [entry.data["result"] for entry in await entries(bus, "done")] == [101]
    assert paused.alive
    assert [line for line in (tmp_path / "log").read_text().splitlines() if "slow" in line or "ERROR" in line] == []


async def test_a_sleeper_whose_process_is_killed_wakes_in_another(bus: Bus, replicas: list[Replica]) -> None:
    sleeper, other = replicas[:2]
    await sleeper.start()
    await bus.store("events.nap", b"")

    async def asleep() -> bool:
        return bool(await entries(bus, "sleep")) and bool((await bus.api("STREAM.INFO.WAKES"))["state"]["messages"])

    await until(asleep)
    sleeper.kill()
    await other.start()
    await until_done(bus)
    assert Counter(other.effects) == {"ready": 2, "before": 1, "after": 1}


async def check_drains(bus: Bus, replicas: list[Replica], count: int, kills: int) -> None:
    """Let replicas drain a queue of events, while one after another is killed and started again."""
    choose = random.Random(count)
    await replicas[0].start()
    replicas[0].kill()
    await shorten_ack_wait(bus, "EVENTS", "worker=event-count")
    for begin in range(0, count, 1000):
        some = range(begin, min(begin + 1000, count))
        await asyncio.gather(*(bus.store("events.count", b"%d" % n) for n in some))
    await asyncio.gather(*(replica.start() for replica in replicas))
    for n in range(kills):
        least = count * (n + 1) // (kills + 2)
        await until(lambda least=least: len(replicas[0].effects) > least, 120)  # type: ignore[misc]
        victim = choose.choice(replicas)
        victim.kill()
        await victim.start()

    async def settled() -> bool:
        try:
            info = await bus.api("CONSUMER.INFO.EVENTS.worker=event-count")
        except BrokerError:
            return False
        return (info["num_pending"], info["num_ack_pending"]) == (0, 0)

    await until(settled, 300)
    handled = Counter(line for line in replicas[0].effects if line != "ready")
    assert handled.keys() == {str(n) for n in range(count)}
    assert await dead_letters(bus) == []
    assert (await bus.api("STREAM.INFO.JOURNAL", {"subjects_filter": "journal.worker.*.*"}))["state"][
        "messages"
    ] >= count


async def test_a_queue_drains_while_replicas_are_killed(bus: Bus, replicas: list[Replica]) -> None:
    await check_drains(bus, replicas, 3_000, 3)


@pytest.mark.full
@pytest.mark.timeout(900)
async def test_100_000_events_drain_while_replicas_are_killed(bus: Bus, replicas: list[Replica]) -> None:
    await check_drains(bus, replicas, 100_000, 40)
