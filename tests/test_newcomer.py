"""The newcomer's test: following only `plugins/README.md`, a plugin is written, tested, installed and used."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from natterjack.cli.scaffold import SORTS, package_files
from natterjack.testing.command import Process

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "plugins" / "README.md").read_text()
MOST_COMMANDS = 10


def section(title: str) -> str:
    """One section of the page."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def commands() -> list[str]:
    """What the page tells a newcomer to type."""
    (block,) = re.findall(r"^```console\n(.*?)^```$", section("Your first plugin"), re.MULTILINE | re.DOTALL)
    lines = block.splitlines()
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


def fresh_environment(wheels: Path) -> dict[str, str]:
    """What a newcomer's shell has: Python, but nothing of this project; pip finds the kernel among the wheels."""
    ours = str(Path(sys.executable).parent)
    path = [str(Path(sys.base_prefix) / "bin"), *os.environ["PATH"].split(os.pathsep)]
    unwanted = ("VIRTUAL_ENV", "PYTHON", "PYTEST", "NATS_", "NATTERJACK_", "COV_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    links = " ".join(filter(None, [os.environ.get("PIP_FIND_LINKS"), str(wheels)]))
    quick = {"PIP_NO_COMPILE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {**kept, **quick, "PATH": os.pathsep.join(p for p in path if p != ours), "PIP_FIND_LINKS": links}


@pytest.mark.full  # 40 s in pip
@pytest.mark.timeout(400)
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv, which builds the kernel's wheel, is not installed")
@pytest.mark.skipif(sys.platform == "win32", reason="the page is written for a POSIX shell")
def test_a_newcomer_has_a_plugin_in_ten_commands(tmp_path: Path) -> None:
    assert 5 < len(commands()) <= MOST_COMMANDS
    wheels, folder = tmp_path / "wheels", tmp_path / "folder"
    folder.mkdir()
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", str(wheels), str(ROOT)], check=True)
    shell = subprocess.Popen(
        ["bash", "-e"],
        cwd=folder,
        env=fresh_environment(wheels),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert shell.stdin is not None
    shell.stdin.write("\n".join(commands()))
    shell.stdin.close()
    typed = Process(shell)
    try:
        typed.wait_line(r"== \d+ passed", timeout=200)  # pip says nothing while it unpacks
        typed.wait_line(r"^tick +natterjack-tick 0\.1\.0 +ok +trigger: tick")
        for _ in range(2):
            typed.wait_line(r"^listener \| \d\d:\d\d:\d\d INFO heard tick: \{'time': \d+\.\d+\}$")
        os.killpg(shell.pid, signal.SIGINT)
        typed.wait_line("^stopped +all agents have ended")
        typed.wait()
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
        typed.wait()
        if shell.stdout is not None:
            shell.stdout.close()
    made = {str(path.relative_to(folder / "natterjack-tick")) for path in (folder / "natterjack-tick").rglob("*")}
    assert set(package_files("tick", "trigger")) <= made


def test_page_shows_what_is_written() -> None:
    files = package_files("tick", "trigger")
    assert f"```python\n{files['natterjack_tick/trigger.py']}```" in section("Your first plugin")
    (contract,) = re.findall(r"```python\n(class Test.*?)```", section("Testing"), re.DOTALL)
    written = re.sub(r' +""".*?"""\n+', "", files["tests/test_tick.py"])
    assert contract.strip() in written
    lines = [line for line in files["pyproject.toml"].splitlines() if line]
    assert f"{len(lines)} lines" in section("Your first plugin")


def test_page_names_every_kind_and_its_hook() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| `(natterjack_\w+)\(\)` \|", section("The rules, in short"), re.MULTILINE)
    assert dict(rows) == {name: sort.hook for name, sort in SORTS.items()}


def test_page_names_every_plugin_of_this_folder() -> None:
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml")}
    assert set(re.findall(r"^\| \[`([a-z0-9-]+)`\]", PAGE, re.MULTILINE)) == folders
