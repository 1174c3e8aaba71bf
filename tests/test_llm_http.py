"""Model agents through OpenAI's own client, against a model server that has its faults."""

from collections.abc import Callable
from typing import Any

import pytest

from natterjack import AgentProcess, AgentRuntime, RunFailedError
from natterjack.testing import NatsServer, ScriptedAgent
from natterjack_llm import LimitError, ModelError, build_agent

from .model_server import CUT, ModelServer, problem, results


def add(runtime: AgentRuntime, **config: Any) -> None:
    config = {"model": "openai:gpt-5-mini", "instructions": "Be brief.", **config}
    runtime.add_process(AgentProcess("writer", agent_config=config, asks=["oracle"], retry_delay=0.05))
    runtime.add_process(AgentProcess("oracle", agent=ScriptedAgent(answers="forty-two")))


def delegates(body: dict[str, Any]) -> Any:
    if not results(body):
        return {"call": "ask_peer", "arguments": {"name": "oracle", "question": "how many?"}}
    return f"it is {results(body)[0]}"


async def test_a_model_asks_a_peer_and_goes_on_with_the_answer(
    runtime: AgentRuntime, model_server: ModelServer
) -> None:
    model_server.script = delegates
    add(runtime)
    async with runtime:
        answer = await runtime.ask_peer("writer", "How many?")
    assert answer == 'it is {"agent":"oracle","answer":"forty-two"}'
    first, second = model_server.asked
    assert {tool["name"] for tool in first["tools"]} == {"ask_peer", "broadcast", "emit", "get_context"}
    assert first["instructions"].startswith("Be brief.\n\nWhat stands between <data>")
    assert len(second["input"]) > len(first["input"])


async def test_chunks_come_as_the_model_says_them(runtime: AgentRuntime, model_server: ModelServer) -> None:
    model_server.script = delegates
    add(runtime)
    async with runtime:
        chunks = [chunk async for chunk in runtime.ask_stream("writer", "How many?")]
    assert len(chunks) > 2
    assert "".join(chunks).strip() == 'it is {"agent":"oracle","answer":"forty-two"}'


FAULTS: dict[str, Callable[[], Any]] = {
    "429": lambda: problem(429, **{"retry-after": "0"}),
    "500": lambda: problem(500),
    "a broken call": lambda: {"call": "ask_peer", "arguments": '{"name": "ora'},
    "a call of nothing": lambda: {"call": "rm", "arguments": {}},
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_followed_by_another_try(runtime: AgentRuntime, model_server: ModelServer, fault: str) -> None:
    def script(body: dict[str, Any]) -> Any:
        return FAULTS[fault]() if len(model_server.asked) == 1 else "so"

    model_server.script = script
    add(runtime)
    async with runtime:
        run = await runtime.inject_event("writer", {"type": "go"})
        assert await run.result(30) == "so"
    assert len(model_server.asked) == 2


async def test_a_stream_that_is_cut_is_an_error_and_no_hang(runtime: AgentRuntime, model_server: ModelServer) -> None:
    model_server.script = lambda body: ["so far", CUT]
    add(runtime)
    async with runtime:
        with pytest.raises(Exception, match=r"ModelError"):
            async for _ in runtime.ask_stream("writer", "How many?", timeout=20):
                pass


async def test_another_model_stands_in(runtime: AgentRuntime, model_server: ModelServer) -> None:
    model_server.script = lambda body: problem(404) if body["model"] == "gpt-9" else f"I am {body['model']}"
    add(runtime, model=["openai:gpt-9", "openai:gpt-5-mini"])
    async with runtime:
        assert await runtime.ask_peer("writer", "Who?") == "I am gpt-5-mini"


async def test_what_no_other_try_can_mend_is_told_at_once(runtime: AgentRuntime, model_server: ModelServer) -> None:
    model_server.script = lambda body: problem(401)
    add(runtime)
    async with runtime:
        run = await runtime.inject_event("writer", {"type": "go"})
        with pytest.raises(RunFailedError, match=r"the model could not be asked: .*401"):
            await run.result(20)
    assert len(model_server.asked) == 1


async def test_an_agent_in_a_program(own_server: NatsServer, model_server: ModelServer) -> None:
    model_server.script = delegates
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("oracle", agent=ScriptedAgent(answers="forty-two")))
    async with runtime:
        agent = await build_agent("openai:gpt-5-mini", cross_agents={"oracle": "oracle"}, server=own_server.url)
        async with agent:
            answer = await agent.ainvoke({"messages": [{"role": "user", "content": "How many?"}]})
            assert answer == 'it is {"agent":"oracle","answer":"forty-two"}'
            assert answer.usage == {"requests": 2, "input_tokens": 20, "output_tokens": 10, "tool_calls": 1}
            assert [message["kind"] for message in answer.messages] == ["request", "response", "request", "response"]
            assert await agent.ask_peer("oracle", "how many?") == "forty-two"
            assert await agent.broadcast(["oracle", "nobody"], "how many?") == {"oracle": "forty-two"}
            assert [chunk async for chunk in agent.astream("How many?")]
        async with await build_agent("openai:gpt-5-mini", server=own_server.url, limits={"requests": 1}) as agent:
            model_server.script = lambda body: {"call": "rm", "arguments": {}}
            with pytest.raises(LimitError):
                await agent.ainvoke("How many?")
            model_server.script = lambda body: problem(401)
            with pytest.raises(ModelError):
                await agent.ainvoke("How many?")
