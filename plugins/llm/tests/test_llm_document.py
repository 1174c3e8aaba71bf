"""The document's samples with a model, as they stand in `document.md`: only their import lines are changed."""

import ast
import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from natterjack.testing import NatsServer, until
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


TEAM_TOOLS = '''
"""The tools of the sample's agents."""

from natterjack_mcp import MCPServer

server = MCPServer("team-tools")


@server.tool(public=True)
async def web_search(query: str) -> str:
    """Search the web."""
    return f"the web on {query}"


@server.tool(public=True)
def document_search(query: str) -> str:
    """Search our documents."""
    return f"documents on {query}"


if __name__ == "__main__":
    server.run(stdio=True)
'''
SAID: dict[str, list[Any]] = {
    "Research the given topic": [
        [servers.call("web_search", query="AI"), servers.call("document_search", query="AI")],
        servers.call("emit", type="research.complete", data={"findings": "both"}),
        "I found both.",
    ],
    "Evaluate the research": [servers.call("emit", type="analysis.approved", data={"quality": 4}), "Approved."],
    "Write a clear": ["# The report"],
}


def pipeline(body: dict[str, Any]) -> Any:
    """What the model of the sample's pipeline says: by its instructions, and how often it has been asked."""
    (said,) = [said for begin, said in SAID.items() if body["instructions"].startswith(begin)]
    turns = [item for item in body["input"] if item.get("type") == "function_call"]
    return said[0 if not turns else 1 if turns[-1]["name"].endswith("search") or len(said) == 2 else 2]


def test_the_research_pipeline(own_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, pause = tmp_path / "journals" / "writer" / "writer.jsonl", asyncio.sleep

    async def until_done(delay: float, *result: Any) -> Any:
        """Where the sample waits two minutes, wait for what it waits for."""
        done = lambda: report.exists() and '"kind":"done"' in report.read_text()  # noqa: E731
        return await (until(done, timeout=50) if delay == 120 else pause(delay, *result))

    monkeypatch.setattr(asyncio, "sleep", until_done)
    monkeypatch.setenv("NATS_URL", own_server.url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "team_tools.py").write_text(TEAM_TOOLS)
    text = SAMPLES["Research pipeline"]
    for before, after in IMPORTS.items():
        assert before in text
        text = text.replace(before, after)
    with servers.model_server_in_a_thread(monkeypatch) as model:
        model.script = pipeline
        exec(compile(text, "Research pipeline", "exec"), {"__name__": "sample"})
    outputs = [item["output"] for body in model.asked for item in body["input"] if "output" in item]
    assert {"the web on AI", "documents on AI"} <= {output.strip('"') for output in outputs}
    results = [json.loads(line)["data"].get("result") for line in report.read_text().splitlines()]
    assert results[-1] == "# The report"


IMPORTS = {
    "from promptise import build_agent, StdioServerSpec": "from natterjack_llm import build_agent\n"
    "from natterjack_mcp import StdioServerSpec",
    "from promptise.runtime import AgentRuntime, AgentProcess": "from natterjack import AgentRuntime, AgentProcess",
    "from promptise.runtime.triggers import EventTrigger": "from natterjack import EventTrigger",
    "from promptise.runtime.journal import FileJournal": "from natterjack import FileJournal",
}


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
