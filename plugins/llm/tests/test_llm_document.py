"""The document's samples with a model, as they stand in `document.md`: only their import lines are changed."""

import ast
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from natterjack.testing import NatsServer
from natterjack_llm import LLMAgent

from . import model_server as servers
from .model_server import ModelServer

DOCUMENT = (Path(__file__).parents[3] / "tests" / "document.md").read_text()
SAMPLES = dict(re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))


@pytest.fixture
async def model_server(monkeypatch: pytest.MonkeyPatch, own_server: NatsServer) -> AsyncIterator[ModelServer]:
    monkeypatch.setenv("NATS_URL", own_server.url)
    async with servers.model_server(monkeypatch) as server:
        yield server


async def run(sample: str, **given: Any) -> dict[str, Any]:
    """Run a sample with what its text takes for granted, and return its names."""
    text = "from natterjack_llm import build_agent\n" + SAMPLES[sample].replace("from promptise import build_agent", "")
    scope: dict[str, Any] = {"__name__": "sample", **given}
    await eval(compile(text, sample, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), scope)
    return scope


@pytest.mark.parametrize(
    ("sample", "name", "peers"),
    [
        ("Cross-agent delegation", "analyst", ["researcher", "fact_checker"]),
        ("Supervisor", "supervisor", ["researcher", "writer", "editor"]),
    ],
)
async def test_an_agent_may_ask_exactly_its_peers(
    model_server: ModelServer, sample: str, name: str, peers: list[str]
) -> None:
    agent: LLMAgent = (await run(sample, my_servers={}))[name]
    async with agent:
        assert await agent.ainvoke({"messages": [{"role": "user", "content": "Go."}]}) == "so"
    tools = {tool["name"]: tool for tool in model_server.asked[0]["tools"]}
    assert tools.keys() == {"ask_peer", "broadcast"}
    assert tools["ask_peer"]["parameters"]["properties"]["name"]["enum"] == peers
    if name == "supervisor":
        assert model_server.asked[0]["instructions"].startswith("You are a project supervisor.")
