"""What the kernel relies on in a tool server."""

from __future__ import annotations

import asyncio
from typing import ClassVar, cast

import pytest

from natterjack.components import Component, Kind, ToolServer
from natterjack.testing.contracts.component import ComponentContract, assert_nothing_left, ends


class ToolServerContract(ComponentContract):
    """What the kernel relies on in a tool server."""

    kind: ClassVar[Kind] = "tool server"
    base: ClassVar[type[Component]] = ToolServer

    @pytest.mark.asyncio
    async def test_serves_until_cancelled_and_leaves_no_task(self) -> None:
        """`serve` goes on by itself, and ends promptly when it is cancelled."""
        before = asyncio.all_tasks()
        serving = asyncio.create_task(cast("ToolServer", self.component.create(self.settings)).serve())
        done, _ = await asyncio.wait([serving], timeout=0.1)
        assert not done, serving.exception()
        assert await ends(serving)
        await assert_nothing_left(before)
