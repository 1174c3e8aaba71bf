"""`natterjack install` and `uninstall`, in real environments of pip, uv, pipx and `uv tool`; nothing is downloaded."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

from natterjack.cli.exits import CommandError
from natterjack.cli.install import first_party
from natterjack.cli.installers import Change, canonical, command

PLUGIN = """
from natterjack import Guard, hookimpl

class Gauge(Guard):
    "Allows all."
    name = "{name}"
    def refuse(self, principal, verb, what): return None

@hookimpl
def natterjack_guards(): return [Gauge]
"""
pytestmark = pytest.mark.timeout(300)  # environments are made, and each command is a new process

UV = shutil.which("uv")
PIPX = importlib.util.find_spec("pipx")


def write_wheel(folder: Path, name: str, source: str, entries: str, metadata: str = "") -> None:
    """Write a wheel of one module."""
    module = name.replace("-", "_")
    info = f"{module}-0.1.0.dist-info"
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n{metadata}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": entries,
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{module}-0.1.0-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plugins, and something that stands for Natterjack where an environment has to have it by its name."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("gauge", "barometer"):
        entry = f"[natterjack]\n{name} = natterjack_{name}\n"
        write_wheel(folder, f"natterjack-{name}", PLUGIN.format(name=name), entry)
    script = "[console_scripts]\nnatterjack-stub = natterjack_stub:main\n"
    write_wheel(folder, "natterjack-stub", "def main(): pass\n", script)
    return folder


class Environment:
    """An environment in which this project's kernel can be imported, and that has no network."""

    def __init__(self, prefix: Path, wheels: Path, **env: str) -> None:
        self.prefix = prefix
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        offline |= {"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(wheels), "COLUMNS": "120"}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHON"))}
        self.env = {**kept, **offline, "PATH": path, **env}

    def lend_kernel(self) -> None:
        """Let it import what this interpreter can."""
        (site,) = self.prefix.glob("lib/python*/site-packages")
        (site / "kernel.pth").write_text("\n".join(path for path in sys.path if Path(path).is_dir()))

    def run(self, *words: str, code: int = 0) -> str:
        done = subprocess.run([*words], env=self.env, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def natterjack(self, *words: str, code: int = 0) -> str:
        return self.run(str(self.prefix / "bin" / "python"), "-m", "natterjack", *words, code=code)

    def plugins(self) -> set[str]:
        """The plugins that were installed into it."""
        found = self.prefix.glob("lib/python*/site-packages/natterjack_*-0.1.0.dist-info")
        return {path.name.removesuffix("-0.1.0.dist-info") for path in found} - {"natterjack_stub"}


def check_round_trip(env: Environment, install: str, uninstall: str) -> None:
    """Install two, and uninstall one of them: by the commands that are shown."""
    assert env.plugins() == set()
    told = env.natterjack("install", "natterjack-gauge", "natterjack-barometer")
    assert install in told
    assert "guard: gauge" in told
    assert env.plugins() == {"natterjack_gauge", "natterjack_barometer"}
    assert uninstall in env.natterjack("uninstall", "gauge", "--dry-run")
    assert env.plugins() == {"natterjack_gauge", "natterjack_barometer"}
    assert uninstall in env.natterjack("uninstall", "gauge")
    assert env.plugins() == {"natterjack_barometer"}


@pytest.mark.full
def test_under_pip(tmp_path: Path, wheels: Path) -> None:
    env = Environment(tmp_path / "venv", wheels)
    env.run(sys.executable, "-m", "venv", str(env.prefix))
    env.lend_kernel()
    check_round_trip(env, "-m pip install natterjack-gauge", "-m pip uninstall --yes natterjack-gauge")
    error = env.natterjack("uninstall", "baromter", code=4)
    assert "no plugin 'baromter' is installed. Did you mean 'barometer'?" in error
    assert "ended with exit code 1; what it says stands above" in env.natterjack("install", "nowhere", code=1)


@pytest.mark.skipif(UV is None, reason="uv is not installed")
def test_under_uv(tmp_path: Path, wheels: Path) -> None:
    env = Environment(tmp_path / ".venv", wheels)
    env.run("uv", "venv", "--python", sys.executable, str(env.prefix))
    env.lend_kernel()
    check_round_trip(env, "uv pip install --python", "uv pip uninstall --python")
    (tmp_path / "uv.lock").touch()
    assert "`uv add natterjack-gauge` keeps it" in env.natterjack("install", "natterjack-gauge")
    env.env["PATH"] = str(tmp_path)
    error = env.natterjack("install", "natterjack-gauge", code=1)
    assert "there is no `uv` on PATH; install uv, or pip by" in error


@pytest.mark.full
@pytest.mark.skipif(UV is None, reason="uv is not installed")
def test_under_uv_tool(tmp_path: Path, wheels: Path) -> None:
    tools = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin")}
    env = Environment(tmp_path / "tools" / "natterjack-stub", wheels, **tools)
    env.run("uv", "tool", "install", "--python", sys.executable, "natterjack-stub")
    env.lend_kernel()
    installs = "uv tool install --with natterjack-gauge --with natterjack-barometer natterjack-stub"
    check_round_trip(env, installs, "uv tool install --with natterjack-barometer natterjack-stub")


@pytest.mark.full
@pytest.mark.skipif(UV is None or PIPX is None, reason="uv or pipx is not installed")
def test_under_pipx(tmp_path: Path, wheels: Path) -> None:
    home = {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    env = Environment(tmp_path / "pipx" / "venvs" / "natterjack-stub", wheels, **home)
    env.run("pipx", "install", "--backend", "uv", "--python", sys.executable, "natterjack-stub")
    env.lend_kernel()
    install = "pipx inject natterjack-stub natterjack-gauge natterjack-barometer"
    check_round_trip(env, install, "pipx uninject --leave-deps natterjack-stub natterjack-gauge")


def test_where_the_operating_system_keeps_its_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(CommandError, match=r"the operating system manages the Python .*python3 -m venv"):
        command(Change(["natterjack-gauge"]), tmp_path)
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\n")
    assert command(Change(["natterjack-gauge"]), tmp_path)[-1] == "natterjack-gauge"


RECEIPT = """
[tool]
requirements = [
    { name = "natterjack", extras = ["all"], specifier = ">=0.1" },
    { name = "natterjack-here", editable = "/src/here" },
    { name = "natterjack-there", url = "https://example.com/there.whl" },
    { name = "natterjack-fork", git = "https://example.com/fork" },
]
"""


@pytest.mark.skipif(UV is None, reason="uv is not installed")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change(["natterjack_Here"]), "--with {there} --with {fork} --with natterjack_Here {main}"),
        (Change(["natterjack-there"], remove=True), "--with-editable /src/here --with {fork} {main}"),
        (
            Change([], ["."]),
            "--with-editable /src/here --with {there} --with {fork} --with-editable . {main}",
        ),
    ],
)
def test_a_receipt_is_said_again(tmp_path: Path, change: Change, words: str) -> None:
    (tmp_path / "uv-receipt.toml").write_text(RECEIPT)
    there = "natterjack-there_@_https://example.com/there.whl"
    fork = "natterjack-fork_@_git+https://example.com/fork"
    wanted = words.format(main="natterjack[all]>=0.1", there=there, fork=fork).split()
    assert command(change, tmp_path)[1:] == ["tool", "install", *(word.replace("_@_", " @ ") for word in wanted)]


def test_short_names_are_those_of_our_own_plugins(quick: Any) -> None:
    assert first_party()["permissions"] == "natterjack-permissions"
    planned = quick.text("install", "--dry-run", "permissions", "somebodys-plugin", "./folder", "-e", ".")
    assert planned.endswith(" --editable . natterjack-permissions somebodys-plugin ./folder")


def test_what_comes_without_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.cli.installers._tool", str)
    change = Change(["weights==1"], alone=True)
    (tmp_path / "uv-receipt.toml").write_text(RECEIPT)
    uv = ["uv", "pip", "install", "--python", sys.executable, "--no-deps", "weights==1"]
    assert command(change, tmp_path) == uv
    (tmp_path / "uv-receipt.toml").rename(tmp_path / "pipx_metadata.json").write_text("{}")
    assert command(change, tmp_path) == ["pipx", "inject", "--pip-args=--no-deps", tmp_path.name, "weights==1"]


def test_no_deps_is_passed_on(quick: Any) -> None:
    assert quick.text("install", "--dry-run", "--no-deps", "weights==1").endswith(" --no-deps weights==1")


def test_nothing_to_install_is_wrong_usage(quick: Any) -> None:
    assert "name what to install" in quick.error("install", code=2)


@pytest.mark.parametrize(
    "name", ["Natterjack_Tick", "natterjack.tick>=1", "natterjack-tick[all]", "natterjack_tick @ x"]
)
def test_names_are_compared_as_registries_do(name: str) -> None:
    assert canonical(name) == "natterjack-tick"
