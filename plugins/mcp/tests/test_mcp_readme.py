"""What the README shows is run."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

import natterjack_mcp
from natterjack import AgentRuntime
from natterjack.testing import NatsServer
from natterjack_mcp import JWTAuth
from natterjack_mcp.context import ToolContext
from natterjack_mcp.teamtools import SCOPES

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


async def test_the_gateway_is_started_and_used_as_it_says(folder: Path, own_server: NatsServer) -> None:
    section = README.partition("## From outside the team")[2].partition("\n## ")[0]
    gateway, mint = re.findall(r"^\$ natterjack (tools .*|token .*)$", section, re.MULTILINE)
    env = {**os.environ, "TEAM_SECRET": SECRET, "NATTERJACK_TOKEN_KEY": SECRET, "NATS_URL": own_server.url}
    serve = ["tools", "serve", "team_tools:server", "--nats"]
    async with AgentRuntime(own_server.url), running(folder, env, serve), running(folder, env, shlex.split(gateway)):
        token = await output(folder, env, shlex.split(mint))
        (url,) = re.findall(r"`(http://127.0.0.1:\d+/mcp)`", section)
        async with (
            httpx2.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            tools = {each.name for each in (await client.list_tools()).tools}
            assert tools == {"web_search", "ask_peer", "get_context", "context_keys"}
            found = await client.call_tool("web_search", {"query": "toads"})
            assert found.structured_content == {"result": ["what ann wanted to know of toads"]}
    told = dict(re.findall(r"^\| `(\w+)\(.*?\| `(\w+)` \|", section, re.MULTILINE))
    assert told.items() <= SCOPES.items()


def natterjack(folder: Path, env: dict[str, str], args: list[str], **pipes: Any) -> Any:
    return asyncio.create_subprocess_exec(sys.executable, "-m", "natterjack", *args, cwd=folder, env=env, **pipes)


async def output(folder: Path, env: dict[str, str], args: list[str]) -> str:
    process = await natterjack(folder, env, args, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 40)
    assert process.returncode == 0
    return str(out.decode().strip())


@asynccontextmanager
async def running(folder: Path, env: dict[str, str], args: list[str]) -> AsyncIterator[None]:
    """Within the context, a command serves; then it is told to stop, and does."""
    process = await natterjack(folder, env, args, stderr=asyncio.subprocess.PIPE)
    try:
        while b"is served" not in (line := await asyncio.wait_for(process.stderr.readline(), 40)):
            assert line, "it ended"
        yield
    finally:
        process.terminate()
        await asyncio.wait_for(process.communicate(), 40)
        assert process.returncode == 0


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
