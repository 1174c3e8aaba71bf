"""The document's complete example, with these tools: three agents share one `python -m team_tools`.

Only the import lines of the sample are changed. In place of a model, functions do what its instructions say; a plugin
brings them under the name `llm`.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from natterjack.testing import NatsServer, until

DOCUMENT = (Path(__file__).parents[3] / "tests" / "document.md").read_text()
SAMPLES = dict(re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))
IMPORTS = {
    "from promptise import build_agent, StdioServerSpec": "from natterjack_llm import build_agent\n"
    "from natterjack_mcp import StdioServerSpec",
    "from promptise.runtime import AgentRuntime, AgentProcess": "from natterjack import AgentRuntime, AgentProcess",
    "from promptise.runtime.triggers import EventTrigger": "from natterjack import EventTrigger",
    "from promptise.runtime.journal import FileJournal": "from natterjack import FileJournal",
}
SCRIPTED = '''
"""Stands in for a model: a function for each agent."""

from natterjack import Agent, Settings, hookimpl


async def research(event, ctx):
    found = [
        *await ctx.tools.call("tools.web_search", query="how do generators work"),
        *await ctx.tools.call("tools.document_search", query=event.data["topic"]),
    ]
    await ctx.emit("research.complete", {"found": [hit["passage"] for hit in found]})
    return len(found)


async def judge(event, ctx):
    await ctx.emit("analysis.approved", {"quality": 4, "found": event.data["found"]})
    return 4


async def write(event, ctx):
    text = "\\n".join(f"- {each['text']} [{each['source']}]" for each in event.data["found"])
    return await ctx.tools.call("tools.publish", title="AI and productivity", content=text)


class Scripted(Agent):
    """Does what the function of its name does."""

    name = "llm"

    class Config(Settings):
        model: str
        instructions: str

    async def handle(self, event, ctx):
        return await {"researcher": research, "analyst": judge, "writer": write}[ctx.agent](event, ctx)


@hookimpl
def natterjack_agents():
    return [Scripted]
'''


@pytest.fixture
def folder(tmp_path: Path, own_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sample runs: with documents, and the stand-in installed as a plugin in place of the real one."""
    metadata = tmp_path / "site" / "scripted-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: scripted\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[natterjack]\nscripted = scripted_functions\n")
    (tmp_path / "site" / "scripted_functions.py").write_text(SCRIPTED)
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "ai.md").write_text("# AI\n\nAI changes the productivity of software development.\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("NATTERJACK_DISABLED_PLUGINS", "llm")
    monkeypatch.setenv("NATS_URL", own_server.url)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("scripted_functions", None)


def team_tools_children() -> list[int]:
    children = psutil.Process().children(recursive=True)
    return [each.pid for each in children if each.is_running() and each.cmdline()[-2:] == ["-m", "team_tools"]]


def test_the_complete_example(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = SAMPLES["Research pipeline"]
    for before, after in IMPORTS.items():
        assert before in text
        text = text.replace(before, after)
    report, pause, served = folder / "journals" / "writer" / "writer.jsonl", asyncio.sleep, list[int]()

    async def until_done(delay: float, *result: Any) -> Any:
        """Where the sample waits two minutes, wait for what it waits for."""
        if delay != 120:
            return await pause(delay, *result)
        await until(lambda: report.exists() and '"kind":"done"' in report.read_text(), timeout=50)
        served.extend(team_tools_children())
        return None

    monkeypatch.setattr(asyncio, "sleep", until_done)
    exec(compile(text, "Research pipeline", "exec"), {"__name__": "sample"})
    assert len(served) == 1  # for all three
    assert team_tools_children() == []
    published = (folder / "published" / "ai-and-productivity.md").read_text()
    assert "- AI changes the productivity of software development. [ai.md:3]" in published
    assert "generator" in published
    entries = {
        name: json.loads((folder / "journals" / name / f"{name}.jsonl").read_text().splitlines()[-1])
        for name in ("researcher", "analyst", "writer")
    }
    assert entries["writer"]["data"]["result"] == "ai-and-productivity.md"
    assert entries["analyst"]["data"]["result"] == 4
    assert entries["researcher"]["data"]["result"] > 1
