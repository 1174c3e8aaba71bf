"""Conversations: what an agent keeps for its replicas, where nobody else may read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    Bus,
    Conversations,
    NotProvisionedError,
    RefusedError,
    RunContext,
)
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.team import Team
from natterjack.testing import NatsServer, ScriptedAgent
from natterjack.testing.command import Cli
from natterjack.testing.narrow import login_of, narrow_team


def told(seen: Any) -> str:
    """Return all that a model was asked so far."""
    parts = [part for message in seen.messages for part in message.parts]
    return " | ".join(str(part.content) for part in parts if part.part_kind == "user-prompt")


TEAM = Team.model_validate(
    {"agents": {name: {"kind": "llm", "model": f"scripted:{__name__}:told"} for name in ("ann", "ben")}}
)


async def test_only_an_agent_itself_reads_its_conversations() -> None:
    async with narrow_team(TEAM, Plugins.load()) as team:
        await team.start("ann")
        await team.client.ask_peer("ann", "one", conversation_id="t")
        assert await team.client.ask_peer("ann", "two", conversation_id="t") == "one | two"
        assert team.violations() == []
        ben = await Bus.connect(login_of(team.server, "ben"), principal="ben")
        for wrong in (Conversations(ben, "ann"), Conversations(ben, "operator")):
            with pytest.raises(RefusedError):
                await wrong.read("ask", "operator", "t")
            with pytest.raises(RefusedError):
                await ben.store("$KV.conversations.ann.x", b"")
        for wide in ("DIRECT.GET.KV_conversations", "STREAM.MSG.GET.KV_conversations", "STREAM.PURGE.KV_conversations"):
            with pytest.raises(RefusedError):
                await ben.api(wide, {"last_by_subj": "$KV.conversations.ann.>"})
        assert await Conversations(ben, "ben").read("ask", "operator", "t") == b""
        await ben.close()


@pytest.fixture
async def ready(bus: Bus) -> Bus:
    await provision(bus, TEAM, Plugins.load())
    return bus


async def test_of_two_who_change_at_once_none_loses_what_the_other_wrote(ready: Bus) -> None:
    replicas = [Conversations(ready, "crowd") for _ in range(4)]

    def add(kept: bytes) -> bytes:
        return kept + b"x"

    await asyncio.gather(*(replicas[n % 4].change("ask", "ann", "t", change=add) for n in range(40)))
    assert await replicas[0].read("ask", "ann", "t") == b"x" * 40
    await replicas[0].change("ask", "ann", "t", change=lambda kept: kept)
    assert await replicas[0].read("ask", "ann", "u") == await replicas[0].read("ask", "ann', 't") == b""


async def test_a_team_of_an_older_version_must_be_provisioned(bus: Bus) -> None:
    with pytest.raises(NotProvisionedError, match="the bucket 'conversations' does not exist on this server"):
        await Conversations(bus, "ann").read("t")


class Relay(Agent):
    """Passes a question on, in a conversation of its own."""

    async def answer(self, question: str, ctx: RunContext) -> str:
        """Say what was asked, and in which conversation."""
        if question != "who?":
            return f"{question} in {ctx.conversations.asked!r}"
        return await ctx.ask_peer("relay", "you", conversation_id="of my own")


async def test_an_agent_is_told_the_conversation_and_names_one(runtime: AgentRuntime) -> None:
    runtime.add_process(AgentProcess("relay", agent=Relay()))
    async with runtime:
        assert await runtime.ask_peer("relay", "what", conversation_id="a;b") == "what in 'a;b'"
        assert await runtime.ask_peer("relay", "what") == "what in ''"
        assert await runtime.ask_peer("relay", "who?", conversation_id="x") == "you in 'of my own'"


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
async def test_the_command_line_goes_on_with_one(own_server: NatsServer, cli: Cli, how: str) -> None:
    desk, told = ScriptedAgent(answers="so"), ["ask", "desk", "hello", "--server", own_server.url, how]
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("desk", agent=desk))
    async with runtime:
        assert await asyncio.to_thread(cli.text, *told, "--conversation", "ticket-7") == "so"
        assert await asyncio.to_thread(cli.text, *told) == "so"
    assert [ctx.conversations.asked for ctx in desk.contexts] == ["ticket-7", ""]
