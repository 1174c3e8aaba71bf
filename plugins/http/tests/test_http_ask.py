"""Asks over HTTP, over real sockets: who may, what comes back, and what every other request is answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from natterjack import AgentProcess, AgentRuntime, StartError, Tokens, connect
from natterjack.testing import ScriptedAgent, until
from natterjack_http import HttpTrigger, asks, door

SECRET = "a secret of thirty-two bytes, or more"
TOKENS = Tokens(secret=SECRET, audience="researcher", issuer="office")
LOOPBACK = "127.0.0.1:0"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATTERJACK_TOKEN_KEY", raising=False)
    monkeypatch.setenv("DOOR_KEY", SECRET)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {TOKENS.mint('ann', roles=['reader'])}"}
    async with httpx.AsyncClient(timeout=20, headers=headers) as client:
        yield client


def opened(**settings: Any) -> HttpTrigger:
    known = {"listen": LOOPBACK, "key": "env:DOOR_KEY", "audience": "researcher", "issuer": "office"}
    return HttpTrigger.create({**known, **settings})


async def start(runtime: AgentRuntime, agent: ScriptedAgent, trigger: HttpTrigger, **more: Any) -> str:
    runtime.add_process(AgentProcess("researcher", agent=agent, triggers=[trigger], **more))
    await runtime.start_all()
    return trigger.url


async def test_an_answer_and_who_asked(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent = ScriptedAgent(answers=lambda question: question.upper())
    url = await start(runtime, agent, opened())
    answer = await client.post(f"{url}/ask", json={"question": "what is new, ä?", "timeout": 5})
    assert answer.status_code == 200
    (ctx,) = agent.contexts
    assert answer.json() == {"answer": "WHAT IS NEW, Ä?", "agent": "researcher", "run": ctx.run_id}
    assert (ctx.caller, answer.headers["cache-control"]) == ("ann", "no-store")
    assert ctx.deadline == pytest.approx(time.time() + 5, abs=3)


async def test_plain_text_is_a_question(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    url = await start(runtime, ScriptedAgent(answers=len), opened())
    answer = await client.post(f"{url}/ask", content="äöü".encode(), headers={"content-type": "text/plain"})
    assert answer.json()["answer"] == "3"


# Who may


def payload(**changed: Any) -> dict[str, Any]:
    exp = int(time.time()) + 60
    whole = {"sub": "ann", "exp": exp, "aud": "researcher", "iss": "office", **changed}
    return {name: value for name, value in whole.items() if value is not None}


def token(key: Any = SECRET, algorithm: str = "HS256", **changed: Any) -> str:
    return jwt.encode(payload(**changed), key, algorithm)


def tampered() -> str:
    head, _, mark = token().split(".")
    return ".".join((head, token(sub="root").split(".")[1], mark))


BAD: list[Callable[[], str]] = [
    lambda: token(exp=int(time.time()) - 100),
    lambda: token(exp=None),
    lambda: token(nbf=int(time.time()) + 100),
    lambda: token(None, "none"),
    lambda: token(SECRET * 2, "HS512"),
    lambda: token(rsa.generate_private_key(65537, 2048), "RS256"),
    lambda: token(aud="others"),
    lambda: token(aud=None),
    lambda: token(iss="others"),
    lambda: token(SECRET[::-1]),
    lambda: token(sub=""),
    lambda: token(sub="two\nlines"),
    lambda: token(sub="\ud800"),
    tampered,
    lambda: "nonsense",
    lambda: "x" * 40_000,  # a header as long as uvicorn reads
]


async def test_bad_tokens_are_refused_with_a_challenge(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent = ScriptedAgent()
    url = await start(runtime, agent, opened())
    for bad in BAD:
        answer = await client.post(f"{url}/ask", json={"question": "x"}, headers={"authorization": f"Bearer {bad()}"})
        assert answer.status_code == 401, bad()
        challenge = answer.headers["www-authenticate"]
        assert challenge.startswith('Bearer realm="researcher", error="invalid_token", error_description="it')
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"].startswith("nobody knows who calls: it")
    assert agent.questions == []


async def test_no_token_or_two_are_refused_and_so_is_a_megabyte(runtime: AgentRuntime) -> None:
    agent = ScriptedAgent(answers="yes")
    url = await start(runtime, agent, opened())
    good = ("authorization", f"Bearer {TOKENS.mint('ann')}")
    async with httpx.AsyncClient(timeout=20) as client:
        shown: list[list[tuple[str, str]]] = [
            [],
            [("authorization", "Basic YTpi")],
            [("authorization", "Bearer")],
            [good, good],
            [("authorization", f"Bearer {'x' * 1_000_000}")],
        ]
        for headers in shown:
            answer = await client.post(f"{url}/ask", json={"question": "x"}, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith('Bearer realm="researcher"')
        assert agent.questions == []
        assert (await client.post(f"{url}/ask", json={"question": "x"}, headers=[good])).status_code == 200


async def test_a_role_may_be_wanted(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    url = await start(runtime, ScriptedAgent(answers="yes"), opened(roles=["reader", "boss"]))
    assert (await client.post(f"{url}/ask", json={"question": "x"})).status_code == 200
    other = {"authorization": f"Bearer {TOKENS.mint('bob', roles=['writer'])}"}
    answer = await client.post(f"{url}/ask", json={"question": "x"}, headers=other)
    assert answer.status_code == 403
    assert (
        answer.json()["detail"] == "'bob' may not ask 'researcher': that needs the role 'boss' or 'reader' in the token"
    )
    await until(partial(refused, runtime, "bob"))


async def refused(runtime: AgentRuntime, caller: str) -> list[dict[str, Any]]:
    """Return what the audit says was refused somebody."""
    async with connect(runtime.server, context=False) as team:
        found = [json.loads(each.data) async for each in team.bus.read("AUDIT", "audit.*.guard.refuse")]
    return [each for each in found if each.get("who") == caller]


async def test_the_teams_rules_hold_for_callers(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent = ScriptedAgent(answers="yes")
    runtime.add_process(AgentProcess("ann", agent=ScriptedAgent(), asks=["writer"]))
    runtime.add_process(AgentProcess("bob", agent=ScriptedAgent(), asks=["researcher"]))
    runtime.add_process(AgentProcess("writer", agent=ScriptedAgent()))
    url = await start(runtime, agent, opened())
    for accept in ("application/json", "text/event-stream"):
        answer = await client.post(f"{url}/ask", json={"question": "x"}, headers={"accept": accept})
        assert answer.status_code == 403
        assert answer.json()["detail"].startswith("'ann' may not ask 'researcher': ")
    assert agent.questions == []
    bob = {"authorization": f"Bearer {TOKENS.mint('bob')}"}
    assert (await client.post(f"{url}/ask", json={"question": "x"}, headers=bob)).status_code == 200
    assert agent.contexts[0].caller == "bob"


async def test_without_a_key_programs_of_this_machine_may_ask_and_web_pages_not(
    runtime: AgentRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    agent = ScriptedAgent(answers="yes")
    url = await start(runtime, agent, HttpTrigger.create({"listen": "localhost:0"}))
    assert "any program of this machine may ask researcher, because there is no key" in caplog.text
    async with httpx.AsyncClient() as client:
        assert (await client.post(f"{url}/ask", json={"question": "x"})).json()["answer"] == "yes"
        page = {"origin": "https://example.com"}
        answer = await client.post(f"{url}/ask", json={"question": "x"}, headers=page)
        assert (answer.status_code, answer.json()["title"]) == (403, "Forbidden")
    assert [ctx.caller for ctx in agent.contexts] == ["anyone"]


@pytest.mark.parametrize(
    ("settings", "secret", "told"),
    [
        ({"listen": "0.0.0.0:0"}, "", "0.0.0.0:0 can be reached from other machines, and there is no key"),
        ({"listen": "0.0.0.0:0", "key": "env:DOOR_KEY"}, "short", "less is refused off loopback"),
        ({"listen": LOOPBACK, "key": "env:DOOR_KEY"}, "", "DOOR_KEY is not set"),
        ({"listen": LOOPBACK, "key": "file:/nowhere"}, "", "the key in '/nowhere' cannot be read"),
        ({"listen": LOOPBACK, "audience": "researcher"}, "", "tokens are wanted, and there is no key"),
    ],
)
async def test_a_door_that_would_not_be_safe_stops_the_start(
    runtime: AgentRuntime, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], secret: str, told: str
) -> None:
    monkeypatch.setenv("DOOR_KEY", secret)
    with pytest.raises(StartError, match="its trigger 'http' failed") as caught:
        await start(runtime, ScriptedAgent(), HttpTrigger.create(settings))
    assert told in str(caught.value)


async def test_a_port_that_is_taken_stops_the_start(runtime: AgentRuntime) -> None:
    url = await start(runtime, ScriptedAgent(), opened())
    other = AgentRuntime(runtime.server)
    taken = opened(listen=url.removeprefix("http://"))
    other.add_process(AgentProcess("researcher", agent=ScriptedAgent(), triggers=[taken]))
    with pytest.raises(StartError, match="Address already in use; choose another port"):
        await other.start_all()


# What else is answered


WRONG: list[tuple[str, str, dict[str, str], bytes, int, str]] = [
    ("GET", "/", {}, b"", 404, "POST /ask asks the agent"),
    ("GET", "/ask", {}, b"", 405, "use POST here"),
    ("POST", "/ask/1", {}, b"", 405, "use DELETE here"),
    ("POST", "/health", {}, b"", 405, "use GET here"),
    ("DELETE", "/ask/1", {}, b"", 404, "you have no ask of this id here"),
    ("POST", "/ask", {"content-type": "text/html"}, b"x", 415, "send JSON such as"),
    ("POST", "/ask", {"content-type": "text/plain; charset=latin-1"}, b"x", 415, "send JSON such as"),
    ("POST", "/ask", {}, b"{", 400, "the body is not what its content-type says"),
    ("POST", "/ask", {}, b"[" * 100_000, 400, "the body is not what its content-type says"),
    ("POST", "/ask", {}, b"[]", 400, "`the body`: "),
    ("POST", "/ask", {}, b"{}", 400, "`question`: Field required"),
    ("POST", "/ask", {}, b'{"question": ""}', 400, "`question`: "),
    ("POST", "/ask", {}, b'{"question": 1}', 400, "`question`: "),
    ("POST", "/ask", {}, b'{"question": "x", "timeout": 0}', 400, "`timeout`: "),
    ("POST", "/ask", {}, b'{"question": "x", "timeout": "1"}', 400, "`timeout`: "),
    ("POST", "/ask", {}, b'{"question": "x", "id": "a/b"}', 400, "`id`: "),
    ("POST", "/ask", {}, b'{"question": "x", "frm": 1}', 400, "`frm`: Extra inputs are not permitted"),
    ("POST", "/ask", {"content-type": "text/plain"}, b"\xff", 400, "the body is not what its content-type says"),
    ("POST", "/ask", {}, b'"' + b"x" * 1_000_001, 413, "a question may have 1,000,000 bytes"),
]


async def test_each_wrong_request_is_told_what_to_do(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent = ScriptedAgent()
    url = await start(runtime, agent, opened())
    for method, path, headers, body, status, told in WRONG:
        given = {"content-type": "application/json", **headers}
        answer = await client.request(method, url + path, content=body, headers=given)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        problem = answer.json()
        assert told in problem["detail"]
        assert (problem["status"], problem["code"]) == (status, status)
    assert agent.questions == []


async def test_what_is_too_large_is_refused_and_not_read(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent = ScriptedAgent(answers="yes")
    url = await start(runtime, agent, opened(max_body=3_000_000))
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 200_000_000:
            sent += 100_000
            yield b"x" * 100_000

    json_type = {"content-type": "application/json"}
    for content in (b"x" * 50_000_000, endless()):
        try:
            answer = await client.post(f"{url}/ask", content=content, headers=json_type)
        except httpx.TransportError:  # the server may close before all of it is sent
            answer = httpx.Response(413)
        assert answer.status_code == 413
    assert sent < 100_000_000
    answer = await client.post(f"{url}/ask", json={"question": "x" * 2_000_000})  # more than the broker takes
    assert answer.status_code == 413
    assert "1,048,576" in answer.json()["detail"] or "1048576" in answer.json()["detail"]
    assert agent.questions == []
    assert (await client.post(f"{url}/ask", json={"question": "x" * 900_000})).status_code == 200


async def test_a_question_that_does_not_come_is_given_up(
    runtime: AgentRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asks, "READ_LIMIT", 0.05)
    url = httpx.URL(await start(runtime, ScriptedAgent(), HttpTrigger.create({"listen": LOOPBACK})))
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"POST /ask HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\nhal")
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the question did not come within 0.05 s" in answer
    writer.close()
    await writer.wait_closed()


async def test_errors_of_the_agent_have_their_status(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent = ScriptedAgent(answers=[ValueError("the password is 123"), "x"])
    url = await start(runtime, agent, opened())
    answer = await client.post(f"{url}/ask", json={"question": "x"})
    assert (answer.status_code, answer.json()["code"]) == (500, 500)
    assert answer.json()["detail"] == "it failed with ValueError; its log says more"
    assert (await client.post(f"{url}/ask", json={"question": "x"})).status_code == 200


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
        return f"at last: {question}"


async def test_the_deadline_is_the_agents_too(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent = Slow()
    url = await start(runtime, agent, opened())
    answer = await client.post(f"{url}/ask", json={"question": "x", "timeout": 0.2})
    assert (answer.status_code, answer.json()["code"]) == (504, 408)
    assert answer.json()["detail"] == "no answer within the deadline"
    await until(lambda: agent.cancelled == 1)


async def test_a_busy_agent_says_when_to_ask_again(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent = Slow()
    url = await start(runtime, agent, opened(), concurrency=1)
    asking = [asyncio.create_task(client.post(f"{url}/ask", json={"question": str(n)})) for n in range(9)]
    done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    agent.let.set()
    statuses = [(await task).status_code for task in asking]
    assert statuses.count(200) >= 5
    assert statuses.count(200) + statuses.count(429) == 9
    refused = done.pop().result()
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert "at its limit of 5 asks" in refused.json()["detail"]


async def test_too_many_requests_at_once_are_refused(
    runtime: AgentRuntime, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MAX_UNDER_WAY", 1)
    agent = Slow()
    url = await start(runtime, agent, opened())
    asking = asyncio.create_task(client.post(f"{url}/ask", json={"question": "x"}))
    await until(lambda: agent.questions)
    answer = await client.post(f"{url}/ask", json={"question": "y"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    agent.let.set()
    assert (await asking).status_code == 200


# Cancelling


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_who_goes_away_is_not_worked_for(runtime: AgentRuntime, client: httpx.AsyncClient, accept: str) -> None:
    agent = Slow()
    url = await start(runtime, agent, opened())
    asking = asyncio.create_task(client.post(f"{url}/ask", json={"question": "x"}, headers={"accept": accept}))
    await until(lambda: agent.questions)
    asking.cancel()
    await until(lambda: agent.cancelled == 1)
    assert (await client.get(f"{url}/health")).status_code == 200


async def test_an_ask_is_cancelled_by_its_id_and_by_its_asker_alone(
    runtime: AgentRuntime, client: httpx.AsyncClient
) -> None:
    agent = Slow()
    url = await start(runtime, agent, opened())
    asking = asyncio.create_task(client.post(f"{url}/ask", json={"question": "x", "id": "mine-1"}))
    await until(lambda: agent.questions)
    again = await client.post(f"{url}/ask", json={"question": "y", "id": "mine-1"})
    assert (again.status_code, again.json()["title"]) == (409, "Conflict")
    other = {"authorization": f"Bearer {TOKENS.mint('bob')}"}
    assert (await client.delete(f"{url}/ask/mine-1", headers=other)).status_code == 404
    assert (await client.delete(f"{url}/ask/mine-1", headers={"authorization": ""})).status_code == 401
    assert agent.cancelled == 0
    assert (await client.delete(f"{url}/ask/mine-1")).status_code == 204
    answer = await asking
    assert (answer.status_code, answer.json()["code"], answer.json()["title"]) == (499, 499, "Cancelled")
    await until(lambda: agent.cancelled == 1)
    assert (await client.delete(f"{url}/ask/mine-1")).status_code == 404


async def test_whoever_asks_is_seen_to_be_well(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    url = await start(runtime, ScriptedAgent(), opened())
    answer = await client.get(f"{url}/health", headers={"authorization": ""})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "agent": "researcher"})
    assert (await client.head(f"{url}/health")).status_code == 200
