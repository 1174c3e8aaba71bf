"""Servers elsewhere: over HTTP, and as a child; shared, gone and back again; and behind the bridge."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from natterjack import Agent, AgentProcess, AgentRuntime, Bus, ConfigError, Envelope, RunContext, Server, StartError
from natterjack.testing import NatsServer, until
from natterjack_mcp import (
    AuthMiddleware,
    CallError,
    HasRole,
    HttpServerSpec,
    JWTAuth,
    MCPServer,
    StdioServerSpec,
    ToolContext,
    ToolError,
    ToolRefusedError,
    ToolTimeoutError,
    ToolUnavailableError,
    nats_client,
)
from natterjack_mcp.client import NatsTools
from natterjack_mcp.component import MCPTools
from natterjack_mcp.http import Address, serve_http
from natterjack_mcp.remote import RemoteTools
from natterjack_mcp.service import NatsService

AUTH = JWTAuth("a secret of thirty-two bytes, or more")
CHILD = '''\
import asyncio
import os

from natterjack_mcp import MCPServer, ToolContext, ToolError

server = MCPServer("shelf", version="2.0.0")


@server.tool()
def process() -> int:
    return os.getpid()


@server.tool(idempotent=True)
def again(marker: str) -> str:
    """Die the first time."""
    if not os.path.exists(marker):
        open(marker, "w").close()
        os._exit(1)
    return "here"


@server.tool()
def die() -> None:
    os._exit(1)


@server.tool()
async def count(to: int, ctx: ToolContext) -> int:
    for number in range(to):
        await ctx.progress(number + 1, to)
    return to


@server.tool()
async def wait() -> None:
    await asyncio.Event().wait()


@server.tool()
def fail() -> None:
    raise ToolError("the shelf is empty")


if __name__ == "__main__":
    server.run(stdio=True)
'''


@pytest.fixture
def shelf(tmp_path: Path) -> StdioServerSpec:
    (tmp_path / "shelf.py").write_text(CHILD)
    return StdioServerSpec(command="python", args=["-m", "shelf"], cwd=str(tmp_path))


def call(tools: Any, tool: str, timeout: float = 30.0, **arguments: Any) -> Awaitable[Any]:
    found: Awaitable[Any] = tools.call(tool, arguments, timeout=timeout, envelope=Envelope())
    return found


@asynccontextmanager
async def connected(spec: HttpServerSpec | StdioServerSpec, name: str = "shelf") -> AsyncIterator[RemoteTools]:
    tools = spec.client(name, None)  # type: ignore[arg-type]
    assert isinstance(tools, RemoteTools)
    await tools.start()
    try:
        yield tools
    finally:
        await tools.close()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


# A child


async def test_one_child_for_all_that_name_it_and_another_when_it_dies(shelf: StdioServerSpec, tmp_path: Path) -> None:
    same = StdioServerSpec("python", ["-m", "shelf"], cwd=str(tmp_path))
    async with connected(shelf) as one, connected(same) as two:
        process = await call(one, "process")
        assert await call(two, "process") == process
        assert {each.tool for each in await two.list(timeout=10)} >= {"process", "count"}
        assert await call(one, "count", to=2) == 2
        with pytest.raises(ToolError, match="the shelf is empty"):
            await call(one, "fail")
        with pytest.raises(ToolTimeoutError, match="did not answer within"):
            await call(one, "wait", timeout=0.2)
        os.kill(process, signal.SIGKILL)
        await until(lambda: not alive(process))

        async def back() -> int | None:
            try:
                return int(await call(two, "process"))
            except ToolUnavailableError as error:
                said.append(str(error))
                return None

        said: list[str] = []
        other = await until(back, timeout=30)
        assert other is not None
        assert other != process
        assert all("the tool server 'shelf'" in each for each in said)
        assert await call(one, "process") == other
    assert not alive(other)


@pytest.mark.full
async def test_what_does_no_harm_is_called_again_where_a_child_died(shelf: StdioServerSpec, tmp_path: Path) -> None:
    async with connected(shelf) as tools:
        with pytest.raises(ToolUnavailableError, match="'shelf' went away before it answered"):
            await call(tools, "die")

        async def back() -> bool:
            try:
                return bool(await tools.list(timeout=10))
            except ToolUnavailableError:
                return False

        await until(back, timeout=30)
        with pytest.raises(ToolUnavailableError):  # nobody is there yet that could say that it does no harm
            await call(tools, "again", marker=str(tmp_path / "marker"))
        await until(back, timeout=30)
        assert await call(tools, "again", marker=str(tmp_path / "marker")) == "here"


async def test_a_child_that_cannot_start_is_named() -> None:
    spec = StdioServerSpec(command=sys.executable, args=["-c", "raise SystemExit(3)"])
    with pytest.raises(
        ToolUnavailableError, match=r"the tool server 'shelf' \(.* -c raise SystemExit\(3\)\) cannot be"
    ):
        async with connected(spec):
            pass  # pragma: no cover - it does not start
    with pytest.raises(ToolUnavailableError, match="no-such-program"):
        async with connected(StdioServerSpec("no-such-program")):
            pass  # pragma: no cover - it does not start


# HTTP


def office() -> MCPServer:
    server = MCPServer("office")
    server.middleware = [AuthMiddleware(AUTH)]

    @server.tool(guards=[HasRole("researcher")])
    async def web_search(query: str, ctx: ToolContext) -> str:
        return f"{query} for {ctx.caller}"

    @server.tool(guards=[HasRole("writer")])
    async def publish(title: str, content: str) -> str:
        return f"{title}: {len(content)}"

    return server


class Http:
    """An office that is open or closed."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.port, self._log, self._task = 0, caplog, None
        self._log.set_level("INFO", "natterjack.tools")

    _task: asyncio.Task[None] | None

    async def open(self) -> None:
        self._log.clear()
        self._task = asyncio.create_task(serve_http(office(), Address("127.0.0.1", self.port)))
        await until(lambda: [each for each in self._log.messages if "is served at" in each])
        line = next(each for each in self._log.messages if "is served at" in each)
        self.port = int(line.rpartition(":")[2].partition("/")[0])

    async def shut(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def spec(self, role: str) -> HttpServerSpec:
        return HttpServerSpec(f"http://127.0.0.1:{self.port}", bearer_token=AUTH.token(role, roles=[role]))


@pytest.fixture
async def http(caplog: pytest.LogCaptureFixture) -> AsyncIterator[Http]:
    http = Http(caplog)
    await http.open()
    yield http
    await http.shut()


async def test_each_agent_has_its_role_over_http(http: Http) -> None:
    async with connected(http.spec("researcher")) as researcher, connected(http.spec("writer")) as writer:
        assert await call(researcher, "web_search", query="toads") == "toads for researcher"
        assert await call(writer, "publish", title="t", content="four") == "t: 4"
        assert [each.tool for each in await writer.list(timeout=10)] == ["publish"]
        with pytest.raises(ToolRefusedError, match="HasRole"):
            await call(writer, "web_search", query="toads")


async def test_a_server_that_is_gone_and_back(http: Http) -> None:
    async with connected(http.spec("writer")) as writer:
        await http.shut()
        with pytest.raises(ToolUnavailableError, match="the tool server 'shelf'"):
            await call(writer, "publish", title="t", content="four")
        await http.open()

        async def back() -> Any:
            try:
                return await call(writer, "publish", title="t", content="four")
            except ToolUnavailableError:
                return None

        assert await until(back, timeout=30) == "t: 4"


async def test_who_is_not_known_is_told_so(http: Http) -> None:
    for token in (None, "nonsense"):
        with pytest.raises(ToolUnavailableError, match=r"it wants to know who calls, and answers: Bearer realm"):
            async with connected(HttpServerSpec(f"http://127.0.0.1:{http.port}/mcp", token)):
                pass  # pragma: no cover - it does not start


def test_what_is_no_url_is_told() -> None:
    assert HttpServerSpec("http://localhost:8080").url == "http://localhost:8080/mcp"
    assert HttpServerSpec("https://example.org/tools?x=1").url == "https://example.org/tools?x=1"
    assert "secret" not in repr(HttpServerSpec("http://localhost", bearer_token="secret"))
    for wrong in ("localhost:8080", "nats://host", "http://"):
        with pytest.raises(ConfigError, match="is no URL of a tool server"):
            HttpServerSpec(wrong)


# In a team


class Clerk(Agent):
    """Calls what it is asked for."""

    async def answer(self, question: str, ctx: RunContext) -> Any:
        return await ctx.tools.call(question)


async def test_the_agents_of_a_process_share_a_child(shelf: StdioServerSpec, own_server: NatsServer) -> None:
    runtime = AgentRuntime(own_server.url)
    for name in ("ann", "ben"):
        runtime.add_process(AgentProcess(name, agent=Clerk(), servers={"tools": shelf}))
    async with runtime:
        answers = await runtime.broadcast(["ann", "ben"], "tools.process")
        assert len(set(answers.values())) == 1
        assert len(answers) == 2
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("ann", agent=Clerk(), servers={"tools": StdioServerSpec("no-such-program")}))
    with pytest.raises(
        StartError, match=r"agent 'ann' cannot start: its tool server 'tools' cannot be reached: .*no-such"
    ):
        await runtime.start_all()


async def test_a_child_is_served_over_nats_and_the_team_decides_who_calls(
    shelf: StdioServerSpec, nats_server: NatsServer
) -> None:
    name = f"shelf-{secrets.token_hex(4)}"
    bridge = shelf.bridge(name)
    await bridge.start()
    served = await Bus.connect(Server(nats_server.url), principal=name)
    ann = await Bus.connect(Server(nats_server.url), principal="ann")
    told: list[tuple[float, float | None]] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        del message
        told.append((progress, total))

    service = NatsService(bridge, served, name, admits=lambda tool, caller, _: caller == "ann" and tool != "die")
    try:
        await service.start()
        tools = NatsTools(name, ann, check=True)
        await tools.start()
        process = await call(tools, "process")
        assert {each.tool for each in await tools.list(timeout=10)} == {"process", "again", "count", "wait", "fail"}
        with pytest.raises(ToolRefusedError, match="the team's `roles`"):
            await call(tools, "die")
        with pytest.raises(ToolError, match="the shelf is empty"):
            await call(tools, "fail")
        async with Client(nats_client(name, ann)) as client:
            assert (await client.call_tool("count", {"to": 2}, progress_callback=report)).structured_content == {
                "result": 2
            }
            assert len((await client.list_tools()).tools) == 5
        assert told == [(1, 2), (2, 2)]
        os.kill(process, signal.SIGKILL)
        with pytest.raises(CallError):
            await call(tools, "wait")
    finally:
        await service.drain(1)
        await bridge.close()
        await served.close()
        await ann.close()


def test_a_table_says_what_it_serves_in_one_way() -> None:
    assert MCPTools.create({"command": ["python", "-m", "shelf"]}).config.command == ("python", "-m", "shelf")
    tables: list[dict[str, Any]] = [{}, {"server": "a:b", "url": "http://x"}, {"command": []}]
    for wrong in tables:
        with pytest.raises(ConfigError, match="say what it serves, in one way"):
            MCPTools.create(wrong)
    with pytest.raises(ConfigError) as caught:
        MCPTools.create({"bearer_token": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert json.dumps(MCPTools.Config.model_json_schema())
