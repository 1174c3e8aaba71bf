"""Five processes of one agent, killed at work one after another: each tick is one event, and none is lost."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from natterjack import connect
from natterjack.testing import NatsServer, until

log = logging.getLogger(__name__)

REPLICAS = 5
TEAM = """
[agents.bell]
kind = "bell_agents:Bell"
on = [{ cron = "* * * * * *" }]
"""
AGENTS = """
import asyncio, json, os
from natterjack import Agent

def note(what, event):
    line = json.dumps([what, event.data["scheduled"], event.id, os.getpid()]) + "\\n"
    out = os.open("notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(out, line.encode())
    os.close(out)

class Bell(Agent):
    '''Works for a moment on what it hears.'''

    async def handle(self, event, ctx):
        note("begun", event)
        await asyncio.sleep(0.2)
        note("done", event)
"""


class Note(NamedTuple):
    """One line that an agent wrote."""

    what: str
    due: datetime
    event: str
    pid: int


class Replicas:
    """The processes."""

    def __init__(self, folder: Path, server: NatsServer) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NATTERJACK_"))}
        path = os.pathsep.join(filter(None, [str(folder), kept.get("PYTHONPATH", "")]))
        self.env = {**kept, "NATS_URL": server.url, "PYTHONPATH": path}
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.killed = 0

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "natterjack", *args]

    def provision(self) -> None:
        subprocess.run(self.command("provision"), cwd=self.folder, env=self.env, check=True, capture_output=True)

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            command = self.command("agent", "run", "bell")
            process = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=log, stderr=log)
        self.running[process.pid] = process

    def end(self, pid: int, number: signal.Signals) -> None:
        process = self.running.pop(pid)
        process.send_signal(number)
        process.wait(30)

    def notes(self) -> list[Note]:
        path = self.folder / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Note(what, datetime.fromisoformat(due), event, pid) for what, due, event, pid in map(json.loads, lines)]

    def due(self, what: str) -> set[datetime]:
        return {note.due for note in self.notes() if note.what == what}

    def victim(self) -> int:
        """The process that is at work, if two others live that have been; or else 0."""
        notes = self.notes()
        alive = {note.pid for note in notes} & set(self.running)
        return notes[-1].pid if len(alive) > 2 and notes[-1].what == "begun" and notes[-1].pid in alive else 0

    async def work(self, ticks: int) -> None:
        """Kill one at work, and start another, over and over until so many ticks have begun."""
        while len(self.due("begun")) < ticks:
            self.end(await until(self.victim, timeout=60), signal.SIGKILL)
            self.killed += 1
            self.start()


async def shorten_ack_wait(server: NatsServer) -> None:
    """Let what a killed process held come again after 5 s, not 30."""
    async with connect(server.url) as team:
        for stream in ("SCHEDULES", "INBOX"):
            for durable in await team.bus.consumers(stream):
                config = (await team.bus.api(f"CONSUMER.INFO.{stream}.{durable}"))["config"] | {"ack_wait": 5 * 10**9}
                create = {"stream_name": stream, "config": config}
                await team.bus.api(f"CONSUMER.DURABLE.CREATE.{stream}.{durable}", create)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ticks", [6, pytest.param(100, marks=pytest.mark.full)])
async def test_each_tick_is_one_event_while_replicas_die(own_server: NatsServer, tmp_path: Path, ticks: int) -> None:
    (tmp_path / "team.toml").write_text(TEAM)
    (tmp_path / "bell_agents.py").write_text(AGENTS)
    replicas = Replicas(tmp_path, own_server)
    await asyncio.to_thread(replicas.provision)
    await shorten_ack_wait(own_server)
    try:
        for _ in range(REPLICAS):
            replicas.start()
        await replicas.work(ticks)
        first = min(replicas.due("begun"))  # of what came before anybody ran, only the newest is handled
        wanted = {first + timedelta(seconds=number) for number in range(ticks)}
        await until(lambda: wanted <= replicas.due("done"), timeout=60)
    finally:
        for pid in list(replicas.running):
            replicas.end(pid, signal.SIGTERM)
    notes = replicas.notes()
    begun, done = ([note for note in notes if note.what == what] for what in ("begun", "done"))
    events = {(note.due, note.event) for note in notes}
    assert len(events) == len({note.due for note in notes})
    assert replicas.killed >= max(1, ticks // 10)
    again = len(begun) - len(events)
    assert again <= replicas.killed  # what a killed one had begun, another one begins again
    log.info("%d ticks, %d killed at work, %d begun again, %d done", ticks, replicas.killed, again, len(done))
