"""What the README of `plugins/llm` shows is run."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from natterjack import AgentProcess, AgentRuntime
from natterjack.testing import NatsServer, ScriptedAgent

from .model_server import ModelServer, call, results

README = (Path(__file__).parents[1] / "plugins" / "llm" / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


async def printed(folder: Path, server: NatsServer, *arguments: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NATTERJACK_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=folder,
        env={**kept, "NATS_URL": server.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, problems = await process.communicate()
    assert process.returncode == 0, problems.decode()
    return out.decode()


async def test_the_program_prints_the_models_answer(
    own_server: NatsServer, model_server: ModelServer, tmp_path: Path
) -> None:
    def script(body: dict[str, Any]) -> Any:
        told = results(body)
        return f"Toads eat {json.loads(told[0])['answer']}." if told else call("ask_peer", **QUESTION)

    model_server.script = script
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("archive", agent=ScriptedAgent(answers="flies")))
    (tmp_path / "program.py").write_text(blocks("python")[0])
    async with runtime:
        assert (await printed(tmp_path, own_server, "program.py")).startswith("Toads eat flies. {'requests': 2")


QUESTION = {"name": "archive", "question": "What do toads eat?"}


async def test_a_conversation_goes_on(own_server: NatsServer, model_server: ModelServer, tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Any:
        said = json.dumps(body["input"])
        return "Hello." if "What is" not in said else "You are Ada." if "My name is Ada." in said else "Who knows?"

    model_server.script = script
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("desk", agent_config={"model": "openai:gpt-5-mini"}))
    (tmp_path / "program.py").write_text(blocks("python")[1])
    async with runtime:
        assert await printed(tmp_path, own_server, "program.py") == "You are Ada.\n"


async def test_the_script_stands_in_for_a_model(
    runtime: AgentRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_tests.py").write_text(blocks("python")[2])
    monkeypatch.syspath_prepend(tmp_path)
    runtime.add_process(AgentProcess("writer", agent_config={"model": "scripted:my_tests:answers"}, asks=["archive"]))
    runtime.add_process(AgentProcess("archive", agent=ScriptedAgent(answers="flies")))
    async with runtime:
        assert await runtime.ask_peer("writer", "What do toads eat?") == "The archive says flies."


async def test_the_team_file_is_right(own_server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "team.toml").write_text(blocks("toml")[0])
    drawn = await printed(tmp_path, own_server, "-m", "natterjack", "graph")
    assert re.search(r"researcher.*emits +research\.complete.*asks +archive", drawn, re.DOTALL)
