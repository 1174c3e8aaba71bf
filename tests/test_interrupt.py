"""Ctrl-C while the command line starts: it ends quietly, however far it has come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

COMMAND = Path(sysconfig.get_path("scripts")) / "natterjack"
REACHED = ["natterjack.errors", "pydantic_core", "nats.aio.client", "natterjack.builtin", "natterjack", "typer"]
REACHED += ["natterjack.cli.main", "natterjack.cli", "uvloop", "natterjack.demo.report", "natterjack.cli.play"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")


def interrupted(reached: str, folder: Path) -> tuple[int, str]:
    """Return the exit code and the output of a demo that gets a SIGINT once it has imported a module."""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONWARNINGS": "ignore"}
    argv = [sys.executable, "-X", "importtime", str(COMMAND), "demo"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        while (line := process.stderr.readline()).rpartition("|")[2].strip() != reached:
            assert line, "it ended before"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    return process.returncode, "".join(f"{line}\n" for line in rest.splitlines() if not line.startswith("import time:"))


@pytest.mark.parametrize("reached", REACHED)
@pytest.mark.open_mode(reason="a command begins otherwise with --secured")
def test_ctrl_c_while_it_starts_is_quiet(reached: str, tmp_path: Path) -> None:
    code, printed = interrupted(reached, tmp_path)
    assert code == 130
    assert "Traceback" not in printed
    assert "KeyboardInterrupt" not in printed
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_that_is_ignored_is_ignored_from_the_start() -> None:
    script = "import signal, natterjack_command\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    script += "try:\n    natterjack_command.main()\nfinally:\n    print(signal.getsignal(signal.SIGINT).name)"
    argv = [sys.executable, "-c", script, "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[1:] == ["SIG_IGN"], done.stderr
