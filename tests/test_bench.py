"""`natterjack bench` measures every path; whether a target is reached is no matter of a test."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from natterjack.cli import bench as module
from natterjack.errors import UsageError

PATHS = {"emit", "event", "ask_peer", "ask_stream", "context", "journal"}


@pytest.mark.full
def test_quick_run_measures_every_path(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "natterjack", "bench", "--quick", "--json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert {figure["row"].split()[0].rstrip(",") for figure in figures} == PATHS
    assert {figure["beside"] for figure in figures} == {"nats-py", "FastStream", "Synadia SDK"}
    assert all(figure["ours"] > 0 and figure["raw"] > 0 and figure["ratio"] > 0 for figure in figures)


def test_a_row_beside_a_package_that_is_not_installed_is_left_out() -> None:
    suite = module._load(module._folder())
    (row, *_) = [row for row in suite.ROWS if row.beside == "FastStream"]
    assert suite.missing(row) == ""
    assert suite.missing(replace(row, needs=("json", "no_such_package.part"))) == "no_such_package.part"


def test_suite_is_found_beside_the_source() -> None:
    assert module._folder() == Path(__file__).parent / "bench"


def test_an_installed_package_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages/natterjack/cli/bench.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="source checkout"):
        module._folder()
