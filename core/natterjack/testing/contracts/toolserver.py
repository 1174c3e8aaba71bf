"""What the kernel relies on in a tool server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import pytest

from natterjack.bus import Bus
from natterjack.components import Component, Kind
from natterjack.messages import Envelope
from natterjack.plugins import Plugins
from natterjack.server import Server
from natterjack.team import Team
from natterjack.testing.contracts.component import TESTED, ComponentContract, assert_nothing_left
from natterjack.testing.servers import NatsServer
from natterjack.toolhost import ToolHost
from natterjack.toolserver import ToolServer


class ToolServerContract(ComponentContract):
    """What the kernel relies on in a tool server. Give `call` and `result` for one that agents call.

    Attributes:
        call: A tool and arguments for it.
        result: What it then returns.
    """

    kind: ClassVar[Kind] = "tool server"
    base: ClassVar[type[Component]] = ToolServer
    call: ClassVar[tuple[str, Mapping[str, Any]] | None] = None
    result: ClassVar[Any] = None

    @pytest.mark.asyncio
    async def test_serves_until_cancelled_and_leaves_no_task(self, own_server: NatsServer) -> None:
        """`serve` tells when it can be called, goes on by itself, and ends promptly when it is cancelled."""
        before = asyncio.all_tasks()
        host = await self._start(own_server)
        failed = asyncio.create_task(host.failed())
        done, _ = await asyncio.wait([failed], timeout=0.1)
        assert not done, failed.result()
        failed.cancel()
        await asyncio.gather(failed, return_exceptions=True)
        await host.stop(1.0)
        await assert_nothing_left(before)

    @pytest.mark.asyncio
    async def test_is_called(self, own_server: NatsServer) -> None:
        """What an agent calls is listed and returns its result."""
        if self.call is None:
            pytest.skip("no `call` is given")
        tool, arguments = self.call
        host = await self._start(own_server)
        bus = await Bus.connect(Server(own_server.url), principal="caller")
        client = cast("type[ToolServer]", self.component).client(TESTED, bus)
        try:
            await client.start()
            assert tool in {each.tool for each in await client.list(timeout=5.0)}
            assert await client.call(tool, arguments, timeout=5.0, envelope=Envelope()) == self.result
        finally:
            await client.close()
            await bus.close()
            await host.stop(1.0)

    async def _start(self, server: NatsServer) -> ToolHost:
        plugins, kind = Plugins(), cast("type[ToolServer]", self.component)
        plugins.tool_servers[kind.name] = kind
        team = Team.model_validate({"tools": {TESTED: {"kind": kind.name, **self.settings}}})
        host = ToolHost(TESTED, team, plugins, await Bus.connect(Server(server.url), principal=TESTED))
        await host.start()
        return host
