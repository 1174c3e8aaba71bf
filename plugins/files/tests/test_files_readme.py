"""What the README of the plugin shows is run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import natterjack
from natterjack import AgentProcess, AgentRuntime
from natterjack.testing import NatsServer, ScriptedAgent, until
from natterjack_files import FilesTrigger

README = (Path(__file__).parents[1] / "README.md").read_text()


def block(language: str) -> str:
    """The one block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return str(found)


async def test_the_team_does_what_the_readme_says(own_server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "team.toml").write_text(block("toml"))
    (tmp_path / "agents.py").write_text(block("python"))
    (tmp_path / "inbox").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NATTERJACK_"))}
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "natterjack", "up"]
        env = {**kept, "NATS_URL": own_server.url}
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)  # noqa: ASYNC220 - a millisecond, once
        try:
            await until(lambda: "\nready" in (tmp_path / "log").read_text(), 40)
            async with natterjack.connect(own_server.url) as team:
                (tmp_path / "inbox" / "letter.txt").write_text("hello world")
                await until(lambda: filed(team), 40)
                assert await filed(team) == [{"filed": "letter.txt", "words": 2}]
                (tmp_path / "inbox" / "letter.txt").unlink()
                await until(lambda: forgotten(team), 40)
        finally:
            process.terminate()
            assert process.wait(40) == 0, (tmp_path / "log").read_text()


async def test_an_event_is_as_it_is_shown(runtime: AgentRuntime, tmp_path: Path) -> None:
    agent = ScriptedAgent()
    (tmp_path / "letter.txt").write_text("hello world")
    trigger = FilesTrigger.create({"path": str(tmp_path), "content": True, "state": str(tmp_path / ".state")})
    runtime.add_process(AgentProcess("clerk", agent=agent, triggers=[trigger]))
    await runtime.start_all()
    (event,) = await agent.handled(1, 30)
    shown = json.loads(block("json"))
    assert event.data == shown | {"absolute": event.data["absolute"], "mtime": event.data["mtime"]}
    assert event.data["absolute"] == str(tmp_path / "letter.txt")


async def filed(team: natterjack.TeamClient) -> list[object]:
    return [event.data async for event in team.event_bus.replay("letter.filed")]


async def forgotten(team: natterjack.TeamClient) -> bool:
    return {"forgotten": "letter.txt"} in await filed(team)


def test_all_settings_are_told_with_their_defaults() -> None:
    fields = FilesTrigger.Config.model_fields
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", README, re.MULTILINE))
    assert rows.keys() == fields.keys()
    assert rows["settle"] == f"{fields['settle'].default:g}"
    assert rows["content_limit"] == f"{fields['content_limit'].default:,}"
    assert rows["state"] == f"`{fields['state'].default}`"
    assert rows["pattern"] == f"`{fields['pattern'].default}`"
