"""A replica over NATS that is killed in the middle of a call, at the patience that callers have."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from natterjack import Bus, Envelope, Server
from natterjack.testing import NatsServer, until
from natterjack_mcp import ToolUnavailableError
from natterjack_mcp.client import NatsTools
from natterjack_mcp.wire import PATIENCE

DESK = """\
import asyncio
import os

from natterjack_mcp import MCPServer

server = MCPServer("desk")


async def wait(folder: str) -> int:
    open(os.path.join(folder, f"{os.getpid()}-{id(asyncio.current_task())}"), "w").close()
    while not os.path.exists(os.path.join(folder, "go_on")):
        await asyncio.sleep(0.05)
    return os.getpid()


server.tool(name="again", idempotent=True)(wait)
server.tool(name="once")(wait)
"""


@asynccontextmanager
async def replica(folder: Path, name: str, nats: NatsServer) -> AsyncIterator[int]:
    command = ["-m", "natterjack", "tools", "serve", "desk:server", "--nats", "--name", name]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=folder, env={**os.environ, "NATS_URL": nats.url}, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        while b"is served over NATS" not in (line := await asyncio.wait_for(process.stderr.readline(), 40)):
            assert line, "it ended"
        yield process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def closing(bus: Bus) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await bus.close()


@pytest.mark.full
async def test_what_does_no_harm_goes_on_elsewhere_and_all_else_fails_in_time(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    (tmp_path / "desk.py").write_text(DESK)
    (begun := tmp_path / "begun").mkdir()
    name = f"desk-{secrets.token_hex(4)}"
    bus = await Bus.connect(Server(nats_server.url), principal="ann")
    tools = NatsTools(name, bus)
    async with closing(bus), replica(tmp_path, name, nats_server) as first:
        again, once = (
            asyncio.create_task(tools.call(each, {"folder": str(begun)}, timeout=60.0, envelope=Envelope()))
            for each in ("again", "once")
        )
        await until(lambda: len(list(begun.iterdir())) == 2, timeout=30)
        async with replica(tmp_path, name, nats_server) as second:
            killed = time.monotonic()
            os.kill(first, signal.SIGKILL)
            with pytest.raises(ToolUnavailableError, match="the replica that worked on it has gone silent") as caught:
                await once
            assert time.monotonic() - killed < PATIENCE + 1.0
            assert caught.value.data == {"begun": True}
            await until(lambda: len(list(begun.glob(f"{second}-*"))) == 1)
            (begun / "go_on").touch()
            assert await asyncio.wait_for(again, 20) == second
