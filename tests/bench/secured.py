"""Secured mode, where each principal has an account, beside the same in open mode."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from natterjack import AgentRuntime, Server, Team, agent_rights, permissions
from natterjack.plugins import Plugins
from natterjack.runtime import TeamRuntime
from natterjack.testing import NatsServer

from .measure import Row, Sides, Stage, p50

MOST = 1.35
"""Times as long as in open mode."""
TEAM = Team.model_validate({"agents": {"echo": {"kind": "natterjack.testing.agents:ScriptedAgent"}}})


@asynccontextmanager
async def _secured(stack: AsyncExitStack) -> AsyncIterator[AgentRuntime]:
    from natterjack_permissions.testing import secured_broker  # lazy: the row is left out where it is not installed

    granted = {name: permissions(name, rights) for name, rights in agent_rights(TEAM.closed()).items()}
    keys = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    _, server = stack.enter_context(secured_broker(granted, keys))
    async with TeamRuntime(TEAM, server, Plugins.load()) as runtime:
        yield runtime


def _beside_open(
    count: int, call: Callable[[AgentRuntime], Awaitable[object]]
) -> Callable[[Stage], AbstractAsyncContextManager[Sides]]:
    @asynccontextmanager
    async def prepare(stage: Stage) -> AsyncIterator[Sides]:
        calls = stage.count(count)
        async with AsyncExitStack() as stack:
            server = stack.enter_context(NatsServer())
            secured = await stack.enter_async_context(_secured(stack))
            open = await stack.enter_async_context(TeamRuntime(TEAM, Server(server.url), Plugins.load()))

            async def ours(_: int) -> None:
                await call(secured)

            async def raw(_: int) -> None:
                await call(open)

            yield Sides(lambda: p50(calls, ours), lambda: p50(calls, raw))

    return prepare


async def _ask(runtime: AgentRuntime) -> object:
    return await runtime.ask_peer("echo", "hello")


async def _emit(runtime: AgentRuntime) -> object:
    return await runtime.event_bus.emit("bench.secured", {"n": 1})


async def _set(runtime: AgentRuntime) -> object:
    return await runtime.context.set("bench", 1)


NEEDS = ("natterjack_permissions", "nkeys")
ROWS = [
    Row(f"secured: {name}, p50", "µs", MOST, _beside_open(2_000, call), beside="open mode", needs=NEEDS)
    for name, call in (("ask_peer", _ask), ("emit", _emit), ("context set", _set))
]
