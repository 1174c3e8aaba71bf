"""What the README shows is run."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from natterjack import Tokens
from natterjack.testing import NatsServer, free_port, until
from natterjack_http import HttpTrigger

README = (Path(__file__).parents[1] / "README.md").read_text()
SECRET = "a secret of thirty-two bytes, or more"


def block(language: str, number: int = 0) -> str:
    """A block of a language."""
    return str(re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[number])


@contextmanager
def up(folder: Path, env: dict[str, str]) -> Iterator[None]:
    """Within the context, the team runs."""
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "natterjack", "up", "team.toml"]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            assert process.wait(30) == 0, (folder / "log").read_text()


async def run(*command: str, cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(*command, cwd=cwd, stdout=subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0
    return out.decode()


async def test_the_team_does_what_the_readme_says(own_server: NatsServer, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "team.toml").write_text(block("toml").replace("9001", str(port)))
    (tmp_path / "agents.py").write_text(block("python"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NATTERJACK_"))}
    token = Tokens(secret=SECRET, audience="researcher").mint("ann")
    url = f"http://127.0.0.1:{port}"
    with up(tmp_path, {**kept, "NATS_URL": own_server.url, "TOKEN_KEY": SECRET}):
        await until(lambda: "\nready" in (tmp_path / "log").read_text(), 40)
        command = block("sh").splitlines()[1].replace("http://127.0.0.1:9001", url).replace("$TOKEN", token)
        if shutil.which("curl"):
            found = json.loads(await run("sh", "-c", command.replace("curl ", "curl -sS "), cwd=tmp_path))
            shown = json.loads(block("json"))
            assert found.keys() == shown.keys()
            assert (found["answer"], found["agent"]) == (shown["answer"], shown["agent"])
        if shutil.which("node"):
            given = f"const url = {url!r}, token = {token!r}, show = (text) => console.log(text);\n"
            (tmp_path / "read.mjs").write_text(given + block("js"))
            assert (await run("node", "read.mjs", cwd=tmp_path)).splitlines() == ["ann wants to know: ", "What is new?"]
    printed = (tmp_path / "log").read_text()
    assert f"researcher is asked at {url}" in printed
    assert SECRET not in printed
    assert token not in printed


def test_all_settings_are_told() -> None:
    told = set(re.findall(r"^\| `(\w+)`", README, re.MULTILINE))
    fields = HttpTrigger.Config.model_fields
    assert set(fields) - told == set()
    assert f"| `max_body` | {fields['max_body'].default:,} |" in README
    assert f"| `leeway` | {fields['leeway'].default:g} |" in README


@pytest.mark.parametrize("path", re.findall(r"`(?:POST|DELETE|GET) (/[a-z]+)", README))
def test_paths_are_those_of_the_door(path: str) -> None:
    from natterjack_http import door

    assert path in (door.ASK, door.HEALTH)
