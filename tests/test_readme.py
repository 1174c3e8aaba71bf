"""What the README shows is run: its programs, its team, its commands."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from natterjack.builtin import EventTrigger
from natterjack.bus import Bus
from natterjack.cli.advice import warnings
from natterjack.components import Trigger
from natterjack.plugins import Plugins
from natterjack.process import AgentProcess
from natterjack.runtime import AgentRuntime
from natterjack.server import Server
from natterjack.team import check_team
from natterjack.team.file import read_team
from natterjack.testing import NatsServer, ScriptedClock, until

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMAND = [sys.executable, "-m", "natterjack"]


def block(language: str, start: str) -> str:
    """Return the one block of a language that contains a text."""
    (found,) = [text for kind, text in BLOCKS if kind == language and start in text]
    return found


def console_lines() -> list[str]:
    return [line[2:] for kind, text in BLOCKS if kind == "console" for line in text.splitlines() if line[:2] == "$ "]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NATS_")}
    return {**kept, **more}


def run(command: list[str], folder: Path, timeout: float = 40.0, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(**env), capture_output=True, text=True, timeout=timeout, check=False
    )


def test_every_block_is_run_by_a_test() -> None:
    known = {"python": 6, "toml": 3, "console": 6, "text": 2, "mermaid": 1}
    assert {language: sum(kind == language for kind, _ in BLOCKS) for language in known} == known
    assert {kind for kind, _ in BLOCKS} == set(known)


def test_demo_prints_what_the_readme_shows(tmp_path: Path) -> None:
    shown = block("console", "natterjack demo").splitlines()
    assert shown[0] == "$ pip install uv && uv run natterjack demo"
    done = run([*COMMAND, "demo"], tmp_path)
    assert done.returncode == 0, done.stderr
    printed = done.stderr.splitlines()
    told = [line for line in shown[1:] if line and not line.startswith(("How does", "…"))]
    assert [masked(line) for line in printed] == [masked(line) for line in told]
    assert "How does the with statement work?" in done.stdout


def masked(line: str) -> str:
    """Ports and process ids differ from run to run, passages from one version of Python to the next."""
    return re.sub(r"\d+", "N", " ".join(line.split()))


def test_the_test_command_is_what_ci_runs() -> None:
    assert "uv run --group dev pytest" in console_lines()
    assert "uv run --group dev pytest" in (ROOT / ".ci" / "run").read_text()


def test_first_agent_prints_what_the_readme_shows(tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(block("python", "runtime.inject_event"))
    done = run([sys.executable, "counter.py"], tmp_path)
    assert done.stdout == block("text", "now 2"), done.stderr
    assert (tmp_path / ".natterjack").is_dir()


@contextmanager
def team_up(folder: Path, server: NatsServer) -> Iterator[None]:
    """Run the README's team, as its command says."""
    for language, name in (("python", "agents.py"), ("toml", "team.toml")):
        (folder / name).write_text(block(language, f"# {name}"))
    assert "natterjack up team.toml" in console_lines()
    with (folder / "log").open("w+") as log:
        env = environment(NATS_URL=server.url)
        process = subprocess.Popen([*COMMAND, "up", "team.toml"], cwd=folder, env=env, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(30) == 0, (folder / "log").read_text()


@pytest.mark.open_mode(reason="the nats command has no key")
async def test_first_team_answers_what_the_readme_shows(tmp_path: Path, own_server: NatsServer) -> None:
    with team_up(tmp_path, own_server):
        await until(lambda: "\nready" in (tmp_path / "log").read_text(), timeout=30)
        publish = next(line for line in console_lines() if line.startswith("nats pub events.count.add"))
        await as_nats_command(publish, own_server)
        shown = block("console", "natterjack ask counter").splitlines()
        asking = [*COMMAND, "ask", "counter", "how many?"]
        assert shown[1:] == ['$ natterjack ask counter "how many?"', "2 so far"]
        await until(lambda: run(asking, tmp_path, NATS_URL=own_server.url).stdout == "2 so far\n", timeout=20)

        program = block("python", "natterjack.connect(").replace("nats://127.0.0.1:4222", own_server.url)
        (tmp_path / "program.py").write_text(program)
        assert run([sys.executable, "program.py"], tmp_path).stdout == "2 so far\n"
        await until(lambda: run(asking, tmp_path, NATS_URL=own_server.url).stdout == "5 so far\n", timeout=20)


async def as_nats_command(line: str, server: NatsServer) -> None:
    """Do what a `nats pub` line does: by the real command where it is installed, else by a plain client."""
    found = re.fullmatch(r"nats pub (\S+) '(.*)'", line)
    assert found is not None
    nats = shutil.which("nats")
    if nats:
        assert run([nats, "--server", server.url, "pub", *found.groups()], server.store).returncode == 0
        return
    bus = await Bus.connect(Server(server.url), principal="outside")
    await bus.publish(found[1], found[2].encode())
    await bus.close()


@contextmanager
def in_background(line: str, server: NatsServer) -> Iterator[None]:
    with subprocess.Popen(
        [*line.split(), "--server", server.url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.terminate()


@pytest.mark.skipif(shutil.which("nats") is None, reason="the nats command is not installed")
@pytest.mark.open_mode(reason="the nats command has no key")
async def test_a_shell_line_is_a_peer(tmp_path: Path, own_server: NatsServer) -> None:
    line = next(each for each in console_lines() if each.startswith("nats reply"))
    ask = [*COMMAND, "ask", "clock", "now?", "--server", own_server.url]
    with in_background(line, own_server):
        answer = await until(lambda: run(ask, tmp_path).stdout, timeout=20)
    assert ":" in answer


async def test_plugin_fires(tmp_path: Path, own_server: NatsServer) -> None:
    path = tmp_path / "natterjack_tick.py"
    path.write_text(block("python", "natterjack_triggers"))
    spec = importlib.util.spec_from_file_location("natterjack_tick", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tick,) = module.natterjack_triggers()
    assert issubclass(tick, Trigger)
    heard: list[str] = []

    async def hear(text: str) -> None:
        heard.append(text)

    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess(name="hearer", agent=hear, triggers=[tick(tick.Config(every=0.05))]))
    async with runtime:
        await until(lambda: len(heard) >= 2)
    assert heard[0] == '{"every":0.05}'


def test_newsroom_is_a_team_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "newsroom.toml"
    path.write_text(block("toml", "# newsroom.toml"))
    team = read_team(path)
    check_team(team, Plugins.load())
    assert warnings(team) == []
    assert team.agents["analyst"].result_events.keys() == {"analysis.approved", "research.start"}


def test_streaming_prints_what_the_readme_shows(tmp_path: Path) -> None:
    (tmp_path / "stream.py").write_text(block("python", "ask_stream"))
    done = run([sys.executable, "stream.py"], tmp_path)
    assert done.stdout == block("text", "1 \n"), done.stderr


def test_a_plugin_is_begun_by_one_command(tmp_path: Path) -> None:
    new, install = block("console", "plugins new").splitlines()
    assert new.startswith("$ natterjack plugins new tick ")
    assert run([*COMMAND, *new.split()[2:]], tmp_path).returncode == 0
    done = run([*COMMAND, *install.split()[2:], "--dry-run"], tmp_path)  # tests/test_newcomer.py installs it
    assert done.returncode == 0, done.stderr
    assert "natterjack-tick" in done.stdout + done.stderr


def test_plugin_packaging_names_the_entry_point() -> None:
    project = tomllib.loads(block("toml", "# pyproject.toml"))
    assert project["project"]["entry-points"]["natterjack"] == {"tick": "natterjack_tick"}


def test_commands_that_are_named_exist(tmp_path: Path) -> None:
    named = set(re.findall(r"[`$] ?natterjack ([a-z]+)", README))
    known = set(re.findall(r"│ ([a-z]+) ", run([*COMMAND, "--help"], tmp_path).stdout))
    assert len(named) > 5
    assert named <= known


SHOP = """
import asyncio
from natterjack import Agent, Event, RunContext

done = []

def ask_a_model(text):
    done.append("asked")
    return text.split()

def look_up(flower):
    done.append(flower)
    return 600

def ship(offer, paid):
    done.append(f"shipped {len(offer)}, {paid['by']}")
"""


async def test_durable_agent_does_each_step_once(runtime: AgentRuntime, clock: ScriptedClock) -> None:
    namespace: dict[str, Any] = {}
    exec(SHOP + block("python", "class Shop(Agent)"), namespace)
    agent, waits = namespace["Shop"](), ["payment.received", "approval.answered"]
    runtime.add_process(AgentProcess("shop", agent=agent, triggers=[EventTrigger("order")], waits=waits))
    async with runtime:
        await runtime.event_bus.emit("order", {"text": "lilies roses"}, id="first")

        async def asked() -> str:
            found = [event.data["id"] async for event in runtime.event_bus.replay("approval.requested")]
            return found[0] if found else ""

        await runtime.event_bus.emit("approval.answered", {"id": await until(asked), "answer": "yes"})
        await runtime.event_bus.emit("payment.received", {"offer": "first", "by": "card"})

        async def sleeps() -> bool:
            return bool([entry async for entry in runtime.journal.entries("shop", kind="sleep")])

        await until(sleeps)
        await clock.advance(3600)

        async def sold() -> list[Any]:
            return [entry.data["result"] async for entry in runtime.journal.entries("shop", kind="done")]

        assert await until(sold) == ["sold"]
    assert namespace["done"] == ["asked", "lilies", "roses", "shipped 2, card"]
