"""Wheels of agents, triggers, guards and tool servers in a fresh environment: a team is one file, without Python."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from natterjack.cli.scaffold import package_files
from natterjack.testing.command import Cli

ROOT = Path(__file__).parents[1]
TEAM = """\
[team]
name = "aviary"

[agents.parrot]
kind = "parrot"
on = [{ tick = { every = 0.2 } }]
report = "word.heard"

[agents.traitor]
kind = "parrot"
on = ["word.heard"]
report = "secret.word"
max_attempts = 1
"""
TOOLS = """\
[team]
name = "library"

[agents.researcher]
kind = "parrot"
tools = ["search", "shout"]

[tools.search]
kind = "team-tools"

[tools.shout]
kind = "shout"
end = "!"
"""
BROKEN = """\
[team]
name = "wreck"

[agents.one]
kind = "wreck"
"""
PLUGINS = {"parrot": "agent", "tick": "trigger", "secrets": "guard", "wreck": "agent", "shout": "tool-server"}
OURS = [ROOT, ROOT / "plugins" / "mcp", ROOT / "examples" / "team_tools"]

pytestmark = [
    pytest.mark.full,  # half a minute, to build and install them
    pytest.mark.skipif(shutil.which("uv") is None, reason="uv, which builds and installs, is not there"),
]


def uv(*words: str) -> None:
    done = subprocess.run(["uv", *words], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def write_package(folder: Path, name: str, kind: str) -> None:
    """Write what `plugins new` writes; that of the wreck cannot be imported."""
    for path, text in package_files(name, kind).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(
            "import nowhere_to_be_found\n" if (name, path[-8:]) == ("wreck", "agent.py") else text
        )


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the kernel and the wheels, and with nothing of this folder."""
    root = tmp_path_factory.mktemp("fresh")
    for name, kind in PLUGINS.items():
        write_package(root / name, name, kind)
    for source in (*OURS, *(root / name for name in PLUGINS)):
        uv("build", "--wheel", "--out-dir", str(root / "wheels"), str(source))
    wheels = sorted(str(path) for path in (root / "wheels").glob("*.whl"))
    assert len(wheels) == len(OURS) + len(PLUGINS)
    python = root / "venv" / "bin" / "python"
    uv("venv", "--python", sys.executable, str(root / "venv"))
    uv("pip", "install", "--python", str(python), *wheels)
    return python


@pytest.fixture
def cli(fresh: Path, tmp_path: Path) -> Cli:
    """The command line of that environment, in a folder with one file."""
    cli = Cli(tmp_path, python=str(fresh))
    cli.write(team_toml=TEAM)
    return cli


@pytest.mark.timeout(240)
def test_a_team_of_installed_plugins_is_one_file(cli: Cli) -> None:
    with cli.start("up") as up:
        up.wait_line("^ready +2 agents")
        assert cli.text("ask", "parrot", "Toad?") == "Toad?"
        up.wait_line("traitor .*may not emit 'secret.word': nobody may emit what is secret")  # tick, parrot, traitor
        letters = cli.json("dead", "list")
        assert {letter["agent"] for letter in letters} == {"traitor"}
        assert "nobody may emit what is secret" in letters[0]["cause"]
        assert up.end() == 0
    assert not list(cli.folder.glob("**/*.py"))


@pytest.mark.timeout(240)
def test_a_tool_server_of_a_wheel_is_a_table_of_the_team_file(cli: Cli) -> None:
    cli.write(team_toml=TOOLS)
    with cli.start("up") as up:
        up.wait_line("^tools +search, shout$")
        up.wait_line("^ready +1 agent")
        call = ["tools", "call", "search.web_search", '{"query": "what is a metaclass"}']
        found = json.loads(cli.text(*call, "--as", "researcher"))
        assert "metaclass" in found[0]["passage"]["text"]
        assert "operator may not use the tool 'web_search' of team-tools: HasRole" in cli.run(*call, code=1).stderr
        listed = cli.json("tools", "list", "--as", "researcher")
        assert [(each["server"], each["tools"]) for each in listed] == [("search", ["web_search", "document_search"])]
        assert up.end() == 0
    assert not list(cli.folder.glob("**/*.py"))


def test_a_broken_plugin_is_shown_and_stops_only_who_needs_it(cli: Cli) -> None:
    shown = cli.json("plugins", "list")
    assert {plugin["name"] for plugin in shown["loaded"]} >= {"parrot", "tick", "secrets"}
    assert [(plugin["name"], plugin["cause"]) for plugin in shown["broken"]] == [
        ("wreck", "ModuleNotFoundError: No module named 'nowhere_to_be_found'")
    ]
    assert "wreck" in cli.text("plugins", "list")
    cli.write(team_toml=BROKEN)
    error = cli.run("up", code=2).stderr
    assert "no installed plugin brings the kind of agent 'wreck'" in error
    assert "natterjack-wreck 0.1.0 is broken: ModuleNotFoundError: No module named 'nowhere_to_be_found'" in error
