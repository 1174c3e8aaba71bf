"""Each example runs by itself, in an empty folder, and prints what it says it prints."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import pytest

from natterjack.testing.command import Cli

FOLDER = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(FOLDER.glob("[0-9]*.py"))
LONGEST = 75
"""Lines of an example, so that it is read in two minutes."""


def description(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text())) or ""


def run(path: Path, folder: Path, nats_command: str | None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NATS_")}
    if nats_command:
        environment["PATH"] = os.pathsep.join([str(Path(nats_command).parent), environment["PATH"]])
    return subprocess.run(
        [sys.executable, path], cwd=folder, env=environment, capture_output=True, text=True, timeout=40, check=False
    )


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_example_prints_what_it_says(path: Path, tmp_path: Path, nats_command: str | None) -> None:
    about = description(path)
    if "Needs the `nats` command" in about and nats_command is None:
        pytest.skip("the nats command is not installed")
    expected = dedent(about.partition("Prints:\n")[2]).strip()
    done = run(path, tmp_path, nats_command)
    assert done.returncode == 0, done.stderr
    assert expected
    assert done.stdout.strip() == expected


def test_team_file_does_what_it_says(tmp_path: Path) -> None:
    (example,) = FOLDER.glob("[0-9]*_team_file")
    cli = Cli(shutil.copytree(example, tmp_path / "garden"))
    lines = re.findall(r"^#   (.+)$", (cli.folder / "team.toml").read_text(), re.MULTILINE)
    up, *others = lines
    assert up == "$ natterjack up"
    with cli.start("up") as process:
        process.wait_line("^ready")
        for command, printed in pairwise(others):
            if command.startswith("$ natterjack "):
                assert cli.text(*shlex.split(command)[2:]) == printed
        with cli.start("events", "tail", "order.packed", "--count", "1", "--json") as tail:
            tail.wait_line("watching")
            cli.text("emit", "order.placed", '{"what": "lilies"}')
            assert '"lilies. With kind regards"' in tail.wait_line("order.packed").string
        assert process.end() == 0, process.output
    assert "warning" not in process.output
    assert "done" in (cli.folder / "journals" / "packer.jsonl").read_text()


def test_examples_are_numbered_without_a_gap_and_listed_in_order() -> None:
    names = sorted(path.name + "/" * path.is_dir() for path in FOLDER.glob("[0-9]*"))
    assert [int(name[:2]) for name in names] == list(range(1, len(names) + 1))
    listed = re.findall(r"^\| `(.+?)`", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert listed == names


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_examples_are_short_and_wait_for_nothing_by_sleeping(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST
    assert "time.sleep" not in text
