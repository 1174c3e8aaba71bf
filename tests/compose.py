"""What `docker-compose.yml` describes, as plain processes of this machine: for where there is no Docker.

Each service has a loopback address of its own instead of a network, and folders instead of volumes.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from natterjack.broker import find_server

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::[?-][^}]*)?\})")
_SECONDS = 60


def read() -> dict[str, Any]:
    """Return the file, as it stands there."""
    return dict(yaml.safe_load(FILE.read_text()))


class Compose:
    """The services, each of which can be run.

    Args:
        folder: Where their files go.
        variables: What the file takes from the environment.
    """

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self.folder, self._variables = folder, variables
        self._content = self._interpolated(read())
        self.services: dict[str, dict[str, Any]] = self._content["services"]
        net = f"127.{secrets.randbelow(250) + 2}.{secrets.randbelow(250) + 2}"
        self._addresses = {name: f"{net}.{number}" for number, name in enumerate(self.services, 1)}
        self.done: set[str] = set()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def _interpolated(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._interpolated(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._interpolated(each) for each in value]
        if isinstance(value, str):
            return _VARIABLE.sub(lambda found: self._variables[found[1]] if found[1] else "$", value)
        return value

    def _here(self, service: str, text: str) -> str:
        """Return what a service says of its network and files, as it is on this machine."""
        for target, folder in self._mounts(service).items():
            text = re.sub(rf"(?<![\w.-]){re.escape(target)}(?![\w.-])", str(folder), text)
        for name, address in self._addresses.items():
            text = re.sub(rf"(?<=[/@]){name}(?=:)", address, text)
        return text.replace("0.0.0.0", self._addresses[service]).replace("127.0.0.1", self._addresses[service])

    def _mounts(self, service: str) -> dict[str, Path]:
        """Return the folders and files behind what a service finds in its own."""
        described = self.services[service]
        found = {}
        for mount in described.get("volumes", ()):
            source, target = mount.split(":")[:2]
            found[target] = ROOT / source if source.startswith(".") else self.folder / "volumes" / source
        for config in described.get("configs", ()):
            path = self.folder / config["source"]
            path.write_text(self._content["configs"][config["source"]]["content"])
            found[config["target"]] = path
        return found

    def environment(self, service: str) -> dict[str, str]:
        """Return the variables of a service."""
        own = {name: self._here(service, str(value)) for name, value in self.services[service]["environment"].items()}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NATTERJACK_"))}
        return {**kept, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **own}

    def _begin(self, service: str, command: list[str], **given: Any) -> subprocess.Popen[bytes]:
        for folder in self._mounts(service).values():
            if not folder.exists():
                folder.mkdir(parents=True)
        if self.services[service]["image"].startswith("nats:"):
            command = [str(find_server()), *command]
        words = [self._here(service, word) for word in command]
        return subprocess.Popen(words, cwd=self.folder, env=self.environment(service), **given)

    def rewrite(self, config: str, content: str) -> None:
        """Have a file that stands in it be another one."""
        self._content["configs"][config]["content"] = content

    def run(self, service: str, *command: str) -> str:
        """Run a service to its end, with this command instead of its own, and return what it prints."""
        described = self.services[service]
        words = [*described.get("entrypoint", ()), *(command or described["command"])]
        with self._begin(service, words, stdout=subprocess.PIPE) as process:
            printed, _ = process.communicate(timeout=_SECONDS)
        assert process.returncode == 0, (service, printed)
        return printed.decode()

    def start(self, service: str) -> None:
        """Start a service that goes on."""
        log = (self.folder / f"{service}.log").open("ab")
        with log:
            self._running[service] = self._begin(service, self.services[service]["command"], stdout=log, stderr=log)

    def kill(self, service: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a service, and wait until it has ended."""
        process = self._running[service]
        process.send_signal(number)
        process.wait(_SECONDS)

    def healthy(self, service: str) -> bool:
        """Tell what the health check of a service says."""
        how, *command = self.services[service]["healthcheck"]["test"]
        if command[0] == "wget":  # as in Alpine, which checks no certificate
            return _answers(self._here(service, command[-1]), self.folder / "volumes/secured/tls/ca.crt")
        words = ["sh", "-c", *command] if how == "CMD-SHELL" else command
        with self._begin(service, words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            return process.wait(_SECONDS) == 0

    @contextmanager
    def until_the_end(self) -> Iterator[Compose]:
        """End all that still runs in the end."""
        try:
            yield self
        finally:
            for process in self._running.values():
                process.terminate()
            for process in self._running.values():
                process.wait(_SECONDS)


def _answers(url: str, authorities: Path) -> bool:
    context = ssl.create_default_context(cafile=authorities)
    context.check_hostname = False
    try:
        with urllib.request.urlopen(url, context=context, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
