"""What the runs of an agent, and of a team, may use together."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from natterjack import AgentProcess, AgentRuntime, Quota, RunFailedError
from natterjack.testing import NatsServer, ScriptedAgent
from natterjack_llm import Call, LimitError, Seen, build_agent

ASKED: list[float] = []
AT_ONCE: list[int] = []
MOST: list[int] = []
"""How many requests there were at once, as each of them began."""


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    ASKED.clear()
    MOST.clear()


def once(seen: Seen) -> str:
    ASKED.append(time.monotonic())
    return f"you said {len(seen.prompt)} characters"


def caller(seen: Seen) -> Any:
    ASKED.append(time.monotonic())
    return "done" if seen.results else Call("ask_peer", {"name": "oracle", "question": "how?"})


def team(server: NatsServer, *names: str, model: str = "once", **config: Any) -> AgentRuntime:
    runtime = AgentRuntime(server.url)
    for name in names:
        settings = {"model": f"scripted:{__name__}:{model}", **config}
        runtime.add_process(AgentProcess(name, agent_config=settings, asks=["oracle"], retry_delay=0.05))
    runtime.add_process(AgentProcess("oracle", agent=ScriptedAgent(answers="so")))
    return runtime


async def outcomes(runtime: AgentRuntime, *names: str) -> list[str]:
    """What one run of each agent came to, one after another."""
    found = []
    for name in names:
        run = await runtime.inject_event(name, {"type": "go"})
        try:
            found.append(str(await run.result(20)))
        except RunFailedError as error:
            found.append(error.cause)
    return found


async def test_the_runs_of_an_agent_share_its_limit(own_server: NatsServer) -> None:
    runtime = team(own_server, "ann", "ben", agent_limits={"requests": 2, "per": 3600})
    async with runtime:
        found = await outcomes(runtime, "ann", "ann", "ann", "ben")
    assert found[2].startswith("LimitError: the agent met a limit: 2 requests in 3600 s; there is room again in 1,")
    assert ["you said" in each for each in found] == [True, True, False, True]
    assert len(ASKED) == 3


async def test_the_agents_of_a_team_share_its_limit(own_server: NatsServer) -> None:
    async with team(own_server, "ann", "ben", team_limits={"requests": 2}) as runtime:
        found = await outcomes(runtime, "ann", "ben", "ann")
    assert ["you said" in each for each in found] == [True, True, False]
    assert "the team met a limit: 2 requests" in found[2]


async def test_tokens_are_counted_after_a_request_and_looked_at_before(own_server: NatsServer) -> None:
    async with team(own_server, "ann", agent_limits={"tokens": 10}) as runtime:
        found = await outcomes(runtime, "ann", "ann")
        left = await Quota(runtime._bus, "ann").left("tokens", 10, per=86_400)
    assert "you said" in found[0]
    assert "the agent met a limit: 10 tokens in 86400 s" in found[1]
    assert left < 0
    assert len(ASKED) == 1


async def test_calls_of_tools_are_counted(own_server: NatsServer) -> None:
    async with team(own_server, "ann", model="caller", agent_limits={"tool_calls": 1}) as runtime:
        found = await outcomes(runtime, "ann", "ann")
    assert found[0] == "done"
    assert "the agent met a limit: 1 tool calls" in found[1]


async def test_what_was_done_is_not_counted_again(own_server: NatsServer) -> None:
    oracle = ScriptedAgent(answers="so")
    runtime = AgentRuntime(own_server.url)
    config = {"model": f"scripted:{__name__}:twice", "agent_limits": {"requests": 3}}
    runtime.add_process(AgentProcess("ann", agent_config=config, asks=["oracle"], retry_delay=0.05))
    runtime.add_process(AgentProcess("oracle", agent=oracle))
    async with runtime:
        done, refused = await outcomes(runtime, "ann", "ann")
    assert done == "done"  # the first request, one that failed, and the second
    assert "the agent met a limit: 3 requests" in refused
    assert len(ASKED) == 3


def twice(seen: Seen) -> Any:
    """Fails once, in the midst."""
    ASKED.append(time.monotonic())
    if len(ASKED) == 2:
        raise ConnectionError
    return "done" if seen.results else Call("ask_peer", {"name": "oracle", "question": "how?"})


async def test_a_provider_is_asked_as_fast_as_it_takes(own_server: NatsServer) -> None:
    async with team(own_server, "ann", "ben", rate={"requests": 2, "per": 1.0}) as runtime:
        answers = await asyncio.gather(*(runtime.ask_peer(name, "hello", timeout=30) for name in ("ann", "ben") * 2))
    assert len(answers) == len(ASKED) == 4
    assert max(ASKED) - min(ASKED) > 0.9  # two at once, and one for each further half second


async def test_an_agent_in_a_program_has_limits_too(own_server: NatsServer) -> None:
    async with team(own_server, "ann") as runtime:
        del runtime
        model = f"scripted:{__name__}:once"
        async with await build_agent(model, server=own_server.url, agent_limits={"requests": 1}) as agent:
            await agent.ainvoke("hello")
            with pytest.raises(LimitError, match="the agent met a limit: 1 requests"):
                await agent.ainvoke("hello")


async def test_a_provider_gets_so_many_requests_at_once(own_server: NatsServer) -> None:
    async with team(own_server, "ann", "ben", model="slow", rate={"concurrency": 1}) as runtime:
        answers = await asyncio.gather(*(runtime.ask_peer(name, "hello", timeout=30) for name in ("ann", "ben") * 2))
    assert len(answers) == 4
    assert MOST == [1] * 4


async def slow(seen: Seen) -> str:
    del seen
    AT_ONCE.append(1)
    MOST.append(len(AT_ONCE))
    for _ in range(100):
        await asyncio.sleep(0)  # let others begin, if they may
    AT_ONCE.pop()
    return "so"
