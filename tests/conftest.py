"""Fixtures that several files use: connections, and the command line: alone, with a team, with one that runs."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import nats
import pytest
import pytest_asyncio
from hypothesis import is_hypothesis_test, settings
from nats.aio.client import Client

from natterjack.bus import Bus
from natterjack.cli import main
from natterjack.server import Server
from natterjack.subjects import OPERATOR
from natterjack.testing import NatsServer
from natterjack.testing.command import Cli

if TYPE_CHECKING:
    from .model_server import ModelServer

# A loaded machine takes its time. The full suite tries more, and runs the property tests with it.
settings.register_profile("default", deadline=None)
settings.register_profile("full", deadline=None, max_examples=2000)


def pytest_configure(config: pytest.Config) -> None:
    # Tests start hundreds of processes. Without bytecode on disk each of them compiles for twice as long as it runs.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    settings.load_profile("full" if config.option.markexpr == "full" else "default")


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers() -> int:
    """Half as many again as there are processors: most tests wait, for processes and for the broker."""
    return int(os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS") or (os.cpu_count() or 1) * 3 // 2)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items if config.option.markexpr == "full" else ():
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("full")
            item.add_marker(pytest.mark.timeout(900))


TEAM = """\
[team]
name = "garden"
external = ["visitor.arrived", "visitor.failed"]

[context]
visitors = []

[agents.greeter]
kind = "agents:Greeter"
on = ["visitor.arrived"]

[agents.clumsy]
kind = "agents:Clumsy"
on = ["visitor.failed"]
max_attempts = 1
"""

AGENTS = '''\
"""Agents for the tests of the command line."""

from natterjack import Agent


class Greeter(Agent):
    """Greets visitors."""

    async def handle(self, event, ctx):
        await ctx.shared.update("visitors", lambda known: [*(known or []), event.data["name"]])
        await ctx.emit("visitor.greeted", event.data)
        return f"Hello, {event.data['name']}!"

    async def answer(self, question, ctx):
        return f"{question} {', '.join(ctx.shared.get('visitors', []))}"


class Clumsy(Agent):
    """Fails."""

    async def handle(self, event, ctx):
        raise ValueError("it fell down")

    async def answer(self, question, ctx):
        raise ValueError("a secret")
'''


class Quick(Cli):
    """Runs commands to their end in this process: a new one takes a second to import everything."""

    def run(self, *args: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
        out, err, given = (io.TextIOWrapper(io.BytesIO(data), encoding="utf-8") for data in (b"", b"", stdin.encode()))
        argv = ["natterjack", *args]
        with (
            chdir(self.folder),
            redirect_stdout(out),
            redirect_stderr(err),
            patch.multiple(sys, argv=argv, stdin=given),
            patch.dict(os.environ, self.environment, clear=True),
            pytest.raises(SystemExit) as ended,
        ):
            main()
        printed = []
        for stream in (out, err):
            stream.seek(0)
            printed.append(stream.read())
        assert ended.value.code == code, printed
        assert "Traceback" not in printed[1]
        return subprocess.CompletedProcess(argv, code, *printed)


@pytest.fixture(scope="session")
def nats_command() -> str | None:
    """The real `nats`, on PATH or as continuous integration builds it; None where there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "natterjack"
    built = sorted(cache.glob("natscli-*/bin/nats"))
    return shutil.which("nats") or (str(built[-1]) if built else None)


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What a test opens, and is closed after it."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest_asyncio.fixture
async def raw(own_server: NatsServer, stack: AsyncExitStack) -> Client:
    """A stranger's connection, as the nats command line tool or any other client has it."""
    client = await nats.connect(own_server.url)
    stack.push_async_callback(client.close)
    return client


@pytest_asyncio.fixture
async def bus(own_server: NatsServer) -> AsyncIterator[Bus]:
    """The operator's connection to this test's own server."""
    bus = await Bus.connect(Server(own_server.url), principal=OPERATOR)
    yield bus
    await bus.close()


@pytest.fixture
def quick(tmp_path: Path) -> Quick:
    """The same as `cli`, in this process."""
    return Quick(tmp_path)


@pytest.fixture(scope="session")
def quick_in() -> Callable[[Path], Quick]:
    """The same in a folder that the test chooses."""
    return Quick


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line in an empty folder, where no broker runs."""
    return Cli(tmp_path)


@pytest.fixture
def garden(quick: Quick) -> Quick:
    """The command line in a folder with a team that does not run."""
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    return quick


@pytest.fixture
def model_server(monkeypatch: pytest.MonkeyPatch) -> "Iterator[ModelServer]":
    """A model server that does what the test wrote down; `openai:` models go to it."""
    from .model_server import serving  # lazy: few tests have a model

    with serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", "scripted")
        yield server


@pytest.fixture
def leave_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs leave their process for the shortest wait, so that a loaded machine does not decide."""
    monkeypatch.setattr("natterjack.pauses.SHORT", 0.0)


@contextmanager
def _served(cli: Cli) -> Iterator[None]:
    with NatsServer() as server:
        cli.env["NATS_URL"] = server.url
        with cli.start("up", "--single-process") as process:
            process.wait_line("^ready")
            yield
            assert process.end() == 0, process.output


@pytest.fixture(scope="session")
def served_team() -> Callable[[Cli], AbstractContextManager[None]]:
    """Runs the team of a folder on a server of its own, for as long as it is entered."""
    return _served


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Quick]:
    """The command line of a team that runs, on a server of this test file's own; what `start` starts is a process."""
    cli = Quick(tmp_path_factory.mktemp("garden"))
    cli.write(team_toml=TEAM, agents_py=AGENTS)
    with _served(cli):
        yield cli
