"""What the README shows is run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from natterjack import NotProvisionedError, connect
from natterjack.testing import NatsServer, until
from natterjack_schedule import AtTrigger, CronTrigger, EveryTrigger

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def environment(server: NatsServer) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "NATTERJACK_"))}
    return {**kept, "NATS_URL": server.url}


@contextmanager
def up(folder: Path, server: NatsServer) -> Iterator[None]:
    """Within the context, the team runs."""
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "natterjack", "up", "team.toml"]
        process = subprocess.Popen(command, cwd=folder, env=environment(server), stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


async def test_team_of_the_readme_reports(own_server: NatsServer, tmp_path: Path) -> None:
    (toml,) = blocks("toml")
    (program,) = blocks("python")
    assert "{ every = 60 }" in toml
    (tmp_path / "team.toml").write_text(toml.replace("{ every = 60 }", "{ every = 1 }"))
    (tmp_path / "agents.py").write_text(program)
    with up(tmp_path, own_server):

        async def reported() -> list[dict[str, str]]:
            try:
                async with connect(own_server.url) as team:
                    return [event.data async for event in team.event_bus.replay("report.done")]
            except NotProvisionedError:  # not yet
                return []

        found = await until(reported, timeout=50)
        async with connect(own_server.url) as team:
            names = {each.name for each in await team.schedules()}
    assert found[0]["because"] == "every"
    assert re.fullmatch(r"\d\d:\d\d", found[0]["minute"])
    assert names == {
        "cron-0_9_x_x_1-5",
        "cron-30_7_x_x_x@Europe~Amsterdam",
        "every-1",
        "at-2030-01-01T00-00-00Z",
    }


def test_data_of_an_event_is_that_of_the_readme() -> None:
    (text,) = blocks("json")
    data = json.loads(text)
    assert list(data) == ["scheduled", "next"]


def test_preview_of_the_readme_is_what_is_printed(tmp_path: Path) -> None:
    (shown,) = [block for block in blocks("console") if "schedule next" in block]
    command, *lines = shown.splitlines()
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command.removeprefix("$ "))],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == lines


@pytest.mark.parametrize("trigger", [AtTrigger, CronTrigger, EveryTrigger])
def test_settings_are_those_of_the_readme(trigger: type[AtTrigger | CronTrigger | EveryTrigger]) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) \|", README, re.MULTILINE)
    told = {name for name, owner, _ in rows if owner in ("all", f"`{trigger.name}`")}
    assert told == set(trigger.Config.model_fields)
