"""Model agents with scripted models: what they see, what they may call, and that each request is made once."""

import asyncio
import json
import socket
from collections import Counter
from contextlib import aclosing
from typing import Any

import pytest

from natterjack import (
    AgentProcess,
    AgentRuntime,
    ConfigError,
    PayloadError,
    RunFailedError,
    StartError,
    connect,
)
from natterjack.testing import NatsServer, ScriptedAgent, until
from natterjack_llm import Call, Seen, build_agent
from natterjack_llm.schemas import misfit

ASKED = Counter[str]()


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    ASKED.clear()


def echo(seen: Seen) -> str:
    return f"you said {seen.prompt}"


async def test_an_answer_is_what_the_model_says(runtime: AgentRuntime) -> None:
    runtime.add_process(AgentProcess("writer", agent_config={"model": f"scripted:{__name__}:echo"}))
    async with runtime:
        assert await runtime.ask_peer("writer", "hello") == "you said hello"
        chunks = [chunk async for chunk in runtime.ask_stream("writer", "hello")]
    assert chunks == ["you ", "said ", "hello"]


async def test_who_leaves_an_answer_ends_it(own_server: NatsServer) -> None:
    async with (
        AgentRuntime(own_server.url),
        await build_agent(f"scripted:{__name__}:echo", server=own_server.url) as agent,
    ):
        before = asyncio.all_tasks()
        async with aclosing(agent.astream("one two three")) as chunks:
            assert await anext(chunks) == "you "
        assert asyncio.all_tasks() == before


def offered(seen: Seen) -> str:
    return ", ".join(seen.tools) or "nothing"


async def test_a_model_may_be_offered_nothing(runtime: AgentRuntime) -> None:
    for name, calls in (("one", True), ("other", False)):
        config = {"model": f"scripted:{__name__}:offered", "calls": calls}
        runtime.add_process(AgentProcess(name, agent_config=config))
    async with runtime:
        assert "emit" in await runtime.ask_peer("one", "What is there?")
        assert await runtime.ask_peer("other", "What is there?") == "nothing"


def researcher(seen: Seen) -> Any:
    ASKED["requests"] += 1
    if not seen.results:
        assert "<data>" in seen.prompt
        return [Call("ask_peer", {"name": "oracle", "question": "how?"}), Call("get_context", {"key": "depth"})]
    if len(seen.results) == 2:
        answered, read = seen.results
        return Call("emit", {"type": "found", "data": {"answer": answered, "depth": read["value"]}})
    return "done"


async def test_a_model_works_on_an_event_with_what_its_agent_may_do(runtime: AgentRuntime) -> None:
    runtime.add_process(
        AgentProcess(
            "researcher",
            agent_config={"model": f"scripted:{__name__}:researcher", "instructions": "Research."},
            asks=["oracle"],
            emits=["found"],
        )
    )
    runtime.add_process(AgentProcess("oracle", agent=ScriptedAgent(answers="so")))
    async with runtime:
        await runtime.context.set("depth", 3)
        run = await runtime.inject_event("researcher", {"type": "research.start", "topic": "toads"})
        assert await run.result(20) == "done"
        entries = [entry async for entry in runtime.journal.entries("researcher", kind="step")]
        (found,) = [event async for event in runtime.event_bus.replay("found")]
    assert found.data == {"answer": {"agent": "oracle", "answer": "so"}, "depth": 3}
    assert sorted((entry.data["position"], entry.data["name"]) for entry in entries) == [
        *[("1", "model"), ("2", "tool ask_peer"), ("3", "tool get_context")],
        *[("4", "model"), ("5", "tool emit"), ("6", "model")],
    ]
    assert ASKED["requests"] == 3


def rater(seen: Seen) -> Any:
    return Call("final_result", {"quality": 4 if "quality" not in seen.prompt else "high"})


SCHEMA = {"type": "object", "properties": {"quality": {"type": "integer"}}, "required": ["quality"]}


async def test_structured_output_is_data_that_routes(runtime: AgentRuntime) -> None:
    runtime.add_process(
        AgentProcess(
            "analyst",
            agent_config={"model": f"scripted:{__name__}:rater", "output": SCHEMA},
            result_events={"good": "result.quality >= 3", "bad": "result.quality < 3"},
        )
    )
    async with runtime:
        run = await runtime.inject_event("analyst", {"type": "rate"})
        assert await run.result(20) == {"quality": 4}
        assert [event.data async for event in runtime.event_bus.replay("good")] == [{"quality": 4}]
        assert [event async for event in runtime.event_bus.replay("bad")] == []


async def test_output_is_held_to_its_schema(runtime: AgentRuntime) -> None:
    config = {"model": f"scripted:{__name__}:rater", "output": SCHEMA}
    runtime.add_process(AgentProcess("analyst", agent_config=config, result_event="rated"))
    async with runtime:
        run = await runtime.inject_event("analyst", {"type": "rate", "last": "quality"})
        with pytest.raises(RunFailedError, match=r"quality: 'high' is not of type 'integer'"):
            await run.result(20)
        assert [event async for event in runtime.event_bus.replay("rated")] == []


def test_a_schema_that_refers_to_an_address_is_not_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/schema"
        told = misfit({"a": 1}, {"properties": {"a": {"$ref": url}}})
        assert told == f"the schema refers to {url!r}, which is not in it"
        with pytest.raises(BlockingIOError):
            listening.accept()


def flaky(seen: Seen) -> Any:
    ASKED[str(len(seen.results))] += 1
    if ASKED["1"] == 1 and len(seen.results) == 1:
        raise OSError("cut off")
    return ["one", "two", "three"][len(seen.results)] if len(seen.results) == 2 else Call("ask_peer", TO_ORACLE)


TO_ORACLE = {"name": "oracle", "question": "how?"}


async def test_what_was_answered_is_not_paid_again(runtime: AgentRuntime) -> None:
    oracle = ScriptedAgent(answers="so")
    runtime.add_process(
        AgentProcess("flaky", agent_config={"model": f"scripted:{__name__}:flaky"}, asks=["oracle"], retry_delay=0.05)
    )
    runtime.add_process(AgentProcess("oracle", agent=oracle))
    async with runtime:
        run = await runtime.inject_event("flaky", {"type": "go"})
        assert await run.result(20) == "three"
    assert ASKED == {"0": 1, "1": 2, "2": 1}
    assert len(oracle.questions) == 2


def endless(seen: Seen) -> Any:
    ASKED["requests"] += 1
    return Call("get_context", {"key": "x"})


@pytest.mark.parametrize(
    ("limits", "told"),
    [({"requests": 3}, "request_limit of 3"), ({"tool_calls": 2}, "tool_calls_limit of 2"), ({"tokens": 100}, "100")],
)
async def test_a_limit_ends_the_run_and_says_so(runtime: AgentRuntime, limits: dict[str, int], told: str) -> None:
    config = {"model": f"scripted:{__name__}:endless", "limits": limits}
    runtime.add_process(AgentProcess("endless", agent_config=config))
    async with runtime:
        run = await runtime.inject_event("endless", {"type": "go"})
        with pytest.raises(RunFailedError, match=f"the run met a limit: .*{told}") as error:
            await run.result(20)
    assert "http" not in error.value.cause
    assert ASKED["requests"] < 5


def careless(seen: Seen) -> Any:
    wrong = [
        Call("ask_peer", {"name": "boss", "question": "x"}),
        Call("ask_peer", {"question": "x"}),
        Call("emit", {"type": "money.sent", "data": {}}),
        Call("publish", {"topic": "press.now"}),
        Call("set_context", {"key": "budget", "value": 1}),
        Call("rm", {}),
    ]
    return wrong if not seen.results else json.dumps(seen.results)


async def test_what_a_model_may_not_do_is_told_and_not_done(runtime: AgentRuntime) -> None:
    runtime.add_process(
        AgentProcess(
            "careless",
            agent_config={"model": f"scripted:{__name__}:careless"},
            asks=["oracle"],
            emits=["found"],
            publishes=["desk.*"],
        )
    )
    boss = ScriptedAgent(answers="no")
    runtime.add_process(AgentProcess("oracle", agent=ScriptedAgent(answers="so")))
    runtime.add_process(AgentProcess("boss", agent=boss))
    async with runtime:
        run = await runtime.inject_event("careless", {"type": "go"})
        told = await run.result(20)
        assert [event async for event in runtime.event_bus.replay("money.sent")] == []
        assert runtime.context.get("budget") is None
    assert "'boss' is not one of ['oracle']" in told
    assert "'name' is a required property" in told
    assert "'careless' may not emit 'money.sent'" in told
    assert "'careless' may not publish 'press.now'" in told
    assert "Unknown tool name: 'rm'" in told
    assert boss.questions == []


def caller(seen: Seen) -> Any:
    return f"{seen.results}" if seen.results else Call("ask_peer", {"name": "critic", "question": "how?"})


async def test_cross_agents_stand_in_agent_config_as_for_build_agent(runtime: AgentRuntime) -> None:
    config = {"model": f"scripted:{__name__}:caller", "cross_agents": {"critic": "oracle"}}
    runtime.add_process(AgentProcess("writer", agent_config=config))
    runtime.add_process(AgentProcess("oracle", agent=ScriptedAgent(answers="so")))
    async with runtime:
        assert await runtime.ask_peer("writer", "hello") == "[{'agent': 'critic', 'answer': 'so'}]"
    both = AgentProcess("writer", agent_config=config, cross_agents={"press": "printer"})
    assert both.spec.cross_agents == {"critic": "oracle", "press": "printer"}
    assert config["cross_agents"] == {"critic": "oracle"}
    with pytest.raises(ConfigError, match=r"agent 'writer': .*cross_agents"):
        AgentProcess("writer", agent_config={**config, "cross_agents": ["oracle"]})


def publisher(seen: Seen) -> Any:
    ASKED["requests"] += 1
    return "sent" if seen.results else Call("ask_peer", {"name": "press", "question": "Print it."})


@pytest.mark.parametrize("answer", ["yes", "no"])
async def test_a_call_waits_for_a_human(own_server: NatsServer, answer: str) -> None:
    press = ScriptedAgent(answers="printed")
    runtime = AgentRuntime(own_server.url)
    config = {"model": f"scripted:{__name__}:publisher", "approve": ["ask_peer"]}
    runtime.add_process(AgentProcess("publisher", agent_config=config, asks=["press"], waits=["approval.answered"]))
    runtime.add_process(AgentProcess("press", agent=press))
    async with runtime, connect(own_server.url) as client:
        run = await runtime.inject_event("publisher", {"type": "go"})
        (asked,) = await until(client.approvals.waiting)
        assert asked.question == 'May publisher call ask_peer(name="press", question="Print it.")?'
        await client.approvals.answer(asked.id, answer)
        assert await run.result(20) == "sent"
    assert press.questions == (["Print it."] if answer == "yes" else [])
    assert ASKED["requests"] == 2


DEEP = "[" * 100_000


def deep(seen: Seen) -> Any:
    return "told" if seen.results else Call("emit", {"type": "found", "data": DEEP})


async def test_text_that_only_looks_like_json_stays_text(runtime: AgentRuntime) -> None:
    runtime.add_process(AgentProcess("deep", agent_config={"model": f"scripted:{__name__}:deep"}))
    async with runtime:
        run = await runtime.inject_event("deep", {"type": "go"})
        assert await run.result(20) == "told"
        assert [event.data async for event in runtime.event_bus.replay("found")] == [DEEP]


async def test_a_tool_that_must_wait_and_is_none_is_an_error(runtime: AgentRuntime) -> None:
    config = {"model": f"scripted:{__name__}:publisher", "approve": ["ask_pear"]}
    runtime.add_process(AgentProcess("publisher", agent_config=config, emits=[], publishes=[]))
    async with runtime:
        run = await runtime.inject_event("publisher", {"type": "go"})
        with pytest.raises(RunFailedError, match="'approve' has 'ask_pear', which the model is not offered"):
            await run.result(20)
    assert not ASKED


@pytest.mark.parametrize("wrong", [7, None, {}, {"messages": []}, {"messages": [{"role": "user", "content": None}]}])
async def test_input_that_is_none_is_refused(own_server: NatsServer, wrong: Any) -> None:
    async with (
        AgentRuntime(own_server.url),
        await build_agent(f"scripted:{__name__}:echo", server=own_server.url) as agent,
    ):
        with pytest.raises(PayloadError, match="the input has no messages"):
            await agent.ainvoke(wrong)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "'model' is missing"),
        ({"model": "openai:gpt-5-mini"}, "OPENAI_API_KEY"),
        ({"model": "opena:gpt"}, "Unknown model: opena:gpt"),
        ({"model": "scripted:nowhere:nothing"}, "cannot be imported"),
        ({"model": f"scripted:{__name__}:echo", "temprature": 1}, "unknown key 'temprature'"),
        ({"model": f"scripted:{__name__}:echo", "output": {"type": "string"}}, "'output' is no JSON schema"),
        (
            {"model": "scripted:json:loads", "output": {"type": "object", "properties": 5}},
            "schema of an object: properties: 5",
        ),
        ({"model": f"scripted:{__name__}:echo", "output": "json:loads"}, "which is no pydantic model"),
        (
            {"model": "scripted:json:loads", "settings": {"max_token": 5}},
            "'settings.max_token'. Did you mean 'max_tokens'",
        ),
        ({"model": "scripted:json:loads", "settings": {"timeout": "x"}}, "'settings.timeout' is 'x': Input should be"),
        ({"model": "scripted:json:loads", "base_url": "localhost:8000"}, "'base_url' is 'localhost:8000'"),
        ({"model": "deepseek:chat", "base_url": "http://localhost"}, "'deepseek' takes no 'base_url'"),
        ({"model": "scripted:json:loads", "conversation_by": ""}, "'conversation_by' is ''"),
    ],
)
async def test_what_is_wrong_is_told_at_the_start(
    runtime: AgentRuntime, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], told: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    runtime.add_process(AgentProcess("wrong", agent_config=config))
    with pytest.raises(StartError, match=told) as error:
        await runtime.start_all()
    assert "\n" not in str(error.value)
