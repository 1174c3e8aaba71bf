"""Answers as streams of events: what a reader sees, and what becomes of the work when it stops reading."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from natterjack import Agent, AgentProcess, AgentRuntime, RunContext, Tokens
from natterjack_http import HttpTrigger, door, events

SECRET = "a secret of thirty-two bytes, or more"
TOKEN = Tokens(secret=SECRET).mint("ann")
ODD = "line\r\nbreaks\n\ndata: x\n\n: comments \u2028 and ä \0"


class Teller(Agent):
    """Tells word after word, each once it is let, and then what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.let, self.cancelled, self.caller = asyncio.Semaphore(0), asyncio.Event(), ""
        self.end: Exception | None = None

    async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
        self.caller = ctx.caller
        try:
            for word in question.split("|"):
                await self.let.acquire()
                if word:
                    yield word
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.end is not None:
            raise self.end


@pytest.fixture
async def teller(runtime: AgentRuntime, monkeypatch: pytest.MonkeyPatch) -> tuple[Teller, str]:
    monkeypatch.setenv("NATTERJACK_TOKEN_KEY", SECRET)
    agent, trigger = Teller(), HttpTrigger.create({"listen": "127.0.0.1:0"})
    runtime.add_process(AgentProcess("teller", agent=agent, triggers=[trigger]))
    await runtime.start_all()
    return agent, trigger.url


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {TOKEN}", "accept": "text/event-stream"}
    async with httpx.AsyncClient(timeout=20, headers=headers) as client:
        yield client


class EventSource:
    """Reads events as the standard has browsers do it (WHATWG HTML, 9.2.6), and not as our own reader does."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.aiter_lines()
        self.comments = 0

    async def next(self) -> tuple[str, Any]:
        name, data = "message", list[str]()
        async for line in self._lines:
            if not line and data:
                return name, json.loads("\n".join(data))
            field, _, value = line.partition(":")
            self.comments += line.startswith(":")
            if field == "event":
                name = value.removeprefix(" ")
            elif field == "data":
                data.append(value.removeprefix(" "))
        return "", None


async def test_chunks_come_while_the_agent_works(teller: tuple[Teller, str], client: httpx.AsyncClient) -> None:
    agent, url = teller
    async with client.stream("POST", f"{url}/ask", json={"question": f"one|{ODD}|", "id": "i"}) as response:
        assert response.headers["content-type"] == "text/event-stream"
        source = EventSource(response)
        assert await source.next() == ("asked", {"id": "i"})
        for word in ("one", ODD):
            agent.let.release()
            assert await source.next() == ("chunk", {"text": word})
        agent.let.release()
        name, data = await source.next()
        assert (name, data["agent"], len(data["run"])) == ("done", "teller", 24)
        assert await source.next() == ("", None)
    assert agent.caller == "ann"


async def test_silence_is_filled_with_comments(
    teller: tuple[Teller, str], client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, url = teller
    monkeypatch.setattr(door, "AT_ONCE", 0.01)
    monkeypatch.setattr(door, "SILENCE", 0.01)
    async with client.stream("POST", f"{url}/ask", json={"question": "one"}) as response:
        read = response.aiter_raw()
        seen = b""
        while seen.count(b"\n\n: ") < 3:
            seen += await anext(read)
        agent.let.release()
        async for part in read:
            seen += part
    got = [name async for name, _ in events.read(_parts(seen))]
    assert got == ["asked", "chunk", "done"]


async def _parts(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 7):
        yield data[at : at + 7]


async def test_an_empty_answer_is_a_stream_too(teller: tuple[Teller, str], client: httpx.AsyncClient) -> None:
    agent, url = teller
    agent.let.release()
    agent.let.release()
    async with client.stream("POST", f"{url}/ask", json={"question": "|"}) as response:
        source = EventSource(response)
        assert [(await source.next())[0] for _ in range(3)] == ["asked", "done", ""]


async def test_what_fails_at_once_has_a_status_and_later_an_event(
    teller: tuple[Teller, str], client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, url = teller
    agent.end = ValueError("the password is 123")
    monkeypatch.setattr(door, "AT_ONCE", 20.0)  # however slow this machine is
    agent.let = asyncio.Semaphore(3)
    answer = await client.post(f"{url}/ask", json={"question": "|"})
    assert (answer.status_code, answer.json()["code"]) == (500, 500)
    async with client.stream("POST", f"{url}/ask", json={"question": "one"}) as response:
        source = EventSource(response)
        assert [(await source.next())[0] for _ in range(2)] == ["asked", "chunk"]
        name, problem = await source.next()
        assert (name, problem["status"]) == ("problem", 500)
        assert problem["detail"] == "it failed with ValueError; its log says more"
        assert await source.next() == ("", None)


async def test_the_deadline_ends_a_stream(teller: tuple[Teller, str], client: httpx.AsyncClient) -> None:
    agent, url = teller
    agent.let.release()
    async with client.stream("POST", f"{url}/ask", json={"question": "one|two", "timeout": 0.5}) as response:
        source = EventSource(response)
        assert [(await source.next())[0] for _ in range(2)] == ["asked", "chunk"]
        name, problem = await source.next()
        assert (name, problem["status"], problem["code"]) == ("problem", 504, 408)
    await asyncio.wait_for(agent.cancelled.wait(), 10)


async def test_a_stream_is_cancelled_by_its_id(teller: tuple[Teller, str], client: httpx.AsyncClient) -> None:
    agent, url = teller
    agent.let.release()
    async with client.stream("POST", f"{url}/ask", json={"question": "one|two"}) as response:
        source = EventSource(response)
        _, asked = await source.next()
        assert (await source.next())[0] == "chunk"
        assert (await client.delete(f"{url}/ask/{asked['id']}")).status_code == 204
        name, problem = await source.next()
        assert (name, problem["status"]) == ("problem", 499)
        assert await source.next() == ("", None)
    await asyncio.wait_for(agent.cancelled.wait(), 10)


async def test_leaving_a_stream_cancels_the_work(teller: tuple[Teller, str], client: httpx.AsyncClient) -> None:
    agent, url = teller
    agent.let.release()
    async with client.stream("POST", f"{url}/ask", json={"question": "one|two"}) as response:
        source = EventSource(response)
        assert [(await source.next())[0] for _ in range(2)] == ["asked", "chunk"]
        assert not agent.cancelled.is_set()
    await asyncio.wait_for(agent.cancelled.wait(), 10)


async def test_who_does_not_read_holds_the_agent_back_and_not_for_ever(
    runtime: AgentRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = 0
    ended = asyncio.Event()

    class Endless(Agent):
        """Never stops."""

        async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
            nonlocal told
            try:
                while True:
                    told += 1
                    yield question * 50_000
            finally:
                ended.set()

    monkeypatch.delenv("NATTERJACK_TOKEN_KEY", raising=False)
    monkeypatch.setattr(door, "LAST_WORDS", 0.1)
    monkeypatch.setattr("natterjack_http.trigger.LAST", 0.1)
    trigger = HttpTrigger.create({"listen": "127.0.0.1:0"})
    runtime.add_process(AgentProcess("endless", agent=Endless(), triggers=[trigger]))
    await runtime.start_all()
    url = httpx.URL(trigger.url)
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=1)
    body = b'{"question": "x", "timeout": 0.5}'
    head = "POST /ask HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await asyncio.wait_for(ended.wait(), 20)
    assert 1 <= told < 1_000  # 50 MB
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/health")).status_code == 200
    await asyncio.wait_for(runtime.stop_all(5), 20)
    writer.close()
    assert reader.exception() is None


@pytest.mark.parametrize("broken", [b"event: chunk\ndata: {\n\n", b"data: " + b"x" * 100])
async def test_our_reader_refuses_what_is_no_event(broken: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENT", 50)
    with pytest.raises(ValueError, match=r"unexpected end|more than 50 bytes"):
        assert [each async for each in events.read(_parts(broken))] == []
