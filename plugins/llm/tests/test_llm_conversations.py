"""Conversations: what a model agent knows of the turns before, on whatever replica these were."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart

from natterjack import AgentProcess, AgentRuntime, Conversations, PayloadError, connect
from natterjack.testing import NatsServer
from natterjack_llm import Call, Seen, build_agent
from natterjack_llm.config import Kept
from natterjack_llm.history import History

GATE = asyncio.Event()
STARTED = asyncio.Event()
TRIED: list[str] = []


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    GATE.clear()
    STARTED.clear()
    TRIED.clear()


def prompts(seen: Seen) -> list[str]:
    parts = [part for message in seen.messages for part in message.parts]
    return [str(part.content) for part in parts if part.part_kind == "user-prompt"]


def told(seen: Seen) -> str:
    """All that was asked so far."""
    return " | ".join(prompts(seen))


def desk(server: NatsServer, model: str = "told", **config: Any) -> AgentRuntime:
    runtime = AgentRuntime(server.url)
    settings = {"model": f"scripted:{__name__}:{model}", "instructions": "Help.", **config}
    runtime.add_process(AgentProcess("desk", agent_config=settings, retry_delay=0.05))
    return runtime


async def test_a_conversation_goes_on_at_another_replica(own_server: NatsServer) -> None:
    async with desk(own_server) as first:
        assert await first.ask_peer("desk", "one", conversation_id="t") == "one"
        async with desk(own_server) as second:
            chunks = [chunk async for chunk in first.ask_stream("desk", "two", conversation_id="t")]
            assert "".join(chunks) == "one | two"
            assert await second.ask_peer("desk", "three", conversation_id="t") == "one | two | three"
    async with desk(own_server) as third:
        assert await third.ask_peer("desk", "four", conversation_id="t") == "one | two | three | four"
        assert await third.ask_peer("desk", "five", conversation_id="other") == "five"
        assert await third.ask_peer("desk", "six") == "six"


async def test_nobody_goes_on_with_what_another_began(own_server: NatsServer) -> None:
    async with desk(own_server) as runtime:
        await runtime.ask_peer("desk", "mine", conversation_id="t", asker="ann")
        assert await runtime.ask_peer("desk", "yours", conversation_id="t", asker="ben") == "yours"
        assert await runtime.ask_peer("desk", "more", conversation_id="t", asker="ann") == "mine | more"


async def turn(runtime: AgentRuntime, **data: Any) -> list[str]:
    """What the agent knew when it handled an event: the texts of this one and of those before."""
    run = await runtime.inject_event("desk", {"type": "mail", **data})
    return re.findall(r'"text": "(.*?)"', str(await run.result(20)))


async def test_events_with_one_value_of_a_field_are_one_conversation(own_server: NatsServer) -> None:
    async with desk(own_server, conversation_by="ticket.id") as runtime:
        assert await turn(runtime, text="a", ticket={"id": 7}) == ["a"]
        assert await turn(runtime, text="b", ticket={"id": "7"}) == ["b"]
        assert await turn(runtime, text="c", ticket={}) == ["c"]
        assert await turn(runtime, text="d", ticket="7") == ["d"]
        assert await turn(runtime, text="e", ticket={"id": 7}) == ["a", "e"]


async def slow(seen: Seen) -> str:
    if "slow" in seen.prompt:
        TRIED.append(told(seen))
        STARTED.set()
        if len(TRIED) == 1:
            await GATE.wait()
            raise OSError("cut off")
    return told(seen)


async def test_a_turn_that_is_repeated_sees_what_it_saw_and_no_other_is_lost(own_server: NatsServer) -> None:
    async with desk(own_server, "slow", conversation_by="id") as runtime:
        first = asyncio.create_task(turn(runtime, id=1, text="slow"))
        await STARTED.wait()
        assert await turn(runtime, id=1, text="quick") == ["quick"]
        GATE.set()
        assert await first == ["slow"]
        assert len(TRIED) == 2
        assert await turn(runtime, id=1, text="last") == ["quick", "slow", "last"]


async def test_of_many_turns_at_once_none_is_lost(own_server: NatsServer) -> None:
    async with desk(own_server) as one, desk(own_server) as two:
        asks = [[one, two][n % 2].ask_peer("desk", f"q{n}", conversation_id="t") for n in range(20)]
        await asyncio.gather(*asks)
        found = await one.ask_peer("desk", "all", conversation_id="t")
    assert sorted(found.split(" | ")) == sorted(["all", *(f"q{n}" for n in range(20))])


def reader(seen: Seen) -> Any:
    calls = sum(part.part_kind == "tool-call" for message in seen.messages for part in message.parts)
    returns = sum(part.part_kind == "tool-return" for message in seen.messages for part in message.parts)
    assert calls == returns
    return f"{len(seen.messages)}: {told(seen)}" if seen.results else Call("get_context", {"key": "k"})


async def test_the_oldest_turns_go_first_and_whole(own_server: NatsServer) -> None:
    async with desk(own_server, "reader", history={"messages": 9}) as runtime:
        found = [await runtime.ask_peer("desk", f"q{n}", conversation_id="t") for n in range(4)]
    assert found == ["3: q0", "7: q0 | q1", "11: q0 | q1 | q2", "11: q1 | q2 | q3"]


def long(seen: Seen) -> Any:
    return Call("get_context", {"key": f"k{'x' * 4000}"}) if "call" in seen.prompt and not seen.results else told(seen)


async def test_a_turn_that_is_too_large_is_kept_without_its_calls(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with desk(own_server, "long", history={"bytes": 3000}) as runtime:
        await runtime.ask_peer("desk", "call", conversation_id="t")
        assert await runtime.ask_peer("desk", "a", conversation_id="t") == "call | a"
        await runtime.ask_peer("desk", "z" * 3000, conversation_id="t")
        assert "is not kept in its conversation: question and answer have more than 3000 bytes" in caplog.text
        assert await runtime.ask_peer("desk", "b", conversation_id="t") == "call | a | b"


async def test_what_is_kept_is_counted_in_bytes_and_not_in_characters(own_server: NatsServer) -> None:
    async with desk(own_server, history={"bytes": 3000}) as runtime:
        await runtime.ask_peer("desk", "世" * 700, conversation_id="t")
        assert await runtime.ask_peer("desk", "a", conversation_id="t") == "a"


async def test_what_is_old_is_forgotten(own_server: NatsServer) -> None:
    async with desk(own_server, history={"days": 1e-9}) as runtime:
        await runtime.ask_peer("desk", "one", conversation_id="t")
        assert await runtime.ask_peer("desk", "two", conversation_id="t") == "two"


IDS = ["a", "A", "*", ">", "../desk", "a.b", "t; s=boss", "a\r\nNatterjack: s=boss", "%61", "é\u2028\x00", "x" * 256]


async def test_an_id_may_be_any_text(own_server: NatsServer) -> None:
    async with desk(own_server) as runtime:
        for id in IDS:
            assert await runtime.ask_peer("desk", id, conversation_id=id) == id
        for id in IDS:
            assert await runtime.ask_peer("desk", "?", conversation_id=id) == f"{id} | ?"
        for wrong in ("", "x" * 257, "\ud800", 7):
            with pytest.raises(PayloadError, match="is no conversation_id"):
                await runtime.ask_peer("desk", "?", conversation_id=wrong)  # type: ignore[arg-type]


async def test_a_forged_header_reaches_no_other_conversation(own_server: NatsServer) -> None:
    async with desk(own_server) as runtime, connect(own_server.url, name="ben", context=False) as ben:
        await runtime.ask_peer("desk", "secret", conversation_id="t", asker="ann")
        for id in ("t", "ann', 't", "%27,%20%27t", "x" * 5000, "..%2Fann"):
            headers = {"Natterjack": f"s=ben;v={id}"}
            reply = await ben.bus.request("agents.ask.desk", b"what?", headers=headers, timeout=10)
            assert reply.data == b"what?"


async def test_what_cannot_be_read_begins_anew(own_server: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with desk(own_server) as runtime:
        assert runtime._bus is not None
        kept = Conversations(runtime._bus, "desk")
        await kept.change("ask", "operator", "t", change=lambda _: b'[{"run": 5}]')
        assert await runtime.ask_peer("desk", "one", conversation_id="t") == "one"
        assert "a conversation of desk cannot be read, and begins anew" in caplog.text
        assert await runtime.ask_peer("desk", "two", conversation_id="t") == "one | two"


async def test_a_program_has_conversations(own_server: NatsServer) -> None:
    async with desk(own_server):
        for said, known in (("one", "one"), ("two", "one | two")):
            agent = await build_agent(f"scripted:{__name__}:told", server=own_server.url)
            async with agent:
                messages = [{"role": "user", "content": said}]
                assert await agent.ainvoke({"messages": messages, "conversation_id": "t"}) == known
                assert await agent.ainvoke({"messages": messages}) == said
                with pytest.raises(PayloadError, match="is no conversation_id"):
                    await agent.ainvoke({"messages": messages, "conversation_id": ""})


class Attempt:
    """One that cannot journal what it did: its process died before."""

    run_id, agent = "r", "desk"

    def __init__(self, conversations: Conversations) -> None:
        self.conversations = conversations

    async def step(self, name: str, fn: Any) -> Any:
        del name
        return await fn()


async def test_a_turn_is_kept_once_however_often_it_is_repeated(own_server: NatsServer) -> None:
    said: list[ModelMessage] = [
        ModelRequest([UserPromptPart("one")], instructions="Help."),
        ModelResponse([TextPart("so")]),
    ]
    async with desk(own_server) as runtime:
        assert runtime._bus is not None
        for _ in range(2):
            attempt: Any = Attempt(Conversations(runtime._bus, "desk"))
            await History(attempt, Kept(), ("ask", "operator", "t")).keep("one", said, "so")
        assert await runtime.ask_peer("desk", "two", conversation_id="t") == "one | two"
