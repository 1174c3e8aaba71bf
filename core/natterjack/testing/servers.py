"""A private nats-server that a test may start, stop, kill and restart."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Self

from natterjack.broker import find_server

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - each server has a folder of its own there
_ROOM: Final = 8 * 2**30
_STORE: Final = "jetstream { max_file_store: 64GB }"
"""As the embedded broker has it: streams set their size aside, and otherwise it has to be free at the start."""
_LIMITS: Final = re.compile(r"^jetstream\b", re.MULTILINE)


def _where() -> Path | None:
    """Return a folder in memory, where there is one with room, for stores that nobody keeps; None: no such folder."""
    with suppress(OSError):
        return _MEMORY if shutil.disk_usage(_MEMORY).free > _ROOM else None
    return None


def free_ports(count: int) -> list[int]:
    """Return ports on which nobody listens, none twice."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port() -> int:
    """Return a port on which nobody listens."""
    return free_ports(1)[0]


class NatsServer:
    """A real nats-server with JetStream on loopback.

    Args:
        config: Text of a configuration file, beside listen address and store.
        store: Folder for its data; by default a temporary one, in memory if it can be, and removed at the end.
        port: A fixed port; by default a free one, kept over restarts.
    """

    def __init__(self, config: str = "", *, store: Path | None = None, port: int = -1) -> None:
        self._temporary = store is None
        self.store = store or Path(tempfile.mkdtemp(prefix="natterjack-test-", dir=_where()))
        self.store.mkdir(parents=True, exist_ok=True)
        self.config = config
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self, timeout: float = 20.0) -> Self:
        """Start it and return once it accepts clients."""
        config = self.configure(self.config)
        command = [str(find_server()), "-c", str(config), "-a", "127.0.0.1", "-p", str(self.port)]
        command += ["-js", "-sd", str(self.store), "--ports_file_dir", str(self.store), "-l", str(self.store / "log")]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - our own binary
        ports = self.store / f"nats-server_{self._process.pid}.ports"
        deadline = time.monotonic() + timeout
        while not (url := _client_url(ports)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                msg = f"nats-server did not start: {self.log()[-2000:]}"
                raise RuntimeError(msg)
            time.sleep(0.002)
        self.port = int(url.rpartition(":")[2])
        return self

    def stop(self) -> None:
        """Stop it as an operator would."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """Have it do nothing and end nothing, as a machine that hangs, until `thaw`."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have a frozen one go on."""
        self._send(signal.SIGCONT)

    def reload(self, config: str) -> None:
        """Have it read a new configuration."""
        self.configure(config)
        self._send(signal.SIGHUP)

    def configure(self, config: str) -> Path:
        """Write a configuration, which it reads when it is started or told to, and return where."""
        path = self.store / "test.conf"
        path.write_text(config if _LIMITS.search(config) else f"{config}\n{_STORE}\n")
        return path

    def log(self) -> str:
        """Return what it has logged."""
        path = self.store / "log"
        return path.read_text() if path.exists() else ""

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(20)
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._temporary:
            shutil.rmtree(self.store, ignore_errors=True)


def _client_url(ports: Path) -> str:
    try:
        return str(json.loads(ports.read_text())["nats"][0])
    except (OSError, ValueError, KeyError, IndexError):
        return ""
