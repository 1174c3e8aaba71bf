"""The document's samples of tool servers, from tests/document.md; only their import lines are changed."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from natterjack import Envelope
from natterjack.testing import until
from natterjack_mcp import HttpServerSpec, MCPServer, ToolRefusedError
from natterjack_mcp.http import Address, serve_http
from natterjack_mcp.remote import RemoteTools

DOCUMENT = (Path(__file__).parents[3] / "tests" / "document.md").read_text()
SAMPLES = dict(re.findall(r"^## ([^\n]+)\n\n```python\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))


async def run(sample: str, **given: Any) -> dict[str, Any]:
    """Run a sample with what its text takes for granted, and return its names."""
    text = re.sub(
        r"^from promptise import build_agent, ",
        "from natterjack_llm import build_agent\nfrom natterjack_mcp import ",
        SAMPLES[sample],
        flags=re.MULTILINE,
    )
    text = re.sub(r"^from promptise[\w.]* import ", "from natterjack_mcp import ", text, flags=re.MULTILINE)
    code = compile(text, f"<{sample}>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    scope: dict[str, Any] = {"__name__": "sample", **given}
    if inspect.isawaitable(done := eval(code, scope)):
        await done
    return scope


class Work:
    """What the sample's tools use."""

    async def query(self, query: str) -> str:
        return f"found {query}"

    async def publish(self, title: str, content: str) -> str:
        return f"published {title}: {content}"


async def test_each_agent_calls_its_own_tool(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with caplog.at_level("INFO", "natterjack"):
        shared = await run("Shared tool server", search_engine=Work(), cms=Work())
        server, auth = shared["server"], shared["auth"]
        assert isinstance(server, MCPServer)
        serving = asyncio.create_task(serve_http(server, Address("127.0.0.1", 0)))
        await until(lambda: [each for each in caplog.messages if "is served at" in each])
    url = next(each for each in caplog.messages if "is served at" in each).rpartition(" ")[2]

    async with AsyncExitStack() as stack:

        async def build_agent(model: str, servers: Mapping[str, HttpServerSpec]) -> RemoteTools:
            """Stand in for a model's agent: its tools are what matters here."""
            assert model == "openai:gpt-5-mini"
            assert servers["tools"].url == "http://localhost:8080/mcp"
            tools = replace(servers["tools"], url=url).client("tools", None)  # type: ignore[arg-type]
            assert isinstance(tools, RemoteTools)
            await tools.start()
            stack.push_async_callback(tools.close)
            return tools

        llm = ModuleType("natterjack_llm")
        llm.build_agent = build_agent  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "natterjack_llm", llm)
        built = await run("Agents with roles", jwt_for_role=lambda role: auth.token(role, roles=[role], expires=3600))

        async def call(agent: str, tool: str, **arguments: Any) -> Any:
            return await built[agent].call(tool, arguments, timeout=20.0, envelope=Envelope())

        assert await call("researcher", "web_search", query="toads") == "found toads"
        assert await call("writer", "publish", title="Toads", content="…") == "published Toads: …"
        for agent, own, other in (("researcher", "web_search", "publish"), ("writer", "publish", "web_search")):
            assert [each.tool for each in await built[agent].list(timeout=20.0)] == [own]
            with pytest.raises(ToolRefusedError, match="HasRole"):
                await call(agent, other, query="", title="", content="")
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
