"""Five processes of one agent, of which some are killed all the time: each firing is one event, and none is lost."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from natterjack import connect
from natterjack.testing import NatsServer, until

REPLICAS = 5
TEAM = """
[agents.bell]
kind = "bell_agents:Bell"
on = [{ every = 1 }]
"""
AGENTS = """
import json, os
from natterjack import Agent

class Bell(Agent):
    '''Writes down what it hears.'''

    async def handle(self, event, ctx):
        line = json.dumps([event.data["scheduled"], event.id, os.getpid()]) + "\\n"
        out = os.open("heard", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(out, line.encode())
        os.close(out)
"""


class Replicas:
    """The processes."""

    def __init__(self, folder: Path, server: NatsServer) -> None:
        self.folder, self.random = folder, random.Random(1)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NATTERJACK_"))}
        self.env = {**kept, "NATS_URL": server.url, "PYTHONPATH": str(folder)}
        self.running: list[subprocess.Popen[bytes]] = []
        self.killed = 0

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "natterjack", *args]

    def provision(self) -> None:
        subprocess.run(self.command("provision"), cwd=self.folder, env=self.env, check=True, capture_output=True)

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            command = self.command("agent", "run", "bell")
            self.running.append(subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=log, stderr=log))

    @property
    def working(self) -> list[subprocess.Popen[bytes]]:
        """Those that have heard something."""
        heard = {each.pid for each in self.heard()}
        return [process for process in self.running if process.pid in heard]

    def kill(self) -> None:
        """Kill one that works, in the midst of it."""
        self.end(self.random.choice(self.working), signal.SIGKILL)
        self.killed += 1

    def end(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        self.running.remove(process)
        process.send_signal(number)
        process.wait(30)

    def heard(self) -> list[Heard]:
        path = self.folder / "heard"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Heard(datetime.fromisoformat(due), id, pid) for due, id, pid in map(json.loads, lines)]

    async def work(self, ticks: int) -> None:
        """Kill one whenever two work, and start another, until so many firings are heard."""
        while len({each.due for each in self.heard()}) < ticks:
            await until(lambda: len(self.working) >= 2, timeout=60)
            self.kill()
            self.start()


class Heard(NamedTuple):
    """One line that an agent wrote."""

    due: datetime
    id: str
    pid: int


async def fired(server: NatsServer) -> list[datetime]:
    """What the broker has fired for, as its own stream has it."""
    async with connect(server.url) as team:
        found = [each.headers or {} async for each in team.bus.read("SCHEDULES", "schedule.*.*.fired")]
    return [datetime.fromisoformat(headers["Nats-Schedule-Next"]) - timedelta(seconds=1) for headers in found]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("ticks", [12, pytest.param(100, marks=pytest.mark.full)])
async def test_each_firing_is_one_event_while_replicas_die(own_server: NatsServer, tmp_path: Path, ticks: int) -> None:
    (tmp_path / "team.toml").write_text(TEAM)
    (tmp_path / "bell_agents.py").write_text(AGENTS)
    replicas = Replicas(tmp_path, own_server)
    await asyncio.to_thread(replicas.provision)
    try:
        for _ in range(REPLICAS):
            replicas.start()
        await replicas.work(ticks)
        first = replicas.heard()[0].due  # of what came before anybody ran, only the newest is handled
        due = {each for each in await fired(own_server) if each >= first}
        await until(lambda: due <= {each.due for each in replicas.heard()}, timeout=90)
        heard = replicas.heard()
    finally:
        for process in list(replicas.running):
            replicas.end(process, signal.SIGTERM)
    events = {(each.due, each.id) for each in heard}
    assert len(events) == len({each.due for each in heard})  # each firing is one event
    assert len(heard) - len(events) <= replicas.killed  # whoever dies between its work and the ack leaves it to another
    assert len(due) >= ticks - 1
    assert replicas.killed >= ticks // 6
