"""The command line in tests: real processes, whose output and exit code are checked."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Final

LIMIT: Final = 40.0
"""Seconds that a loaded machine may take for a command, or for its next line."""


class Process:
    """A command that runs, and what it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._queue: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._queue.put(line.rstrip("\n"))

    def wait_line(self, pattern: str, timeout: float = LIMIT) -> re.Match[str]:
        """Return the first further line that matches, of standard output or error; each within `timeout` seconds."""
        while True:
            try:
                line = self._queue.get(timeout=timeout)
            except Empty:
                msg = f"no line {pattern!r} within {timeout:g} s in {self.output}"
                raise AssertionError(msg) from None
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found

    @property
    def output(self) -> str:
        """All that was read so far."""
        return "\n".join(self.lines)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal, and return the exit code."""
        self.send(number)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code once it has ended; `output` then has all."""
        code = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        while not self._queue.empty():
            self.lines.append(self._queue.get())
        return code


@dataclass
class Cli:
    """Runs `natterjack` in a folder, with no server named but in `env`.

    Attributes:
        folder: Where.
        env: Variables beside ours.
        python: The interpreter of the environment whose command it is; this one by default.
    """

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    python: str = sys.executable

    @property
    def environment(self) -> dict[str, str]:
        """What its processes get: ours, without a server or contexts of the user's."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("NATS_", "NATTERJACK_"))}
        return {**kept, "XDG_CONFIG_HOME": str(self.folder / ".config"), "COLUMNS": "120", **self.env}

    def run(self, *args: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run to the end, and check the exit code."""
        done = subprocess.run(  # noqa: S603 - our own command
            [self.python, "-m", "natterjack", *args],
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        if done.returncode != code or "Traceback" in done.stderr:
            msg = f"{args} ended with {done.returncode}, not {code}:\n{done.stdout}{done.stderr}"
            raise AssertionError(msg)
        return done

    def text(self, *args: str, stdin: str = "") -> str:
        """Return what it prints on standard output."""
        return self.run(*args, stdin=stdin).stdout.strip()

    def json(self, *args: str, stdin: str = "", code: int = 0) -> Any:
        """Return the one JSON value on standard output."""
        return json.loads(self.run(*args, "--json", stdin=stdin, code=code).stdout)

    def until_json(self, condition: Callable[[Any], object], *args: str) -> Any:
        """Return that value once it fulfils a condition; the command is repeated until then."""
        ends = time.monotonic() + LIMIT
        while not condition(found := self.json(*args)):
            if time.monotonic() > ends:
                msg = f"{args} still says {found} after {LIMIT:g} s"
                raise AssertionError(msg)
        return found

    def error(self, *args: str, code: int) -> str:
        """Return what follows `error: ` in the one line on standard error; standard output is empty."""
        done = self.run(*args, code=code)
        found = re.fullmatch(r"error: (.*)\n", done.stderr)
        if done.stdout or not found:
            msg = f"{args} told no error in one line:\n{done.stdout}{done.stderr}"
            raise AssertionError(msg)
        return found[1]

    @contextmanager
    def start(self, *args: str) -> Iterator[Process]:
        """A command that goes on; killed at the end if it still runs."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; children would be deaf, too
            signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(  # noqa: S603 - our own command
            [self.python, "-u", "-m", "natterjack", *args],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running = Process(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            running.wait()
            if process.stdout is not None:
                process.stdout.close()

    def write(self, **files: str) -> None:
        """Write files; `team_toml` is `team.toml`."""
        for name, text in files.items():
            (self.folder / name.replace("_", ".")).write_text(textwrap.dedent(text), encoding="utf-8")
