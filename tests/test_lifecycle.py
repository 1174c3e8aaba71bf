"""Processes that hang, grow, are renewed under load, or lose their supervisor: real ones, seen from outside."""

import asyncio
import contextlib
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import natterjack
from natterjack import Clock, TeamClient
from natterjack.bus import Bus
from natterjack.cli.supervisor import Supervisor
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.server import Server
from natterjack.team import AgentSpec, Team
from natterjack.testing import NatsServer, until

AGENTS = """
import asyncio, os, pathlib, time
from natterjack import Agent

HERE = pathlib.Path(__file__).parent
KEPT = []

class Worker(Agent):
    async def handle(self, event, ctx):
        if event.data == "hang" and not (HERE / "hung").exists():
            (HERE / "hung").touch()
            stand_still()
        if event.data == "grow":
            KEPT.append(b"x" * 150_000_000)
        with open(HERE / "handled", "a") as file:
            file.write(f"{event.data}\\n")

    async def answer(self, question, ctx):
        if question == "slow":
            (HERE / "asked").touch()
            while not (HERE / "answer").exists():
                await asyncio.sleep(0.01)
        if question == "hang":
            (HERE / "hung").touch()
            stand_still()
        return f"{os.getpid()} {question}"

def stand_still():
    time.sleep(1000)
"""
pytestmark = pytest.mark.timeout(240)  # each starts several processes, one after another
DURABLE = "worker=event-work"
clock = Clock()


class Shown:
    """The lines that a supervisor showed."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, label: str, line: str) -> None:
        self.lines.append(f"{label}: {line}")

    def index(self, text: str) -> int:
        """Return the place of the first line with a text, or -1."""
        return next((index for index, line in enumerate(self.lines) if text in line), -1)

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)


class Crew:
    """A supervised team of one agent, `worker`, and a client of it."""

    def __init__(self, supervisor: Supervisor, shown: Shown, client: TeamClient, folder: Path) -> None:
        self.supervisor, self.shown, self.client, self.folder = supervisor, shown, client, folder

    @property
    def pids(self) -> list[int]:
        return [child.process.pid for child in self.supervisor.children if child.process is not None]

    @property
    def handled(self) -> list[str]:
        path = self.folder / "handled"
        return path.read_text().split() if path.exists() else []

    async def found(self) -> None:
        """Return once the agent is there, after the broker was away."""
        await self.client.bus.until_connected(30)
        await until(self.client.agents, 90)

    async def ask(self, question: str) -> str:
        return str(await self.client.ask_peer("worker", question, timeout=90))


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def team(**limits: Any) -> Team:
    return Team(name="crew", agents={"worker": AgentSpec(kind="lifecycle_agents:Worker", on=("work",), **limits)})


async def provisioned(server: Server, team: Team) -> None:
    bus = await Bus.connect(server, principal="operator")
    try:
        await provision(bus, team, Plugins.load())
        # The server shall miss a killed agent after a second instead of thirty.
        config = (await bus.api(f"CONSUMER.INFO.EVENTS.{DURABLE}"))["config"] | {"ack_wait": 10**9}
        await bus.api(f"CONSUMER.DURABLE.CREATE.EVENTS.{DURABLE}", {"stream_name": "EVENTS", "config": config})
    finally:
        await bus.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lifecycle_agents.py").write_text(AGENTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


@asynccontextmanager
async def working(server: NatsServer, folder: Path, **limits: Any) -> AsyncIterator[Crew]:
    """Run the team, and at the end see that no process is left."""
    shown, where, described = Shown(), Server(server.url), team(**limits)
    await provisioned(where, described)
    supervisor = Supervisor(described, where, shown)
    try:
        await supervisor.start()
        async with natterjack.connect(server.url) as client:
            yield Crew(supervisor, shown, client, folder)
    finally:
        await supervisor.stop()
        assert not any(alive(child.process.pid) for child in supervisor.children if child.process)


# --- hangs --------------------------------------------------------------------------------------------------------


async def test_a_process_that_hangs_is_replaced_and_its_event_handled(own_server: NatsServer, folder: Path) -> None:
    async with working(own_server, folder, hang_timeout=4) as crew:
        (first,) = crew.pids
        await crew.client.event_bus.emit("work", "hang")
        await until(lambda: crew.shown.count("agent worker ready") == 2, 90)
        assert not alive(first)
        told = crew.shown.index("its event loop stands still since 4 s; it is ended, and says where:")
        where = crew.shown.index("in stand_still")
        assert told < where < crew.shown.index("worker: ended with signal SIGABRT; it starts again")
        assert "lifecycle_agents.py" in crew.shown.lines[where]
        await until(lambda: crew.handled == ["hang"], 90)
        assert (await crew.ask("?")).startswith(str(crew.pids[0]))


async def test_a_process_that_is_stopped_hangs_too(own_server: NatsServer, folder: Path) -> None:
    async with working(own_server, folder, hang_timeout=4) as crew:
        os.kill(crew.pids[0], signal.SIGSTOP)
        await until(lambda: crew.shown.count("agent worker ready") == 2, 90)
        assert crew.shown.index("ended with signal SIGKILL; it starts again") > 0  # a stopped one cannot say where


async def test_a_broker_that_is_away_makes_nobody_hang(own_server: NatsServer, folder: Path) -> None:
    async with working(own_server, folder, hang_timeout=4) as crew:
        (child,), before = crew.supervisor.children, crew.pids
        own_server.kill()
        beats = child.beats
        await until(lambda: child.beats > beats + 9, 90)  # more than twice as long as it might stand still
        own_server.start()
        await crew.found()
        assert await crew.ask("?") == f"{before[0]} ?"
        assert crew.pids == before


async def test_an_agent_that_ends_while_the_broker_is_away_comes_back_with_it(
    own_server: NatsServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack.cli.child.MAX_PAUSE", 0.5)
    async with working(own_server, folder) as crew:
        own_server.kill()
        os.kill(crew.pids[0], signal.SIGKILL)
        await until(lambda: crew.shown.count("ended with exit code 3") > 1, 90)  # no broker can be reached
        own_server.start()
        await until(lambda: crew.shown.count("agent worker ready") == 2, 90)
        await crew.found()
        assert await crew.ask("?") == f"{crew.pids[0]} ?"


# --- memory -------------------------------------------------------------------------------------------------------


async def test_a_process_that_grows_drains_and_starts_again(own_server: NatsServer, folder: Path) -> None:
    async with working(own_server, folder, memory="180MB", memory_max="900MB") as crew:
        (first,) = crew.pids
        slow = asyncio.create_task(crew.ask("slow"))
        await until((folder / "asked").exists)
        await crew.client.event_bus.emit("work", "grow")
        await until(lambda: crew.shown.index("of the 180 MB it may; it drains, and starts again") > 0, 90)
        (folder / "answer").touch()
        assert await slow == f"{first} slow"  # what ran when it was told to drain
        await until(lambda: crew.shown.count("agent worker ready") == 2, 90)
        assert crew.shown.index("worker: ended with exit code 0; it starts again in 0.5 s") > 0
        assert crew.handled == ["grow"]


HOG = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("agent", sys.argv[1], "ready", flush=True)
kept = b"x" * 60_000_000
sys.stdin.read()
"""


async def test_a_process_that_grows_too_much_is_killed() -> None:
    shown = Shown()
    command: Sequence[str] = [sys.executable, "-I", "-S", "-c", HOG]
    described = team(memory="30MB")
    supervisor = Supervisor(described, Server("nats://127.0.0.1:1"), shown, command=command)
    try:
        await supervisor.start()
        await until(lambda: shown.index("more than the 45 MB at most, and is killed") > 0)
        await until(lambda: shown.index("worker: ended with signal SIGKILL; it starts again in 0.5 s") > 0)
    finally:
        await supervisor.stop()
    assert [child for child in supervisor.children if child.process is not None and alive(child.process.pid)] == []


# --- renewal ------------------------------------------------------------------------------------------------------


async def test_no_ask_fails_while_replicas_are_renewed(own_server: NatsServer, folder: Path) -> None:
    async with working(own_server, folder, replicas=3) as crew:
        before, done, answers = set(crew.pids), asyncio.Event(), list[str]()

        async def keep_asking(number: int) -> None:
            while not done.is_set():
                answers.append(await crew.ask(str(number)))
                await clock.sleep(0.02)  # a few hundred asks a second: more would only slow the starts down

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(keep_asking(number))
            await until(lambda: len(answers) > 200)
            await crew.supervisor.renew("worker")
            renewed = set(crew.pids)
            await crew.supervisor.renew("worker")
            least = len(answers) + 200
            await until(lambda: len(answers) > least)
            done.set()
        assert len(answers) > 400
        assert len(before | renewed | set(crew.pids)) == 9
        served = {int(answer.split()[0]) for answer in answers}
        assert served == before | renewed | set(crew.pids)  # all of them, each while it was there
        assert [child.label for child in crew.supervisor.children] == ["worker/1", "worker/2", "worker/3"]


# --- who holds the processes --------------------------------------------------------------------------------------

SUPERVISING = """
import asyncio, sys
from natterjack.server import Server
from natterjack.cli.supervisor import Supervisor
from natterjack.team import AgentSpec, Team
async def main():
    spec = AgentSpec(kind="lifecycle_agents:Worker", on=("work",), replicas=2, drain_timeout=0, hang_timeout=0)
    supervisor = Supervisor(Team(name="crew", agents={"worker": spec}), Server(sys.argv[1]), print)
    await supervisor.start()
    print("pids", *(child.process.pid for child in supervisor.children), flush=True)
    await supervisor.wait()
asyncio.run(main())
"""


async def test_processes_end_with_a_killed_supervisor_even_one_that_hangs(own_server: NatsServer, folder: Path) -> None:
    server = Server(own_server.url)
    await provisioned(server, team(replicas=2, drain_timeout=0, hang_timeout=0))
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISING, own_server.url, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    try:
        async with asyncio.timeout(90):
            while not (line := (await parent.stdout.readline()).decode()).startswith("pids"):
                assert line, "the supervisor ended"
        children = [int(word) for word in line.split()[1:]]
        async with natterjack.connect(own_server.url) as client:
            hanging = asyncio.create_task(client.ask_peer("worker", "hang", timeout=30))
            await until((folder / "hung").exists)
            assert [alive(pid) for pid in children] == [True, True]
            parent.kill()
            await until(lambda: not any(map(alive, children)), 90)
            hanging.cancel()
            await asyncio.gather(hanging, return_exceptions=True)
    finally:
        with contextlib.suppress(ProcessLookupError):
            parent.kill()
        await parent.wait()


BREEDING = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"])
print("bred", child.pid, flush=True)
print("agent", sys.argv[1], "ready", flush=True)
sys.stdin.read()
"""


async def test_what_a_killed_process_started_ends_with_it_and_holds_nothing_up() -> None:
    shown = Shown()
    command: Sequence[str] = [sys.executable, "-I", "-S", "-c", textwrap.dedent(BREEDING)]
    supervisor = Supervisor(team(), Server("nats://127.0.0.1:1"), shown, command=command)

    def bred() -> list[int]:
        return [int(line.split()[-1]) for line in shown.lines if "bred" in line]

    try:
        await supervisor.start()
        process = supervisor.children[0].process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: shown.count("agent worker ready") == 2)
    finally:
        await supervisor.stop()
    await until(lambda: not any(map(alive, bred())))
    assert len(bred()) == 2
