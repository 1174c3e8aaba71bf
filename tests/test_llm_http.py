"""Model agents through OpenAI's own client, and a model server over HTTP; `test_llm_faults.py` has its faults."""

import socket
from typing import Any

import pytest

from natterjack import AgentProcess, AgentRuntime, RunFailedError
from natterjack.testing import NatsServer, ScriptedAgent
from natterjack_llm import LimitError, ModelError, build_agent

from .model_server import ModelServer, problem, results, serving


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


async def test_what_no_other_try_can_mend_is_told_at_once(runtime: AgentRuntime, model_server: ModelServer) -> None:
    model_server.script = lambda body: problem(401)
    add(runtime)
    async with runtime:
        run = await runtime.inject_event("writer", {"type": "go"})
        with pytest.raises(RunFailedError, match=r"the model gpt-5-mini at .* could not be asked: status 401"):
            await run.result(20)
    assert len(model_server.asked) == 1


@pytest.mark.parametrize("api", ["openai", "openai-chat"])
async def test_a_compatible_server_needs_no_key(
    runtime: AgentRuntime, model_server: ModelServer, monkeypatch: pytest.MonkeyPatch, api: str
) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name)
    model_server.script = delegates
    add(runtime, model=f"{api}:llama-3", base_url=model_server.url)
    async with runtime:
        assert await runtime.ask_peer("writer", "How many?") == 'it is {"agent":"oracle","answer":"forty-two"}'
    assert {"messages" in body for body in model_server.asked} == {api == "openai-chat"}
    assert {body["model"] for body in model_server.asked} == {"llama-3"}
    assert {headers["authorization"] for headers in model_server.headers} == {"Bearer none"}


async def test_each_agent_has_its_own_server(runtime: AgentRuntime, model_server: ModelServer) -> None:
    model_server.script = lambda body: "the first"
    with serving() as other:
        other.script = lambda body: "the other"
        for name, url in (("ann", model_server.url), ("ben", other.url)):
            config = {"model": "openai-chat:llama-3", "base_url": url}
            runtime.add_process(AgentProcess(name, agent_config=config))
        async with runtime:
            answers = await runtime.broadcast(["ann", "ben"], "Who?")
    assert answers == {"ann": "the first", "ben": "the other"}
    assert len(model_server.asked) == len(other.asked) == 1


@pytest.mark.parametrize("api", ["openai", "openai-chat"])
async def test_an_error_names_the_address_where_nobody_listens(runtime: AgentRuntime, api: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"127.0.0.1:{free.getsockname()[1]}/v1"
    config = {"model": f"{api}:llama-3", "base_url": f"http://me:secret@{url}"}
    runtime.add_process(AgentProcess("writer", agent_config=config, max_attempts=1))
    async with runtime:
        run = await runtime.inject_event("writer", {"type": "go"})
        with pytest.raises(RunFailedError) as error:
            await run.result(20)
    told = f"ModelError: the model llama-3 at http://{url} could not be asked: Connection error. "
    assert error.value.cause == f"{told}(All connection attempts failed)"


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
