"""A team that `natterjack up` keeps running, as processes that can be counted, stopped and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil

from natterjack.team.file import read_team

from .workload import FOLDER, clock

HERE = Path(__file__).parent
TEAM = read_team(HERE / "team.toml")
REPLICAS = Counter({name: spec.replicas for name, spec in TEAM.agents.items()})
LABELS = [f"{name}/{number}" for name, replicas in REPLICAS.items() for number in range(1, replicas + 1)]
"""Its processes: `ledger/1`, `ledger/2`, …; which of two replicas is which changes when one is started again."""
LEASE = 2.0
"""Seconds after which a silent replica's work goes to another; 30 outside of this suite."""
END = 30.0


class Supervised:
    """One `natterjack up`, and the processes under it.

    Args:
        url: The server, perhaps through a proxy.
        folder: Where its agents leave their effects; names all of its processes.
        log: What it prints.
        prefix: Put before its command.
    """

    def __init__(self, url: str, folder: Path, log: Path, prefix: tuple[str, ...] = ()) -> None:
        self._url, self._folder, self._log, self._prefix = url, folder, log, prefix
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = 0

    def start(self) -> None:
        """Start it."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("NATS_", "NATTERJACK_"))}
        command = [*self._prefix, sys.executable, str(HERE / "launch.py"), "up", str(HERE / "team.toml")]
        with self._log.open("ab") as log:
            self._begun = log.tell()
            self._process = subprocess.Popen(
                [*command, "--server", self._url],
                env={**kept, FOLDER: str(self._folder), "CHAOS_LEASE": str(LEASE)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def ready(self, timeout: float = 60.0) -> None:
        """Return once all of its agents have listened; it is started again if it ends before, as systemd would."""

        deadline = time.monotonic() + timeout
        while b"\nready " not in self._since():
            assert time.monotonic() < deadline, f"not ready within {timeout:g} s:\n{self._since()[-4000:].decode()}"
            if not self.runs:
                self.start()
            await clock.sleep(0.1)

    def _since(self) -> bytes:
        with self._log.open("rb") as log:
            log.seek(self._begun)
            return log.read()

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill it; its agents notice by themselves."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """Have it end in order, and return its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(END)

    def output(self) -> str:
        """Return what it printed."""
        return self._log.read_text(errors="replace")

    def agents(self) -> dict[str, psutil.Process]:
        """Return the processes of its agents, by label."""
        if self._process is None:
            return {}
        found: dict[str, list[psutil.Process]] = defaultdict(list)
        try:
            children = psutil.Process(self._process.pid).children()
        except psutil.NoSuchProcess:
            return {}
        for child in children:
            if name := agent_of(child):
                found[name].append(child)
        return {f"{name}/{number}": each for name, all_of in found.items() for number, each in enumerate(all_of, 1)}


def agent_of(process: psutil.Process) -> str:
    """Return which agent a process runs, if any."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    return command[-1] if command[-3:-1] == ["agent", "run"] else ""


def left_behind(folder: Path) -> list[str]:
    """Return every process, of whatever parent, that belongs to the teams of a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(FOLDER) == str(folder):
                found.append(f"{process.pid} {' '.join(process.cmdline()[-3:])}")
        except psutil.Error:
            continue
    return found
