"""Changes that a server behind a bridge tells, of this protocol and of an older one, reach who listens over NATS."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from mcp import Client
from mcp.shared.subscriptions import ResourceUpdated, ServerEvent, ToolsListChanged

from natterjack import Bus, Server
from natterjack.testing import NatsServer, until
from natterjack_mcp import StdioServerSpec, nats_client
from natterjack_mcp.remote import Bridge
from natterjack_mcp.service import NatsService
from natterjack_mcp.upstream import Upstream

pytestmark = pytest.mark.full  # real processes for each test: CI has 15 minutes

NEW = """\
import os

from natterjack_mcp import MCPServer

server = MCPServer("shelf")


@server.resource("shelf://rules")
def rules() -> str:
    return "be brief"


@server.tool()
async def grow() -> None:
    server.tool(name="more")(rules)
    await server.tools_changed()


@server.tool()
async def touch() -> None:
    await server.resource_updated("shelf://rules")


@server.tool()
def process() -> int:
    return os.getpid()


if __name__ == "__main__":
    server.run(stdio=True)
"""

OLD = '''\
"""A server of the protocol 2025-06-18, by hand."""

import json
import os
import sys

tools, subscribed = ["grow", "touch", "process"], []


def send(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def called(tool):
    if tool == "grow":
        tools.append("more")
        send(method="notifications/tools/list_changed")
    elif tool == "touch":
        for uri in subscribed:
            send(method="notifications/resources/updated", params={"uri": uri})
    return {"content": [], "structuredContent": {"result": os.getpid() if tool == "process" else subscribed}}


def result_of(method, params):
    if method == "initialize":
        can = {"tools": {"listChanged": True}, "resources": {"subscribe": True}}
        return {"protocolVersion": "2025-06-18", "capabilities": can, "serverInfo": {"name": "old", "version": "1"}}
    if method == "tools/list":
        return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in tools]}
    if method == "tools/call":
        return called(params["name"])
    if method in ("resources/subscribe", "resources/unsubscribe"):
        (subscribed.append if method == "resources/subscribe" else subscribed.remove)(params["uri"])
        return {}
    return None


for line in sys.stdin:
    message = json.loads(line)
    found = result_of(message["method"], message.get("params", {}))
    if found is not None:
        send(id=message["id"], result=found)
    elif "id" in message:
        send(id=message["id"], error={"code": -32601, "message": "Method not found"})
'''


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


class Bridged:
    """A child that is served over NATS, and a client there."""

    def __init__(self, nats: NatsServer, stack: AsyncExitStack) -> None:
        self._nats, self._stack, self.name = nats, stack, f"shelf-{secrets.token_hex(4)}"

    async def bus(self, principal: str) -> Bus:
        bus = await Bus.connect(Server(self._nats.url), principal=principal)
        self._stack.push_async_callback(bus.close)
        return bus

    async def start(self, folder: Path, code: str) -> Bridge:
        (folder / "shelf.py").write_text(code)
        bridge = StdioServerSpec("python", ["-m", "shelf"], cwd=str(folder)).bridge(self.name)
        await bridge.start()
        self._stack.push_async_callback(bridge.close)
        service = NatsService(bridge, await self.bus(self.name), self.name)
        await service.start()
        self._stack.push_async_callback(service.drain, 0.0)
        return bridge

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with Client(nats_client(self.name, await self.bus("ann"))) as client:
            yield client


async def result(client: Client, tool: str) -> object:
    return ((await client.call_tool(tool)).structured_content or {}).get("result")


async def told(changes: AsyncIterator[ServerEvent]) -> ServerEvent:
    async with asyncio.timeout(20):
        return await anext(changes)


@pytest.mark.parametrize("code", [NEW, OLD], ids=["new", "old"])
async def test_a_change_is_told_to_who_listens(
    code: str, tmp_path: Path, nats_server: NatsServer, stack: AsyncExitStack
) -> None:
    bridged = Bridged(nats_server, stack)
    await bridged.start(tmp_path, code)
    async with bridged.client() as client:
        async with client.listen(tools_list_changed=True, resource_subscriptions=["shelf://rules"]) as changes:
            await client.call_tool("touch")
            assert await told(aiter(changes)) == ResourceUpdated("shelf://rules")
            await client.call_tool("grow")
            assert await told(aiter(changes)) == ToolsListChanged()
            assert "more" in {each.name for each in (await client.list_tools()).tools}
            async with client.listen(resource_subscriptions=["shelf://rules"]) as others:
                await client.call_tool("touch")
                assert await told(aiter(others)) == await told(aiter(changes)) == ResourceUpdated("shelf://rules")
            await client.call_tool("touch")  # one has left, the other still hears
            assert await told(aiter(changes)) == ResourceUpdated("shelf://rules")
        if code == OLD:

            async def left() -> bool:
                return await result(client, "touch") == []

            await until(left)


@pytest.mark.parametrize("code", [NEW, OLD], ids=["new", "old"])
async def test_a_child_that_is_back_is_followed_again(
    code: str, tmp_path: Path, nats_server: NatsServer, stack: AsyncExitStack
) -> None:
    bridged = Bridged(nats_server, stack)
    await bridged.start(tmp_path, code)
    async with (
        bridged.client() as client,
        client.listen(tools_list_changed=True, resource_subscriptions=["shelf://rules"]) as changes,
    ):
        process = await result(client, "process")
        assert isinstance(process, int)
        os.kill(process, signal.SIGKILL)
        assert await told(aiter(changes)) == ToolsListChanged()  # it may have others than before

        async def touched() -> bool:
            await client.call_tool("touch")
            return bool(waiting.done())

        waiting = asyncio.ensure_future(told(aiter(changes)))
        await until(touched, timeout=20)
        assert await waiting == ResourceUpdated("shelf://rules")


async def test_a_bridge_leaves_nothing_behind(tmp_path: Path, nats_server: NatsServer, stack: AsyncExitStack) -> None:
    bridged = Bridged(nats_server, stack)
    bridge = await bridged.start(tmp_path, NEW)
    connection = bridge._connection
    assert connection is not None
    assert len(connection.hearers) == 1
    await bridge.close()
    assert connection.hearers == []
    following = [each for each in asyncio.all_tasks() if Upstream._follow.__qualname__ in repr(each.get_coro())]
    assert following == []


async def test_a_server_that_tells_no_changes_is_served_all_the_same(
    tmp_path: Path, nats_server: NatsServer, stack: AsyncExitStack
) -> None:
    bridged = Bridged(nats_server, stack)
    await bridged.start(tmp_path, OLD.replace('"resources/subscribe", "resources/unsubscribe"', '"no/such",'))
    async with bridged.client() as client, client.listen(resource_subscriptions=["shelf://rules"]) as changes:
        assert changes.honored.resource_subscriptions == ["shelf://rules"]
        assert await result(client, "touch") == []
