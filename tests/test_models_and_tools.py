"""Model agents with tool servers that want more of them than a call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from natterjack import AgentProcess, AgentRuntime, Bus, Server, connect
from natterjack.testing import NatsServer, until
from natterjack_llm import Call, Seen
from natterjack_mcp import MCPServer, NatsServerSpec
from natterjack_mcp.service import NatsService

ASKED: list[str] = []


def presser(seen: Seen) -> Any:
    ASKED.append(seen.prompt)
    return json.dumps(seen.results) if seen.results else Call("publish", {"title": "Toads"})


@pytest.mark.parametrize("answer", ["yes", "no"])
async def test_a_call_waits_for_a_human_if_its_server_says_so(own_server: NatsServer, answer: str) -> None:
    ASKED.clear()
    press, printed = MCPServer("press"), list[str]()

    @press.tool(approval=True)
    async def publish(title: str) -> str:
        printed.append(title)
        return "out"

    bus = await Bus.connect(Server(own_server.url), principal="press")
    service = NatsService(press, bus)
    await service.start()
    runtime = AgentRuntime(own_server.url)
    config = {"model": f"scripted:{__name__}:presser"}
    servers = {"press": NatsServerSpec("press")}
    runtime.add_process(
        AgentProcess("publisher", agent_config=config, servers=servers, waits=["approval.answered"], retry_delay=0.05)
    )
    async with runtime, connect(own_server.url) as client:
        run = await runtime.inject_event("publisher", {"type": "go"})
        (asked,) = await until(client.approvals.waiting)
        assert asked.question == 'May publisher call press.publish with {"title":"Toads"}?'
        if answer == "yes":
            await client.approvals.answer(asked.id, "yes")
        else:
            await client.approvals.deny(asked.id, reason="no toads", by="eve")
        told = await run.result(20)
        assert told == '["out"]' if answer == "yes" else "eve said no to" in told
    await service.drain(1.0)
    await bus.close()
    assert printed == (["Toads"] if answer == "yes" else [])
    assert len(ASKED) == 2
