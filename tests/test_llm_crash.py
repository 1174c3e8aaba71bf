"""A model agent whose process dies goes on elsewhere, and asks nothing again that was answered."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from natterjack import connect
from natterjack.testing import NatsServer, until

from .model_server import ModelServer, call, results

TEAM = """\
[team]
name = "newsroom"

[agents.writer]
kind = "llm"
model = "openai:gpt-5-mini"
"""


@contextmanager
def up(folder: Path, server: NatsServer) -> Iterator[psutil.Process]:
    """Within the context, the team runs."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NATTERJACK_"))}
    command = [sys.executable, "-m", "natterjack", "up", "team.toml"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env={**kept, "NATS_URL": server.url}, stdout=log, stderr=log)
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            assert process.wait(30) == 0, (folder / "log").read_text()


@pytest.mark.full  # the lease of a silent replica is 30 s
@pytest.mark.timeout(180)
async def test_a_killed_process_pays_for_no_request_twice(
    own_server: NatsServer, model_server: ModelServer, tmp_path: Path
) -> None:
    killed = threading.Event()

    async def script(body: dict[str, Any]) -> Any:
        done = len(results(body))
        if done == 2 and not killed.is_set():
            await asyncio.to_thread(killed.wait)
        return "five" if done == 4 else call("get_context", key=f"k{done}")

    model_server.script = script
    (tmp_path / "team.toml").write_text(TEAM)
    with up(tmp_path, own_server) as supervisor:
        async with connect(own_server.url, context=False) as client:

            async def ready() -> bool:
                return [agent.name for agent in await client.agents()] == ["writer"]

            await until(ready, timeout=60)
            run = await client.inject_event("writer", {"type": "go"})
            await until(lambda: len(model_server.asked) == 3, timeout=60)
            (child,) = [each for each in supervisor.children() if each.cmdline()[-3:-1] == ["agent", "run"]]
            child.kill()
            killed.set()
            assert await run.result(120) == "five"
    # Of five requests, the third was under way when the process died: its answer reached nobody.
    assert [len(results(body)) for body in model_server.asked] == [0, 1, 2, 2, 3, 4]


SCRIPT = """
def told(seen):
    parts = [part for message in seen.messages for part in message.parts]
    return " | ".join(part.content for part in parts if part.part_kind == "user-prompt")
"""
TOML = """\
[team]
name = "office"

[agents.desk]
kind = "llm"
model = "scripted:my_script:told"
"""


async def test_a_process_that_is_killed_between_two_turns_forgets_nothing(
    own_server: NatsServer, tmp_path: Path
) -> None:
    (tmp_path / "team.toml").write_text(TOML)
    (tmp_path / "my_script.py").write_text(SCRIPT)
    with up(tmp_path, own_server) as supervisor:
        async with connect(own_server.url, context=False) as client:

            async def instance() -> str:
                return "".join(agent.instance for agent in await client.agents())

            first = await until(instance, timeout=60)
            assert await client.ask_peer("desk", "one", conversation_id="t") == "one"
            (child,) = [each for each in supervisor.children() if each.cmdline()[-3:-1] == ["agent", "run"]]
            child.kill()

            async def another() -> bool:
                return await instance() not in ("", first)

            await until(another, timeout=60)
            assert await client.ask_peer("desk", "two", conversation_id="t") == "one | two"
