"""Secured mode and the rest of the suite: a few tests of each part, run so; and answers that are silent for long."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from natterjack import Agent, AgentProcess, AgentRuntime, Bus, Envelope, Right, RunContext, Team, permissions
from natterjack.needs import agent_permissions
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.testing import until
from natterjack_mcp import MCPServer, ToolContext
from natterjack_mcp.client import NatsTools
from natterjack_mcp.errors import ToolUnavailableError
from natterjack_mcp.service import NatsService
from natterjack_mcp.wire import Line
from natterjack_permissions.authority import BESIDE
from natterjack_permissions.broker import accounts
from natterjack_permissions.keys import keep
from natterjack_permissions.reload import reload
from natterjack_permissions.star import star
from natterjack_permissions.testing import secured_broker

ROOT = Path(__file__).parent.parent
KIND = "natterjack.testing.agents:ScriptedAgent"
EACH = """
tests/test_conversations.py::test_an_agent_is_told_the_conversation_and_names_one
tests/test_control.py::test_a_run_that_waits_is_cancelled_and_its_ticket_is_gone
tests/test_delays.py::test_event_happens_once_its_delay_is_over
tests/test_durable_asks.py::test_a_step_that_is_repeated_gets_the_answer_that_was_given
tests/test_journal.py::test_two_replicas_cannot_both_go_on
tests/test_peers.py::test_deadline_travels_to_nested_asks
tests/test_runtime.py::test_processes_share_state
tests/test_streaming.py::test_agents_stream_from_agents
tests/test_streaming.py::test_work_for_an_asker_that_is_gone_is_cancelled
tests/test_synadia.py::test_their_client_hears_our_heartbeats
tests/test_tools.py::test_a_run_calls_the_tools_of_its_team
tests/test_transaction.py::test_nobody_ever_sees_half_of_it
tests/test_triggers.py::test_a_plain_message_wakes_an_agent_and_keeps_its_headers
tests/test_waits.py::test_a_run_waits_for_an_event_and_holds_no_process
plugins/http/tests/test_http_ask.py::test_an_answer_and_who_asked
plugins/llm/tests/test_llm_agent.py::test_a_model_works_on_an_event_with_what_its_agent_may_do
plugins/mcp/tests/test_mcp_nats.py::test_replicas_share_the_work_and_are_seen
plugins/schedule/tests/test_schedule_triggers.py::test_moment_comes_once_and_never_again
"""


@pytest.mark.timeout(180)
@pytest.mark.open_mode(reason="they run so anyway")
def test_each_part_does_its_work_on_secured_brokers() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "--secured", "-q", "-n", "0", "-p", "no:cacheprovider", *EACH.split()]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
    assert re.search(r"^secured: \d+ tests on accounts, 0 without", done.stdout, re.M), done.stdout


class Silent(Agent):
    """Answers once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.asked = asyncio.Event(), 0

    async def answer(self, question: str, ctx: RunContext) -> str:
        self.asked += 1
        await self.gate.wait()
        return f"{ctx.caller} asks {question}"


class Passing(Agent):
    """Asks the silent one."""

    async def answer(self, question: str, ctx: RunContext) -> str:
        return await ctx.ask_peer("silent", question, timeout=300)


@pytest.mark.parametrize(
    "seconds", [0.1, pytest.param(150, marks=[pytest.mark.full, pytest.mark.timeout(240)])], ids=["short", "long"]
)
async def test_an_answer_may_be_silent_for_long_and_come_after_a_reload(tmp_path: Path, seconds: float) -> None:
    silent, runtime = Silent(), AgentRuntime()
    runtime.add_process(AgentProcess("silent", agent=silent, asks=[]))
    runtime.add_process(AgentProcess("passing", agent=Passing(), asks=["silent"]))
    granted = agent_permissions(runtime.team.closed())
    with secured_broker(granted, tmp_path) as (server, login):
        runtime.choose_server(login)
        async with runtime:
            asks = [runtime.ask_peer(name, "why", timeout=300) for name in ("silent", "passing")]
            answers = asyncio.gather(*asks)
            await until(lambda: silent.asked == 2)
            granted["newcomer"] = permissions("newcomer", [Right("serve", "newcomer")])
            config = accounts(star(granted), keep(tmp_path, [*granted, *BESIDE]))
            server.configure(config)
            await reload(server.url, tmp_path)
            asyncio.get_running_loop().call_later(seconds, silent.gate.set)
            assert await answers == ["operator asks why", "passing asks why"]


async def test_what_is_read_while_accounts_are_reloaded_is_there(tmp_path: Path) -> None:
    """They are cut off from each other for a moment: nothing is missing for that."""
    team = Team.model_validate(
        {"context": {"mood": "good"}, "agents": {f"agent-{n}": {"kind": KIND} for n in range(20)}}
    )
    granted = agent_permissions(team.closed())
    with secured_broker(granted, tmp_path) as (server, login):
        operator, agent = [await Bus.connect(login, principal=name) for name in ("operator", "agent-0")]
        await provision(operator, team, Plugins.load())
        reads: tuple[Callable[[], Awaitable[object]], ...] = (
            partial(agent.value, "context", "mood"),
            partial(agent.api, "CONSUMER.INFO.INBOX.agent-0=inbox"),
            partial(operator.api, "STREAM.INFO.EVENTS"),
            partial(operator.batch, "KV_context", {"seq": 1, "next_by_subj": ">", "batch": 1}, timeout=10.0),
        )
        counts, done = [0] * len(reads), asyncio.Event()

        async def read(at: int) -> None:
            while not done.is_set():
                await reads[at]()
                counts[at] += 1

        async with asyncio.TaskGroup() as tasks:
            for at in range(len(reads)):
                tasks.create_task(read(at))
            for at in range(4):
                granted[f"newcomer-{at}"] = permissions(f"newcomer-{at}", [Right("serve", f"newcomer-{at}")])
                server.configure(accounts(star(granted), keep(tmp_path, [*granted, *BESIDE])))
                await reload(server.url, tmp_path)
            done.set()
        assert min(counts) > 4
        await agent.close()
        await operator.close()


@pytest.mark.parametrize("operator_mode", [False, True], ids=["static", "operator"])
async def test_the_operator_calls_the_tools_of_all_and_hears_what_they_tell(
    tmp_path: Path, operator_mode: bool
) -> None:
    desk = MCPServer("desk")

    @desk.tool(public=True)
    async def whoami(ctx: ToolContext) -> list[str]:
        return [ctx.caller.name, ctx.caller.attested]

    granted = {"desk": permissions("desk", [Right("provide", "desk")])}
    with secured_broker(granted, tmp_path, operator_mode=operator_mode) as (_, login):
        serving, calling = [await Bus.connect(login, principal=name) for name in ("desk", "operator")]
        service = NatsService(desk, serving)
        await service.start()
        tools = NatsTools("desk", calling)
        assert await tools.call("whoami", {}, timeout=10, envelope=Envelope()) == ["operator", "broker"]
        heard: list[bytes] = []
        await calling.listen("tools.desk.feed.changes", lambda message: heard.append(message.data))
        await serving.publish("tools.desk.feed.changes", b"{}")
        await until(lambda: heard == [b"{}"])
        await service.drain(1)
        for bus in (calling, serving):
            await bus.close()


async def test_a_tool_that_is_away_for_a_moment_is_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, tried, ask = MCPServer("desk"), asyncio.Event(), Line.ask

    @desk.tool(public=True)
    async def name() -> str:
        return "desk"

    async def noted(self: Line, *args: Any, **kwargs: Any) -> Any:
        try:
            return await ask(self, *args, **kwargs)
        finally:
            tried.set()

    monkeypatch.setattr(Line, "ask", noted)
    monkeypatch.setattr("natterjack_mcp.client.PAUSE", 0.5)
    granted = {"desk": permissions("desk", [Right("provide", "desk")])}
    with secured_broker(granted, tmp_path) as (_, login):
        serving, calling = [await Bus.connect(login, principal=name) for name in ("desk", "operator")]
        tools = NatsTools("desk", calling)
        call = asyncio.create_task(tools.call("name", {}, timeout=10, envelope=Envelope()))
        await tried.wait()
        service = NatsService(desk, serving)
        await service.start()
        assert await call == "desk"
        await service.drain(1)
        with pytest.raises(ToolUnavailableError, match="nobody serves it"):
            await tools.call("name", {}, timeout=1, envelope=Envelope())
        for bus in (calling, serving):
            await bus.close()


@pytest.mark.parametrize("operator_mode", [False, True], ids=["static", "operator"])
async def test_a_tool_may_take_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator_mode: bool) -> None:
    """The broker takes an empty message for the end of all answers."""
    monkeypatch.setattr("natterjack_mcp.service.KEEP_ALIVE", 0.05)
    monkeypatch.setattr("natterjack_mcp.wire.PATIENCE", 1.0)
    desk, gate = MCPServer("desk"), asyncio.Event()

    @desk.tool(public=True)
    async def think() -> str:
        await gate.wait()
        return "thought"

    granted = {"desk": permissions("desk", [Right("provide", "desk")])}
    with secured_broker(granted, tmp_path, operator_mode=operator_mode) as (_, login):
        serving, calling = [await Bus.connect(login, principal=name) for name in ("desk", "operator")]
        service = NatsService(desk, serving)
        await service.start()
        asyncio.get_running_loop().call_later(2.0, gate.set)
        assert await NatsTools("desk", calling).call("think", {}, timeout=10, envelope=Envelope()) == "thought"
        await service.drain(1)
        for bus in (calling, serving):
            await bus.close()
