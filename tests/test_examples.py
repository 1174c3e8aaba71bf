"""Each example runs by itself, in an empty folder, and prints what its docstring says."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("[0-9]*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_what_it_says(path: Path, tmp_path: Path) -> None:
    documented = ast.get_docstring(ast.parse(path.read_text()), clean=True) or ""
    expected = dedent(documented.partition("Prints:\n")[2]).strip()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NATS_")}
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=40, check=False
    )
    assert done.returncode == 0, done.stderr
    assert expected
    assert done.stdout.strip() == expected


def test_examples_are_numbered_without_a_gap() -> None:
    assert [int(path.name[:2]) for path in EXAMPLES] == list(range(1, len(EXAMPLES) + 1))
