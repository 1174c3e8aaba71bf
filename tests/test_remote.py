"""Agents of another server are asked by their address."""

from __future__ import annotations

import pytest

from natterjack import Agent, AgentProcess, AgentRuntime, PeerTimeoutError, PeerUnavailableError, RunContext
from natterjack.builtin.peers import NatsPeers
from natterjack.errors import ConfigError
from natterjack.testing import NatsServer


async def shout(question: str) -> str:
    return question.upper()


class Relay(Agent):
    async def answer(self, question: str, ctx: RunContext) -> str:
        return await ctx.ask_peer("far", question, timeout=5)


async def test_an_agent_asks_one_on_another_server(nats_server: NatsServer, own_server: NatsServer) -> None:
    far = AgentRuntime(own_server.url)
    far.add_process(AgentProcess(name="shout", agent=shout))
    near = AgentRuntime(nats_server.url)
    address = f"{own_server.url}/shout"
    near.add_process(AgentProcess(name="remote-relay", agent=Relay(), cross_agents={"far": address}))
    async with far, near:
        assert await near.ask_peer("remote-relay", "hello", timeout=5) == "HELLO"


async def test_absent_agents_and_servers_are_told_apart_from_slow_ones(own_server: NatsServer) -> None:
    peers = NatsPeers()
    with pytest.raises(PeerUnavailableError, match="nobody serves that name"):
        await peers.ask(f"{own_server.url}/nobody", "x", 2)
    with pytest.raises(PeerUnavailableError, match="no NATS server answers"):
        await peers.ask("nats://127.0.0.1:1/nobody", "x", 2)
    with pytest.raises(ConfigError, match="names no agent"):
        await peers.ask("nats://127.0.0.1:1", "x", 2)
    with pytest.raises(PeerTimeoutError):
        await peers.ask("nats://127.0.0.1:1/nobody", "x", 0.0)
    await peers.close()
