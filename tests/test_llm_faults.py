"""Faults of a model server, through OpenAI's own client: each is followed by another try, or is one clear error.

They come in the middle of a loop, when the model has asked a peer and is told its answer; and all at once, because most
of the time is spent waiting.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from natterjack import AgentProcess, AgentRuntime, Bus, PeerError, RunFailedError
from natterjack.dead import dead_letters
from natterjack.testing import ScriptedAgent, until

from .model_server import CUT, Cut, ModelServer, Reply, call, problem, results


async def silence() -> Reply:
    await asyncio.Event().wait()


def busy(status: int) -> Reply:
    return problem(status, **{"retry-after-ms": "1"})


def text(body: str, status: int = 200, kind: str = "application/json") -> Response:
    return PlainTextResponse(body, status, media_type=kind)


def response(**fields: Any) -> dict[str, Any]:
    whole = {"id": "r", "object": "response", "created_at": 1, "model": "gpt-5-mini", "status": "completed"}
    return {**whole, "output": [], "parallel_tool_calls": True, "tools": [], "tool_choice": "auto", **fields}


class Fault(NamedTuple):
    """What a server does, how a run ends if it always does, and how often it is asked until then."""

    reply: Callable[[], Reply]
    cause: str
    asked: int


BROKEN = {"code": "server_error", "message": "it broke"}
FAULTS = {
    # The provider's client asks three times, and then the run does.
    "429": Fault(lambda: busy(429), "status 429: it is 429", 3),
    "500": Fault(lambda: busy(500), "status 500: it is 500", 3),
    "503 without JSON": Fault(lambda: text("<h1>Busy</h1>", 503, "text/html"), "status 503: <h1>Busy</h1>", 3),
    "no answer": Fault(silence, "Request timed out.", 3),
    "cut before the answer": Fault(Cut, r"Connection error. \(Server disconnected", 3),
    "cut in the answer": Fault(lambda: Cut(b'{"id": "r", '), r"Connection error. \(peer closed connection", 3),
    # The run asks again.
    "no JSON": Fault(lambda: text("<h1>Hi</h1>", kind="text/html"), "Expected a JSON response, got: '<h1>Hi</h1>'", 1),
    "half a JSON": Fault(lambda: text('{"id": "r",'), "Failed to decode response as JSON", 1),
    "an empty body": Fault(lambda: text(""), "Failed to decode response as JSON", 1),
    "other JSON": Fault(lambda: JSONResponse(["so"]), "its answer makes no sense", 1),
    "JSON without anything": Fault(lambda: JSONResponse({}), "its answer makes no sense", 1),
    "output that is none": Fault(lambda: JSONResponse(response(output=None)), "its answer makes no sense", 1),
    "a failure": Fault(lambda: JSONResponse(response(status="failed", error=BROKEN)), "server_error: it broke", 1),
    "a call of null": Fault(lambda: {**call("rm"), "call": None}, "its answer makes no sense .*tool_name", 1),
    "a call without id": Fault(lambda: {**call("rm"), "id": None}, "its answer makes no sense .*tool_call_id", 1),
    # The model is told, and asked again.
    "an empty answer": Fault(lambda: [], "retries .3. .Please return text or call a tool.", 4),
    "an empty text": Fault(lambda: "", "retries .3. .Please return text or call a tool.", 4),
    "a call of broken JSON": Fault(lambda: {"call": "ask_peer", "arguments": '{"na'}, "'ask_peer' .*Invalid JSON", 4),
    "a call of other JSON": Fault(lambda: {"call": "ask_peer", "arguments": "[1]"}, "'ask_peer' .*be an object", 4),
    "a call of wrong types": Fault(lambda: call("ask_peer", name=5, question=[]), "'ask_peer' .*not of type", 4),
    "a call that lacks an argument": Fault(lambda: call("ask_peer", name="oracle"), "'question' is a required", 4),
    "a call of nothing": Fault(lambda: call("rm"), "Unknown tool name: 'rm'", 4),
    "a call of no name": Fault(lambda: call(""), "Unknown tool name: ''", 4),
    "a call with an empty id": Fault(lambda: {**call("rm"), "id": ""}, "Unknown tool name: 'rm'", 4),
}


def team(runtime: AgentRuntime, model: Any = "openai:gpt-5-mini", max_attempts: int = 1) -> ScriptedAgent:
    """Add a writer, one that does not wait for long, and the peer that their models ask first."""
    oracle = ScriptedAgent(answers="forty-two")
    limits: dict[str, Any] = {"retry_delay": 0.05, "max_attempts": max_attempts, "concurrency": 50}
    for name, settings in {"writer": {}, "hasty": {"timeout": 0.6}}.items():
        config = {"model": model, "settings": settings}
        runtime.add_process(AgentProcess(name, agent_config=config, asks=["oracle"], **limits))
    runtime.add_process(AgentProcess("oracle", agent=oracle, concurrency=50))
    return oracle


async def outcomes(runtime: AgentRuntime, faults: Iterable[str]) -> dict[str, str]:
    """Return by fault what the run came to that has it."""
    runs = {
        fault: await runtime.inject_event("hasty" if fault == "no answer" else "writer", {"type": "go", "fault": fault})
        for fault in faults
    }
    ends = await asyncio.gather(*(run.result(40) for run in runs.values()), return_exceptions=True)
    causes = [end.cause if isinstance(end, RunFailedError) else str(end) for end in ends]
    return dict(zip(runs, causes, strict=True))


class Loop:
    """A script: the model asks the peer, then the server has the fault that the event names, so many times."""

    def __init__(self, times: int, model: str = "gpt-5-mini") -> None:
        self.times, self.model, self.seen = times, model, Counter[str]()

    def __call__(self, body: dict[str, Any]) -> Reply:
        if not results(body):
            return call("ask_peer", name="oracle", question="how many?")
        if body["model"] != self.model:
            return f"I am {body['model']}"
        found = re.search(r'"fault": ?"([^"]+)"', str(body["input"][0]["content"]))
        assert found
        self.seen[found[1]] += 1
        return FAULTS[found[1]].reply() if self.seen[found[1]] <= self.times else "forty-two"


async def test_a_fault_is_followed_by_another_try(runtime: AgentRuntime, model_server: ModelServer, bus: Bus) -> None:
    model_server.script = loop = Loop(1)
    oracle = team(runtime, max_attempts=3)
    async with runtime:
        assert await outcomes(runtime, FAULTS) == dict.fromkeys(FAULTS, "forty-two")
    assert {**loop.seen, "no answer": 2} == dict.fromkeys(FAULTS, 2)  # a busy server does not hear who gives up soon
    assert len(oracle.questions) == len(FAULTS)  # nothing that was done is done again
    assert await dead_letters(bus) == []


async def test_a_fault_for_good_is_a_dead_letter_that_says_why(
    runtime: AgentRuntime, model_server: ModelServer, bus: Bus
) -> None:
    model_server.script = loop = Loop(1000)
    oracle = team(runtime)
    async with runtime:
        ended = await outcomes(runtime, FAULTS)
    assert {fault for fault, cause in ended.items() if not re.search(FAULTS[fault].cause, cause)} == set(), ended
    assert {**loop.seen, "no answer": 3} == {name: fault.asked for name, fault in FAULTS.items()}
    assert all("\n" not in cause and "http://errors" not in cause for cause in ended.values())
    of_the_server = [cause for fault, cause in ended.items() if FAULTS[fault].asked != 4]
    where = f"ModelError: the model gpt-5-mini at {model_server.url} could not be asked: "
    assert [cause for cause in of_the_server if not cause.startswith(where)] == []
    assert Counter(letter.cause for letter in await dead_letters(bus)) == Counter(ended.values())
    assert len(oracle.questions) == len(FAULTS)


async def test_another_model_stands_in(runtime: AgentRuntime, model_server: ModelServer) -> None:
    model_server.script = Loop(1000, model="gpt-9")
    team(runtime, ["openai:gpt-9", "openai:gpt-5-mini"])
    faults = [name for name, fault in FAULTS.items() if fault.asked != 4]
    async with runtime:
        assert await outcomes(runtime, faults) == dict.fromkeys(faults, "I am gpt-5-mini")


async def test_a_run_waits_as_long_as_the_provider_says(
    runtime: AgentRuntime, model_server: ModelServer, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    """The provider's client waits for a minute at most, and the run as long as it must: the event is not lost."""
    model_server.script = lambda body: problem(429, **{"retry-after": "3600", "retry-after-ms": "3600000"})
    team(runtime, max_attempts=3)
    async with runtime:
        await runtime.inject_event("writer", {"type": "go"})
        await until(lambda: "attempt 1/3 failed, next in 3600 s" in caplog.text)
    assert await dead_letters(bus) == []


# Streams


async def stalled() -> AsyncIterator[str]:
    yield event("response.created", response=response(status="in_progress"))
    await asyncio.Event().wait()


def event(kind: str, **data: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': 0, **data})}\n\n"


def stream(body: Any) -> Response:
    if isinstance(body, str):
        return text(body, kind="text/event-stream")
    return StreamingResponse(body, media_type="text/event-stream")


STREAMS: dict[str, Callable[[], Reply]] = {
    "500": lambda: busy(500),
    "cut before the answer": Cut,
    "cut in a text": lambda: ["so far", CUT],
    "cut in a call": lambda: [call("ask_peer", name="oracle", question="how many?"), CUT],
    "no answer": silence,
    "no more": lambda: stream(stalled()),
    "nothing": lambda: stream(""),
    "no stream": lambda: text("<h1>Hi</h1>", kind="text/html"),
    "broken JSON": lambda: stream('event: response.created\ndata: {"type": \n\n'),
    "an error": lambda: stream(event("error", code="server_error", message="it broke", param=None)),
    "a failure": lambda: stream(event("response.failed", response=response(status="failed", error=BROKEN))),
}


async def test_a_stream_that_breaks_is_an_error_and_no_hang(
    runtime: AgentRuntime, model_server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Who asks is told that the agent failed; its log says why."""
    model_server.script = lambda body: STREAMS[fault]() if (fault := body["input"][0]["content"]) in STREAMS else "so"
    team(runtime)

    async def ask(fault: str) -> str:
        try:
            return "".join([chunk async for chunk in runtime.ask_stream("hasty", fault, timeout=20)])
        except PeerError as error:
            return str(error)

    async with runtime:
        ended = await asyncio.gather(*map(ask, STREAMS))
        assert await ask("And now?") == "so "
    assert ended == ["hasty: it failed (ModelError)"] * len(STREAMS)
    assert caplog.text.count(f"ModelError: the model gpt-5-mini at {model_server.url} could not be asked") == len(ended)
