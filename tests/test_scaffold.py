"""`natterjack plugins new`: what it writes is installable, passes its own tests, and is clean."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from natterjack import hookspecs
from natterjack.cli.advice import warnings
from natterjack.cli.scaffold import SORTS, check_plugin_name, package_files
from natterjack.errors import InvalidNameError
from natterjack.plugins import Plugins
from natterjack.team import check_team
from natterjack.team.file import read_team
from natterjack.testing.command import Cli

RULES = "E,F,W,I,UP,B,C4,SIM,PERF,PT,TC,TRY,D,ANN,PLC,PLE,PLW,ASYNC,T20"
ALLOWED = "D105,D107,D203,D213,ANN401,ASYNC109,TC001,TC002,TC003,TRY003"
MADE = "made-"


def run(*command: str, folder: Path, **env: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def folder_of(kind: str) -> str:
    return f"natterjack-{MADE}{kind}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a new plugin of each kind."""
    root = tmp_path_factory.mktemp("made")
    for kind in SORTS:
        for path, text in package_files(f"{MADE}{kind}", kind).items():
            file = root / folder_of(kind) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    return root


def import_path(root: Path) -> str:
    return os.pathsep.join(str(root / folder_of(kind)) for kind in SORTS)


def test_every_hook_has_a_template() -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("natterjack_")}
    assert {sort.hook for sort in SORTS.values()} == hooks


def test_every_new_plugin_passes_its_own_tests(made: Path) -> None:
    suites = [f"{folder_of(kind)}/tests" for kind in SORTS]
    config = f"--config-file={folder_of('trigger')}/pyproject.toml"
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", config]
    run("pytest", *options, *suites, folder=made, PYTHONPATH=import_path(made))
    assert len(list(made.glob("*/tests/test_*.py"))) == len(SORTS)


def test_every_new_plugin_is_clean(made: Path) -> None:
    for kind in SORTS:
        folder = made / folder_of(kind)
        run("ruff", "check", "--isolated", "--no-cache", "--select", RULES, "--ignore", ALLOWED, ".", folder=folder)
        run("ruff", "format", "--isolated", "--no-cache", "--check", ".", folder=folder)
    assert "{{" not in "".join(path.read_text() for path in made.rglob("*.*") if "__pycache__" not in path.parts)


@pytest.mark.full
def test_every_new_plugin_is_typed(made: Path, tmp_path: Path) -> None:
    sources = [str(path.parent) for path in made.glob("natterjack-*/natterjack_made_*/__init__.py")]
    sources += [str(path) for path in made.glob("natterjack-*/tests")]
    assert len(sources) == 2 * len(SORTS)
    options = ["--strict", "--explicit-package-bases", "--cache-dir", str(tmp_path)]
    example = f"{folder_of('trigger')}/example/agents.py"
    run("mypy", *options, *sources, example, folder=made, MYPYPATH=import_path(made))


@pytest.mark.parametrize("kind", SORTS)
def test_new_plugin_is_small_and_names_its_entry_point(made: Path, kind: str) -> None:
    folder = made / folder_of(kind)
    text = (folder / "pyproject.toml").read_text()
    assert len([line for line in text.splitlines() if line]) == 14
    project = tomllib.loads(text)["project"]
    assert project["name"] == folder.name
    assert project["entry-points"]["natterjack"] == {f"{MADE}{kind}": f"natterjack_made_{kind.replace('-', '_')}"}
    readme = (folder / "README.md").read_text()
    assert f"natterjack install {folder.name}\n" in readme
    assert "natterjack install -e . pytest pytest-asyncio\n    pytest\n" in readme


@pytest.fixture
def installed(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugins]:
    """All new plugins, as if they were installed."""
    before = set(sys.modules)
    for kind in SORTS:
        folder, name = made / folder_of(kind), f"{MADE}{kind}"
        monkeypatch.syspath_prepend(folder)
        metadata = tmp_path / f"{folder.name.replace('-', '_')}-0.1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {folder.name}\nVersion: 0.1.0\n")
        (metadata / "entry_points.txt").write_text(f"[natterjack]\n{name} = natterjack_made_{kind.replace('-', '_')}\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield Plugins.load()
    for name in set(sys.modules) - before:
        if name.startswith("natterjack_made"):
            del sys.modules[name]


def test_every_new_plugin_loads_and_its_team_file_is_right(installed: Plugins, made: Path) -> None:
    brought = {plugin.name: set(plugin.brings) for plugin in installed.loaded}
    assert installed.broken == []
    assert {brought[f"{MADE}{kind}"] == {sort.kind} for kind, sort in SORTS.items()} == {True}
    teams = sorted(made.glob("*/example/team.toml"))
    assert len(teams) == len(SORTS) - 2  # a command and a tool server need no agent
    for path in teams:
        team = read_team(path)
        check_team(team, installed)
        assert warnings(team) == [], path


def test_a_name_that_is_installed_is_refused(installed: Plugins, quick: Cli) -> None:
    error = quick.error("plugins", "new", f"{MADE}trigger", "--kind", "agent", code=1)
    assert "natterjack-made-trigger 0.1.0, which is installed, has the name 'made-trigger' already" in error
    assert "'event' already" in quick.error("plugins", "new", "event", "--kind", "trigger", code=1)


def test_new_tells_what_to_do_next(quick: Cli) -> None:
    told = quick.text("plugins", "new", "natterjack-rain_gauge", "--kind", "trigger").splitlines()
    assert told[0] == "wrote natterjack-rain-gauge: a trigger that fires every so many seconds"
    commands = [line.strip() for line in told[told.index("Next:") + 1 :]]
    assert commands == [
        "cd natterjack-rain-gauge",
        "natterjack install -e . pytest pytest-asyncio",
        "pytest",
        "natterjack up example/team.toml",
    ]
    written = {str(path.relative_to(quick.folder)) for path in quick.folder.rglob("*") if path.is_file()}
    assert written == {f"natterjack-rain-gauge/{path}" for path in package_files("rain_gauge", "trigger")}


def test_new_takes_another_folder_and_overwrites_nothing(quick: Cli) -> None:
    (quick.folder / "empty").mkdir()
    quick.run("plugins", "new", "rain", "--kind", "guard", "--dir", "empty")
    before = (quick.folder / "empty" / "README.md").read_text()
    error = quick.error("plugins", "new", "snow", "--kind", "guard", "--dir", "empty", code=1)
    assert error == "'empty' is there already, and nothing was written; name another with --dir"
    assert (quick.folder / "empty" / "README.md").read_text() == before
    (quick.folder / "file").write_text("mine")
    assert "is there already" in quick.error("plugins", "new", "snow", "--kind", "guard", "--dir", "file", code=1)


@pytest.mark.parametrize("name", ["Rain", "rain gauge", "3d", "-rain", "rain--gauge", "rain-", "räin", "", "operator"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidNameError, match="plugin name"):
        check_plugin_name(name)


def test_an_unknown_kind_is_refused(quick: Cli) -> None:
    done = quick.run("plugins", "new", "rain", "--kind", "triger", code=2)
    assert re.search("'triger' is not one of 'trigger', 'agent'", done.stderr)


@pytest.mark.parametrize(
    ("name", "kind", "title"),
    [
        ("rain", "trigger", "RainTrigger"),
        ("rain-trigger", "trigger", "RainTrigger"),
        ("trigger", "trigger", "TriggerTrigger"),
        ("tcp_peers", "peer", "TcpPeers"),
    ],
)
def test_class_is_named_after_the_plugin(name: str, kind: str, title: str) -> None:
    files = package_files(name, kind)
    assert f"class {title}(" in files[f"natterjack_{name.replace('-', '_')}/{kind}.py"]


@pytest.mark.parametrize(
    ("name", "kind", "cause"),
    [
        ("up", "command", "Natterjack has a command 'up' of its own"),
        ("permissions", "guard", "natterjack-permissions is a plugin of Natterjack's own"),
    ],
)
def test_names_of_natterjack_itself_are_taken(quick: Cli, name: str, kind: str, cause: str) -> None:
    assert cause in quick.error("plugins", "new", name, "--kind", kind, code=1)
    assert not list(quick.folder.iterdir())
