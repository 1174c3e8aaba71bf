"""Asking agents that are served over HTTP: the same answers, errors, deadlines and cancellation as over NATS."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    ConfigError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    PeerTimeoutError,
    PeerUnavailableError,
    RunContext,
    Tokens,
)
from natterjack.testing import NatsServer, ScriptedAgent, until
from natterjack.testing.contracts import PeerContract
from natterjack_http import HttpPeers, HttpTrigger
from natterjack_http.address import Address
from natterjack_http.asker import Asker
from natterjack_http.listener import Server, bind

SECRET = "a secret of thirty-two bytes, or more"


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATTERJACK_TOKEN_KEY", SECRET)
    monkeypatch.setenv("NATTERJACK_TOKEN", Tokens(secret=SECRET).mint("analyst"))


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class TestHttpPeers(PeerContract):
    component = HttpPeers
    absent = f"http://127.0.0.1:{closed_port()}"

    @pytest.fixture(autouse=True)
    async def _served(self, runtime: AgentRuntime) -> None:
        trigger = HttpTrigger.create({"listen": "127.0.0.1:0"})
        runtime.add_process(AgentProcess("researcher", agent=ScriptedAgent(answers="yes"), triggers=[trigger]))
        await runtime.start_all()
        self.address = trigger.url


@pytest.fixture
async def peers() -> AsyncIterator[HttpPeers]:
    peers = HttpPeers()
    yield peers
    await peers.close()


class Slow(ScriptedAgent):
    """Answers once it is let, and notes whether it was cancelled."""

    def __init__(self) -> None:
        super().__init__(answers=self._wait)
        self.let, self.cancelled = asyncio.Event(), 0

    async def _wait(self, question: str) -> str:
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return question


async def serve(runtime: AgentRuntime, agent: Agent, **more: Any) -> str:
    trigger = HttpTrigger.create({"listen": "127.0.0.1:0"})
    runtime.add_process(AgentProcess("researcher", agent=agent, triggers=[trigger], **more))
    await runtime.start_all()
    return trigger.url


class Analyst(Agent):
    """Asks the researcher, whole or in chunks, and says what that said."""

    async def answer(self, question: str, ctx: RunContext) -> str:
        if question == "in chunks":
            async with ctx.ask_stream("researcher", question) as chunks:
                return "|".join([chunk async for chunk in chunks])
        answer = await ctx.ask_peer("researcher", question, timeout=10)
        answers = await ctx.broadcast(["researcher", "absent"], question, timeout=10)
        return f"{answer} by {answer.agent}; {answers['researcher']}; {type(answers.failures['absent']).__name__}"


class Talker(Agent):
    """Says who asked, word by word."""

    async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
        for word in (ctx.caller, "asked", question):
            yield word


async def test_cross_agents_are_asked_by_their_address(runtime: AgentRuntime, nats_server: NatsServer) -> None:
    url = await serve(runtime, Talker())
    elsewhere = AgentRuntime(nats_server.url)  # another broker: nothing but HTTP is between them
    addresses = {"researcher": url, "absent": TestHttpPeers.absent}
    elsewhere.add_process(AgentProcess("analyst", agent=Analyst(), cross_agents=addresses))
    async with elsewhere:
        found = await elsewhere.ask_peer("analyst", "what", timeout=20)
        assert found == "analystaskedwhat by researcher; analystaskedwhat; PeerUnavailableError"
        assert await elsewhere.ask_peer("analyst", "in chunks", timeout=20) == "analyst|asked|in chunks"


async def test_an_answer_tells_its_run(runtime: AgentRuntime, peers: HttpPeers) -> None:
    agent = ScriptedAgent(answers="yes")
    answer = await peers.ask(await serve(runtime, agent), "x", 10)
    assert (answer, answer.agent, answer.run_id) == ("yes", "researcher", agent.contexts[0].run_id)


async def test_many_are_asked_at_once(runtime: AgentRuntime, peers: HttpPeers) -> None:
    url = await serve(runtime, ScriptedAgent(answers=str.upper), concurrency=64)
    answers = await asyncio.gather(*(peers.ask(url, f"n{number}", 30) for number in range(192)))
    assert answers == [f"N{number}" for number in range(192)]


async def test_faults_have_the_classes_that_they_have_over_nats(runtime: AgentRuntime, peers: HttpPeers) -> None:
    url = await serve(runtime, ScriptedAgent(answers=[ValueError("the password is 123")] * 2))
    for ask in asks(peers, url):
        with pytest.raises(PeerError, match="it failed with ValueError; its log says more") as failed:
            await ask()
        assert (type(failed.value), failed.value.code) == (PeerError, 500)


def asks(peers: HttpPeers, url: str, timeout: float = 10) -> list[Callable[[], Any]]:
    """Both ways to ask."""

    async def stream() -> str:
        return "".join([chunk async for chunk in peers.stream(url, "x", timeout, None)])

    return [lambda: peers.ask(url, "x", timeout), stream]


async def test_the_deadline_holds_on_both_sides(runtime: AgentRuntime, peers: HttpPeers) -> None:
    agent = Slow()
    url = await serve(runtime, agent)
    for count, ask in enumerate(asks(peers, url, 0.3), 1):
        began = time.monotonic()
        with pytest.raises(PeerTimeoutError) as late:
            await ask()
        assert (type(late.value), late.value.code) == (PeerTimeoutError, 408)
        assert time.monotonic() - began < 5
        await until(lambda count=count: agent.cancelled == count)  # type: ignore[misc]


async def test_whoever_stops_asking_is_not_worked_for(runtime: AgentRuntime, peers: HttpPeers) -> None:
    agent = Slow()
    url = await serve(runtime, agent)
    for count, ask in enumerate(asks(peers, url), 1):
        asking = asyncio.create_task(ask())
        await until(lambda count=count: len(agent.questions) == count)  # type: ignore[misc]
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda count=count: agent.cancelled == count)  # type: ignore[misc]
    assert (agent.questions, agent.cancelled) == (["x", "x"], 2)  # each was asked once, and given up once


async def test_refused_and_busy(runtime: AgentRuntime, peers: HttpPeers, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Slow()
    runtime.add_process(AgentProcess("analyst", agent=ScriptedAgent(), asks=["analyst"]))
    url = await serve(runtime, agent, concurrency=1)
    for ask in asks(peers, url):
        with pytest.raises(PeerRefusedError, match="'analyst' may not ask 'researcher'") as refused:
            await ask()
        assert refused.value.code == 403
    monkeypatch.setenv("NATTERJACK_TOKEN", "nonsense")
    for ask in asks(peers, url):
        with pytest.raises(PeerRefusedError, match="nobody knows who calls: it is malformed"):
            await ask()
    monkeypatch.setenv("NATTERJACK_TOKEN", Tokens(secret=SECRET).mint("other"))
    asking: list[asyncio.Task[str]] = [
        asyncio.create_task(peers.ask(url, "x", 30)) for _ in range(9)
    ]  # four more than it takes
    _, going = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    assert len(going) >= 5
    agent.let.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    refusals = [each for each in results if isinstance(each, PeerBusyError)]
    assert {each.code for each in refusals} == {429}
    assert results.count("x") + len(refusals) == 9


# Addresses and tokens


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://user:password@localhost",
        "http://localhost:99999999",
        "http://localhost?token=secret",
        "http://localhost?tokn=env:X",
        "http://localhost#x",
    ],
)
async def test_addresses_that_are_none_are_refused(peers: HttpPeers, address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await peers.ask(address, "x", 1)
    assert "password" not in str(caught.value)
    assert "secret" not in str(caught.value).replace("never the token itself", "")


async def test_a_token_is_where_the_address_says(
    runtime: AgentRuntime, peers: HttpPeers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = await serve(runtime, Talker())
    monkeypatch.setenv("MINE", Tokens(secret=SECRET).mint("eve"))
    assert await peers.ask(f"{url}/?token=env:MINE", "x", 10) == "eveaskedx"
    (tmp_path / "token").write_text(Tokens(secret=SECRET).mint("kim") + "\n")
    assert await peers.ask(f"{url}?token=file:{tmp_path}/token", "x", 10) == "kimaskedx"
    with pytest.raises(ConfigError, match=r"there is no token for 127\.0\.0\.1:[0-9]+ at 'env:THEIRS'"):
        await peers.ask(f"{url}?token=env:THEIRS", "x", 10)
    with pytest.raises(ConfigError, match="in the file '/nowhere' cannot be read"):
        await peers.ask(f"{url}?token=file:/nowhere", "x", 10)
    monkeypatch.delenv("NATTERJACK_TOKEN")
    with pytest.raises(PeerRefusedError, match="show a token"):
        await peers.ask(url, "x", 10)


async def test_a_token_in_the_clear_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    peers = Asker()
    assert not peers.target("http://localhost:1").exposed
    for _ in range(2):
        assert peers.target("http://10.0.0.1").exposed
    assert caplog.text.count("goes over the network in the clear; use https") == 1
    assert not Asker().target("https://10.0.0.1").exposed
    assert caplog.text.count("in the clear") == 1


# What is no agent, or dies


@asynccontextmanager
async def strange(answer: Callable[[Request], Any]) -> AsyncIterator[tuple[str, Server]]:
    """A web server that answers each question so."""
    listening = bind(Address("127.0.0.1", 0), shared=False)
    port = listening.getsockname()[1]
    server = Server(Starlette(routes=[Route("/ask", answer, methods=["POST"])]))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.should_exit = True
        server.abort()
        await asyncio.wait_for(serving, 10)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, "hello", PeerError),
        (200, "{}", PeerError),
        (200, "event: chunk\ndata: {}\n\n", PeerError),
        (302, "", PeerError),
        (404, "nothing", PeerError),
        (502, "<html>", PeerUnavailableError),
        (503, "[]", PeerUnavailableError),
        (504, '{"detail": 7, "code": "x"}', PeerTimeoutError),
    ],
)
async def test_what_is_no_agent_is_told(peers: HttpPeers, status: int, body: str, kind: type[PeerError]) -> None:
    async def answer(request: Request) -> Response:
        return PlainTextResponse(body, status)

    async with strange(answer) as (url, _):
        for ask in asks(peers, url):
            with pytest.raises(kind) as caught:
                await ask()
            assert type(caught.value) in (kind, PeerUnavailableError)


async def test_a_stream_that_breaks_is_told(peers: HttpPeers) -> None:
    started = asyncio.Event()

    async def broken() -> AsyncIterator[str]:
        yield 'event: chunk\ndata: {"text": "one"}\n\n'
        started.set()
        await asyncio.Event().wait()

    async def answer(request: Request) -> Response:
        return StreamingResponse(broken(), media_type="text/event-stream")

    async with strange(answer) as (url, server):
        chunks = peers.stream(url, "x", 10, None)
        assert await anext(chunks) == "one"
        await started.wait()
        server.abort()
        with pytest.raises(PeerUnavailableError, match="it went away"):
            await anext(chunks)
    with pytest.raises(PeerUnavailableError, match="nobody answers there; is it running"):
        await peers.ask(url, "x", 5)


def test_the_documents_address_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATTERJACK_TOKEN")
    assert Asker().target("http://localhost:9001").url == "http://localhost:9001/ask"
    assert Asker().target("https://agents.example.com/researcher/").url == "https://agents.example.com/researcher/ask"
