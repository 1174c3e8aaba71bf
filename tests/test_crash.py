"""Crashes: agents and the broker are killed in the middle of 1,000 events, and none is lost, stranded or dead."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from natterjack.bus import Bus
from natterjack.dead import dead_letters
from natterjack.errors import BrokerError
from natterjack.testing import NatsServer, until

EVENTS = 1000
DURABLE = "worker=event-job"
PROGRAM = """
import asyncio, logging, os, signal, sys
from natterjack import Agent, AgentProcess, AgentRuntime, EventTrigger

class Worker(Agent):
    async def handle(self, event, ctx):
        if event.data == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.005)
        os.write(handled, b"%d\\n" % event.data)

async def main():
    runtime = AgentRuntime(sys.argv[1])
    worker = AgentProcess(name="worker", agent=Worker(), triggers=[EventTrigger("job")], max_attempts=3, concurrency=8)
    runtime.add_process(worker)
    async with runtime:
        os.write(handled, b"ready\\n")
        await runtime.wait()

logging.disable(logging.CRITICAL)
handled = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
asyncio.run(main())
"""


class AgentProgram:
    """The program above, as a process that is killed and started again."""

    def __init__(self, url: str, log: Path) -> None:
        self._command = [sys.executable, "-c", PROGRAM, url, str(log)]
        self._log = log
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        self.starts += 1
        self._process = subprocess.Popen(self._command)  # noqa: ASYNC220 - a millisecond, once
        await until(lambda: self._lines.count("ready") == self.starts or not self.alive, 20)

    async def until_handled(self, least: int) -> None:
        await until(lambda: len(self.handled) > least, 20)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    @property
    def _lines(self) -> list[str]:
        return self._log.read_text().split() if self._log.exists() else []

    @property
    def handled(self) -> list[int]:
        return [int(line) for line in self._lines if line != "ready"]


@pytest.fixture
def program(own_server: NatsServer, tmp_path: Path) -> Iterator[AgentProgram]:
    program = AgentProgram(own_server.url, tmp_path / "handled")
    yield program
    program.kill()


async def shorten_ack_wait(bus: Bus) -> None:
    """Let the server miss a killed agent after a second instead of thirty."""
    config = (await bus.api(f"CONSUMER.INFO.EVENTS.{DURABLE}"))["config"] | {"ack_wait": 10**9}
    await bus.api(f"CONSUMER.DURABLE.CREATE.EVENTS.{DURABLE}", {"stream_name": "EVENTS", "config": config})


async def emit(bus: Bus, numbers: range) -> None:
    await asyncio.gather(*(bus.store("events.job", b"%d" % n) for n in numbers))


async def nothing_is_left(bus: Bus) -> None:
    async def settled() -> bool:
        try:
            info = await bus.api(f"CONSUMER.INFO.EVENTS.{DURABLE}")
        except BrokerError:
            return False
        return (info["num_pending"], info["num_ack_pending"]) == (0, 0)

    await until(settled, 15)
    assert await dead_letters(bus) == []


async def test_an_agent_that_is_killed_loses_nothing(bus: Bus, program: AgentProgram) -> None:
    await program.start()
    await shorten_ack_wait(bus)
    await emit(bus, range(EVENTS))
    for least in (200, 500):
        await program.until_handled(least)
        program.kill()
        await program.start()
    await until(lambda: len(set(program.handled)) == EVENTS, 20)
    await nothing_is_left(bus)
    assert len(program.handled) < EVENTS + 100  # at least once, and seldom twice


async def test_a_broker_that_is_killed_loses_nothing(own_server: NatsServer, bus: Bus, program: AgentProgram) -> None:
    await program.start()
    await shorten_ack_wait(bus)
    emitting = asyncio.create_task(emit(bus, range(EVENTS)))
    for least in (100, 500):
        await program.until_handled(least)
        own_server.kill()
        own_server.start()
    await emitting
    await until(lambda: len(set(program.handled)) == EVENTS, 25)
    await nothing_is_left(bus)
    assert program.alive
    assert program.starts == 1


async def test_both_are_killed_while_events_wait(own_server: NatsServer, bus: Bus, program: AgentProgram) -> None:
    await program.start()
    await shorten_ack_wait(bus)
    await emit(bus, range(EVENTS))
    await until(lambda: len(program.handled) > 100)
    program.kill()
    own_server.kill()
    assert len(program.handled) < EVENTS  # the others wait
    own_server.start()
    await program.start()
    await until(lambda: len(set(program.handled)) == EVENTS, 20)
    await nothing_is_left(bus)


async def test_an_event_that_kills_its_agent_ends_dead(bus: Bus, program: AgentProgram) -> None:
    await program.start()
    await shorten_ack_wait(bus)
    await emit(bus, range(10))
    await bus.store("events.job", b"poison")
    await emit(bus, range(10, 20))

    async def over() -> bool:
        if not program.alive:
            await program.start()
        return bool(await dead_letters(bus))

    await until(over, 30)
    (letter,) = await dead_letters(bus)
    assert letter.data == b"poison"
    assert letter.cause == "the process died, or blocked its loop, while handling it, attempt 3/3"
    assert program.starts <= 5
    await until(lambda: set(program.handled) == set(range(20)))
    assert len(await dead_letters(bus)) == 1
