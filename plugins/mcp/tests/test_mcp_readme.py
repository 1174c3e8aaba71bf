"""What the README shows is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

import natterjack_mcp
from natterjack_mcp import JWTAuth
from natterjack_mcp.context import ToolContext

README = (Path(__file__).parents[1] / "README.md").read_text()
SECRET = "a secret of thirty-two bytes, or more"
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


async def test_the_server_serves_a_researcher(folder: Path) -> None:
    token = JWTAuth(SECRET).token("ann", roles=["researcher"])
    env = {**os.environ, "TEAM_SECRET": SECRET, "NATTERJACK_TOKEN": token}
    started = StdioServerParameters(command=sys.executable, args=["-m", "team_tools"], env=env, cwd=folder)
    async with Client(started) as client:
        assert [each.name for each in (await client.list_tools()).tools] == ["web_search"]
        found = await client.call_tool("web_search", {"query": "toads"})
        assert found.structured_content == {"result": ["what ann wanted to know of toads"]}


def test_its_test_passes_with_the_middleware(folder: Path) -> None:
    (folder / "conftest.py").write_text("import timing\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "asyncio_mode=auto",
        "-o",
        "log_cli=true",
        "--log-level=INFO",
    ]
    env = {**os.environ, "TEAM_SECRET": SECRET}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    assert "publish took 0." in done.stdout


def table(first: str) -> str:
    """The cells of the first column of a table, by its heading."""
    rows = README.partition(f"| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    return "\n".join(row.split(" | ")[0] for row in rows)


def test_every_name_of_the_readme_is_there() -> None:
    guards = set(re.findall(r"\b(\w+)\(", table("guard")))
    assert len(guards) == 10
    assert guards <= set(natterjack_mcp.__all__)
    assert set(re.findall(r"\b(\w+)\(", table("middleware"))) <= set(natterjack_mcp.__all__)
    attributes = set(re.findall(r"`(?:await )?(\w+)", table("`ctx.`")))
    assert len(attributes) == 8
    assert attributes <= set(dir(ToolContext))
