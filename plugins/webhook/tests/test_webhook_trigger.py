"""The trigger, over real sockets: what becomes an event, and what every other request is answered."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlencode

import httpx
import pytest

from natterjack import AgentProcess, AgentRuntime, ConfigError, StartError, TeamClient, connect
from natterjack.testing import NatsServer, ScriptedAgent, ScriptedClock, until
from natterjack.testing.contracts import TriggerContract
from natterjack_webhook import WebhookTrigger, hook, listener
from natterjack_webhook.address import Address
from natterjack_webhook.listener import MAX_UNDER_WAY

SECRET = "correct horse battery staple"
LOOPBACK = "127.0.0.1:0"
FORM = "application/x-www-form-urlencoded"


class TestWebhookTrigger(TriggerContract):
    component = WebhookTrigger
    settings: ClassVar[dict[str, Any]] = {"path": "/contract", "listen": LOOPBACK}
    wrong_settings = (
        {"path": "contract"},
        {"path": "/health"},
        {"path": "/a b"},
        {"path": "/a", "signature": "github"},
        {"path": "/a", "secret": "env:A"},
        {"path": "/a", "signature": "gitlab", "secret": "env:A"},
        {"path": "/a", "signature": {"header": "X A"}, "secret": "env:A"},
        {"path": "/a", "listen": "8080"},
        {"path": "/a", "listen": "127.0.0.1:80800"},
        {"path": "/a", "listen": "example.com:80"},
        {"path": "/a", "type": "order paid"},
        {"path": "/a", "headers": ["Nats-Msg-Id"]},
        {"path": "/a", "max_body": 0},
        {"path": "/a", "tolerance": 0},
    )

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        (served,) = listener._listeners.values()
        async with httpx.AsyncClient() as client:
            assert (await client.post(f"{served.url}/contract", json={})).status_code == 202


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.delenv("NATTERJACK_WEBHOOK_LISTEN", raising=False)


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=20) as client:
        yield client


def trigger(path: str = "/in", **settings: Any) -> WebhookTrigger:
    if "signature" in settings:
        settings = {"secret": "env:HOOK_SECRET", **settings}
    return WebhookTrigger.create({"path": path, "listen": LOOPBACK, **settings})


async def start(runtime: AgentRuntime, agent: ScriptedAgent, *triggers: WebhookTrigger) -> None:
    runtime.add_process(AgentProcess("taker", agent=agent, triggers=triggers))
    await runtime.start_all()


def github(body: bytes, event: str = "push", delivery: str = "d-1", secret: str = SECRET) -> dict[str, str]:
    return {
        "content-type": "application/json",
        "x-hub-signature-256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
        "x-github-event": event,
        "x-github-delivery": delivery,
    }


# What becomes an event


async def test_a_signed_request_is_an_event(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent, hooked = ScriptedAgent(), trigger("/github", signature="github", headers=["X-Seen"])
    await start(runtime, agent, hooked)
    body = b'{"ref": "main", "n": [1.5, null, "\xc3\xa4"]}'
    answer = await client.post(hooked.url, content=body, headers=github(body, "pull_request") | {"x-seen": "yes"})
    assert answer.status_code == 202
    (event,) = await agent.handled()
    assert answer.json() == {"event": event.sequence}
    assert (event.type, event.data) == ("pull_request", {"ref": "main", "n": [1.5, None, "ä"]})
    kept = {name: event.headers[name] for name in ("X-GitHub-Event", "X-GitHub-Delivery", "X-Seen")}
    assert kept == {"X-GitHub-Event": "pull_request", "X-GitHub-Delivery": "d-1", "X-Seen": "yes"}
    assert SECRET not in repr(event)
    assert "Signature" not in repr(event)


async def test_a_repeated_delivery_is_one_event(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent, hooked = ScriptedAgent(), trigger(signature="github")
    await start(runtime, agent, hooked)
    sent = [b'{"n": 1}', b'{"n": 1}', b'{"n": 2}', b'{"n": 1}']
    answers = [await client.post(hooked.url, content=body, headers=github(body)) for body in sent]
    assert {answer.status_code for answer in answers} == {202}
    first, again, other, last = (answer.json()["event"] for answer in answers)
    assert (first, first) == (again, last)
    assert other != first
    events = await agent.handled(2)
    assert sorted(event.data["n"] for event in events) == [1, 2]


def stripe(body: bytes, moment: float) -> dict[str, str]:
    digest = hmac.new(SECRET.encode(), b"%d." % moment + body, hashlib.sha256).hexdigest()
    return {"content-type": "application/json; charset=utf-8", "stripe-signature": f"t={int(moment)},v1={digest}"}


def slack(body: bytes, moment: float, kind: str) -> dict[str, str]:
    digest = hmac.new(SECRET.encode(), b"v0:%d:" % moment + body, hashlib.sha256).hexdigest()
    headers = {"content-type": kind, "x-slack-signature": f"v0={digest}"}
    return headers | {"x-slack-request-timestamp": str(int(moment))}


async def test_stripes_retry_is_one_event_and_a_replay_is_refused(
    runtime: AgentRuntime, clock: ScriptedClock, client: httpx.AsyncClient
) -> None:
    agent, hooked = ScriptedAgent(), trigger(signature="stripe")
    await start(runtime, agent, hooked)
    first = b'{"id": "evt_1", "type": "payment_intent.succeeded", "pending_webhooks": 2}'
    retry = b'{"id": "evt_1", "type": "payment_intent.succeeded", "pending_webhooks": 1}'
    now = clock.now()
    one = await client.post(hooked.url, content=first, headers=stripe(first, now))
    two = await client.post(hooked.url, content=retry, headers=stripe(retry, now - 119))
    assert one.json() == two.json()
    (event,) = await agent.handled()
    assert (event.type, event.data["pending_webhooks"]) == ("payment_intent.succeeded", 2)
    old = await client.post(hooked.url, content=first, headers=stripe(first, now - 121))
    assert (old.status_code, old.json()) == (403, {"error": "forbidden"})


async def test_slack_verifies_the_url_sends_events_and_commands(
    runtime: AgentRuntime, clock: ScriptedClock, client: httpx.AsyncClient
) -> None:
    agent, hooked = ScriptedAgent(), trigger(signature="slack")
    await start(runtime, agent, hooked)

    async def post(data: Any, kind: str = "application/json") -> httpx.Response:
        body = json.dumps(data).encode() if kind == "application/json" else urlencode(data).encode()
        return await client.post(hooked.url, content=body, headers=slack(body, clock.now(), kind))

    verified = await post({"type": "url_verification", "challenge": "3eZbrw", "token": "x"})
    assert (verified.status_code, verified.text) == (200, "3eZbrw")
    mention = {"type": "event_callback", "event_id": "Ev1", "event": {"type": "app_mention", "text": "hi"}}
    assert (await post(mention)).status_code == 202
    assert (await post(mention)).status_code == 202
    command = await post({"command": "/deploy", "text": "now"}, FORM)
    assert (command.status_code, command.content) == (200, b"")
    await post({"payload": json.dumps({"type": "block_actions", "actions": []})}, FORM)
    events = await agent.handled(3)
    assert {event.type: event.data for event in events} == {
        "app_mention": mention,
        "webhook": {"command": "/deploy", "text": "now"},
        "block_actions": {"type": "block_actions", "actions": []},
    }
    forged = await client.post(hooked.url, json={"type": "url_verification", "challenge": "x"})
    assert forged.status_code == 401


async def test_a_signature_of_ones_own(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    scheme = {"header": "X-Shop-Hmac", "algorithm": "sha512", "encoding": "hex", "prefix": "v="}
    agent, hooked = ScriptedAgent(), trigger(signature=scheme, id="X-Shop-Id", type="order.paid")
    await start(runtime, agent, hooked)
    digest = hmac.new(SECRET.encode(), b"n=1", hashlib.sha512).hexdigest()
    headers = {"content-type": FORM, "x-shop-hmac": f"v={digest}", "x-shop-id": "7"}
    answers = [await client.post(hooked.url, content=b"n=1", headers=headers) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    (event,) = await agent.handled()
    assert (event.type, event.data) == ("order.paid", {"n": "1"})
    assert (await client.post(hooked.url, content=b"n=1", headers=headers | {"x-shop-hmac": digest})).status_code == 403


@pytest.mark.parametrize(
    ("kind", "body", "data"),
    [
        ("application/json", b' {"a": [1]} ', {"a": [1]}),
        ("application/cloudevents+json; charset=UTF-8", b"7", 7),
        ("application/x-www-form-urlencoded", b"a=1&b=%C3%A4+x&a=2&c=", {"a": ["1", "2"], "b": "ä x", "c": ""}),
        ("text/plain", b"12", "12"),
        ("text/plain; charset=utf-8", "grüß\n".encode(), "grüß\n"),
        ("", b"", None),
    ],
)
async def test_bodies(runtime: AgentRuntime, client: httpx.AsyncClient, kind: str, body: bytes, data: Any) -> None:
    agent, hooked = ScriptedAgent(), trigger()
    await start(runtime, agent, hooked)
    assert (await client.post(hooked.url, content=body, headers={"content-type": kind})).status_code == 202
    (event,) = await agent.handled()
    assert (event.type, event.data) == ("webhook", data)


async def test_a_name_that_is_no_type(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent, hooked = ScriptedAgent(), trigger(signature="github")
    await start(runtime, agent, hooked)
    for name in ("a b", "*", "a..b", "", "x" * 200):
        body = json.dumps(name).encode()
        assert (await client.post(hooked.url, content=body, headers=github(body, name))).status_code == 202
    assert {event.type for event in await agent.handled(5)} == {"webhook"}


# What is refused


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"method": "GET"}, 405),
        ({"method": "DELETE"}, 405),
        ({"path": "/other"}, 404),
        ({"path": "/in/"}, 404),
        ({"headers": {"content-type": "application/json"}}, 401),
        ({"headers": github(b"{}", secret="another")}, 403),
        ({"headers": github(b"[]")}, 403),
        ({"headers": github(b"{}") | {"x-hub-signature-256": "sha256=é".encode()}}, 403),
        ({"headers": github(b"{}") | {"content-type": "application/xml"}}, 415),
        ({"headers": github(b"{}") | {"content-type": "multipart/form-data; boundary=x"}}, 415),
        ({"headers": github(b"{}") | {"content-type": "application/json; charset=latin1"}}, 415),
        ({"headers": github(b"{}") | {"content-type": ""}}, 415),
        ({"headers": github(b"{"), "content": b"{"}, 400),
        ({"headers": github(b"\xff"), "content": b"\xff"}, 400),
        ({"headers": github(b"[" * 65 + b"]" * 65), "content": b"[" * 65 + b"]" * 65}, 400),
        ({"headers": github(b"\xff") | {"content-type": "text/plain"}, "content": b"\xff"}, 400),
        ({"headers": github(b"a=%FF") | {"content-type": FORM}, "content": b"a=%FF"}, 400),
        ({"content": b" " * 2001}, 413),
    ],
)
async def test_what_is_refused(
    runtime: AgentRuntime, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, change: Any, status: int
) -> None:
    agent, hooked = ScriptedAgent(), trigger(signature="github", max_body=2000)
    await start(runtime, agent, hooked)
    url = hooked.url.replace("/in", change.pop("path", "/in"))
    request = {"method": "POST", "content": b"{}", "headers": github(b"{}")} | change
    answer = await client.request(url=url, **request)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert ("allow" in answer.headers) == (status == 405)
    if status in (401, 403):
        assert answer.json()["error"] in ("unauthorized", "forbidden")
        assert "refused on /in: its signature fits none" in caplog.text or "it has no signature" in caplog.text
    assert SECRET not in answer.text + caplog.text
    await client.post(hooked.url, content=b"{}", headers=github(b"{}"))
    (event,) = await agent.handled()
    assert event.data == {}


async def test_a_body_without_a_length_is_bounded_too(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent, hooked = ScriptedAgent(), trigger(max_body=2000)
    await start(runtime, agent, hooked)

    async def chunks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b" " * 1000

    plain = {"content-type": "text/plain"}
    assert (await client.post(hooked.url, content=chunks(2), headers=plain)).status_code == 202
    assert (await client.post(hooked.url, content=chunks(3), headers=plain)).status_code == 413


async def test_what_the_broker_does_not_take_is_too_large(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent, hooked = ScriptedAgent(), trigger(max_body=3_000_000)
    await start(runtime, agent, hooked)
    answer = await client.post(hooked.url, content=b"x" * 2_000_000, headers={"content-type": "text/plain"})
    assert answer.status_code == 413


async def test_a_web_page_cannot_use_a_hook_without_a_signature(
    runtime: AgentRuntime, client: httpx.AsyncClient
) -> None:
    agent, hooked = ScriptedAgent(), trigger()
    await start(runtime, agent, hooked)
    headers = {"origin": "https://evil.example", "content-type": "text/plain"}
    assert (await client.post(hooked.url, content=b"x", headers=headers)).status_code == 403


async def test_why_is_logged_once(
    runtime: AgentRuntime, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    agent, hooked = ScriptedAgent(), trigger(signature="github")
    await start(runtime, agent, hooked)
    for _ in range(5):
        await client.post(hooked.url, content=b"{}", headers=github(b"{}", secret="no"))
        await client.post(hooked.url, content=b"{}")
    warnings = [record.message for record in caplog.records if "refused on" in record.message]
    assert warnings == [
        "refused on /in: its signature fits none of the secrets",
        "refused on /in: it has no signature of the kind that is wanted here",
    ]


async def test_a_body_that_does_not_come(
    runtime: AgentRuntime, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "READ_LIMIT", 0.1)
    agent, hooked = ScriptedAgent(), trigger()
    await start(runtime, agent, hooked)
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(hooked.url).port)
    writer.write(b"POST /in HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\n12345")
    assert b" 408 " in await reader.readline()
    assert b"too slow" in await reader.read()  # to the end: the connection is closed
    writer.close()
    await writer.wait_closed()


async def test_too_many_at_once(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent, hooked = ScriptedAgent(), trigger()
    await start(runtime, agent, hooked)
    head = b"POST /in HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n"
    port = httpx.URL(hooked.url).port
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MAX_UNDER_WAY)]
    for _, writer in connections:
        writer.write(head)
    (served,) = listener._listeners.values()
    await until(lambda: served._under_way == MAX_UNDER_WAY)
    refused = await client.post(hooked.url, content=b"{}", headers={"content-type": "application/json"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    for reader, writer in connections:
        writer.write(b"ok")
        assert b" 202 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
    assert len(await agent.handled(MAX_UNDER_WAY)) == MAX_UNDER_WAY


# When the broker or the inbox does not take it


async def test_while_the_broker_is_away(
    runtime: AgentRuntime, own_server: NatsServer, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "STORE_LIMIT", 0.3)
    agent, hooked = ScriptedAgent(), trigger(signature="github")
    await start(runtime, agent, hooked)
    own_server.kill()
    refused = await client.post(hooked.url, content=b"{}", headers=github(b"{}"))
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert refused.json() == {"error": "not now"}
    own_server.start()

    async def accepted() -> bool:
        return (await client.post(hooked.url, content=b"{}", headers=github(b"{}"))).status_code == 202

    await until(accepted)
    assert len(await agent.handled()) == 1


async def test_while_the_inbox_is_full(
    runtime: AgentRuntime, own_server: NatsServer, client: httpx.AsyncClient
) -> None:
    go_on = asyncio.Event()

    async def wait(event: Any) -> None:
        await go_on.wait()

    agent, hooked = ScriptedAgent(results=wait), trigger(signature="github")
    await start(runtime, agent, hooked)
    async with connect(own_server.url) as team:
        config = (await team.bus.api("STREAM.INFO.INBOX"))["config"]
        await team.bus.api("STREAM.UPDATE.INBOX", {**config, "max_msgs_per_subject": 1})
    assert (await client.post(hooked.url, content=b"{}", headers=github(b"{}"))).status_code == 202
    full = await client.post(hooked.url, content=b"{}", headers=github(b"{}", delivery="d-2"))
    assert (full.status_code, full.headers["retry-after"], full.json()) == (429, "30", {"error": "not now"})
    go_on.set()

    async def accepted() -> bool:
        answer = await client.post(hooked.url, content=b"{}", headers=github(b"{}", delivery="d-2"))
        return answer.status_code == 202

    await until(accepted)
    assert len(await agent.handled(2)) == 2


# Start and stop


async def test_agents_of_a_process_share_a_listener(
    runtime: AgentRuntime, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATTERJACK_WEBHOOK_LISTEN", LOOPBACK)
    hooks = {name: WebhookTrigger.create({"path": f"/{name}"}) for name in ("one", "two")}
    agents = {name: ScriptedAgent() for name in hooks}
    for name, hooked in hooks.items():
        runtime.add_process(AgentProcess(name, agent=agents[name], triggers=[hooked]))
    await runtime.start_all()
    assert hooks["one"].url.removesuffix("one") == hooks["two"].url.removesuffix("two")
    health = hooks["one"].url.replace("/one", "/health")
    assert (await client.get(health)).json() == {"status": "ok"}
    assert (await client.post(health)).status_code == 405
    for name, hooked in hooks.items():
        await client.post(hooked.url, json=name)
        assert [event.data for event in await agents[name].handled()] == [name]
    await runtime.stop_all()
    with pytest.raises(httpx.ConnectError):
        await client.get(health)
    assert listener._listeners == {}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ([{}, {}], r"the path '/in' at 127.0.0.1:0 is there twice, for 'a0' and 'a1'; choose another|'a1' and 'a0'"),
        ([{"listen": "TAKEN"}], r"the port of 127.0.0.1:\d+ is taken, perhaps by another agent .* choose one, e.g. "),
        ([{"listen": "0.0.0.0:0"}], "at 0.0.0.0:0 anybody on the network could send to '/in', because it has no"),
        ([{"listen": "[::]:0"}], r"at \[::\]:0 anybody on the network"),
        ([{"listen": "203.0.113.7:0", "signature": "github"}], r"cannot listen at 203.0.113.7:0: Cannot assign"),
        ([{"signature": "github", "secret": "env:NO_SUCH"}], "environment variable 'NO_SUCH' is not set"),
        ([{"signature": "github", "secret": "env:EMPTY"}], "the secret at 'env:EMPTY' is empty"),
        ([{"signature": "github", "secret": "file:/no/such"}], "file '/no/such' cannot be read: FileNotFoundError"),
        ([{"signature": "standard", "secret": "env:NO_BASE64"}], "no base64"),
    ],
)
async def test_what_keeps_an_agent_from_starting(
    runtime: AgentRuntime, monkeypatch: pytest.MonkeyPatch, settings: list[dict[str, Any]], error: str
) -> None:
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("NO_BASE64", "whsec_hunter2!")
    before = asyncio.all_tasks()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for number, given in enumerate(settings):
            listen = given.get("listen", LOOPBACK).replace("TAKEN", f"127.0.0.1:{taken.getsockname()[1]}")
            hooked = trigger(**{**given, "listen": listen})
            runtime.add_process(AgentProcess(f"a{number}", agent=ScriptedAgent(), triggers=[hooked]))
        start = r"agent 'a\d' cannot start: its trigger 'webhook-in' failed: .*"
        with pytest.raises(StartError, match=f"{start}({error})"):
            await runtime.start_all()
    await until(lambda: asyncio.all_tasks() <= before)
    assert listener._listeners == {}


async def test_signed_requests_may_come_from_everywhere(runtime: AgentRuntime, client: httpx.AsyncClient) -> None:
    agent, hooked = ScriptedAgent(), trigger(signature="github", listen="0.0.0.0:0")
    await start(runtime, agent, hooked)
    url = hooked.url.replace("0.0.0.0", "127.0.0.1")
    assert (await client.post(url, content=b"{}", headers=github(b"{}"))).status_code == 202


async def test_requests_under_way_are_answered_new_ones_are_not_and_the_port_closes(
    runtime: AgentRuntime, client: httpx.AsyncClient
) -> None:
    agent, hooked = ScriptedAgent(), trigger()
    await start(runtime, agent, hooked)
    port = httpx.URL(hooked.url).port
    head = b"POST /in HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    other_reader, other = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + b"o")
    (served,) = listener._listeners.values()
    await until(lambda: served._under_way == 1)
    stopping = asyncio.create_task(runtime.stop_all())
    await until(lambda: served._hooks["/in"].draining)
    other.write(head + b"no")
    assert b" 503 " in await other_reader.readline()
    health = await client.get(hooked.url.replace("/in", "/health"))
    assert (health.status_code, health.headers["retry-after"]) == (503, "5")
    writer.write(b"k")
    assert b" 202 " in await reader.readline()
    await stopping
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    for each in (other, writer):
        each.close()
        await each.wait_closed()
    runtime_again = AgentRuntime(runtime._server)
    recorder = ScriptedAgent()
    await start(runtime_again, recorder, trigger())
    events = [*agent.events, *await recorder.handled(1 - len(agent.events))]
    assert [event.data for event in events] == ["ok"]
    await runtime_again.stop_all()


async def test_what_hangs_does_not_hold_up_the_end(runtime: AgentRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "DRAIN_LIMIT", 0.2)
    agent, hooked = ScriptedAgent(), trigger()
    await start(runtime, agent, hooked)
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(hooked.url).port)
    writer.write(b"POST /in HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n")
    (served,) = listener._listeners.values()
    await until(lambda: served._under_way == 1)
    began = time.monotonic()
    await runtime.stop_all()
    assert time.monotonic() - began < 3
    assert b" 408 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_path_is_free_again_once_its_agent_has_stopped(
    own_server: NatsServer, client: httpx.AsyncClient
) -> None:
    first, second, third = (AgentRuntime(own_server.url) for _ in range(3))
    staying, going, coming = trigger("/stays"), trigger("/moves"), trigger("/moves")
    agent = ScriptedAgent()
    first.add_process(AgentProcess("stays", agent=ScriptedAgent(), triggers=[staying]))
    second.add_process(AgentProcess("moves", agent=ScriptedAgent(), triggers=[going]))
    await first.start_all()
    await second.start_all()
    await second.stop_all()
    assert (await client.post(going.url, json=1)).status_code == 503
    third.add_process(AgentProcess("moves", agent=agent, triggers=[coming]))
    await third.start_all()
    assert coming.url == going.url
    assert (await client.post(coming.url, json=2)).status_code == 202
    assert [event.data for event in await agent.handled()] == [2]
    await third.stop_all()
    await first.stop_all()


def test_processes_may_share_a_port_if_they_say_so() -> None:
    first = listener._bind(Address("127.0.0.1", 0, shared=True))
    port = first.getsockname()[1]
    listener._bind(Address("127.0.0.1", port, shared=True)).close()
    with pytest.raises(ConfigError, match="is taken"):
        listener._bind(Address("127.0.0.1", port))
    first.close()


# Secrets


@pytest.mark.parametrize("wrong", [{"secret": "hunter2"}, {"secret": ["env:A", "hunter2"]}, {"secret": "file:"}])
def test_a_secret_in_clear_is_refused_and_not_shown(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="write where the secret is, as 'env:NAME' or 'file:/path/to/it'") as caught:
        WebhookTrigger.create({"path": "/a", "signature": "github", **wrong})
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert "hunter2" not in " ".join(map(str, chain)) + repr(chain)


async def test_secrets_come_from_files_and_are_exchanged(
    runtime: AgentRuntime, client: httpx.AsyncClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "new").write_text("a new secret\n")
    agent, hooked = ScriptedAgent(), trigger(signature="github", secret=[f"file:{tmp_path}/new", "env:HOOK_SECRET"])
    await start(runtime, agent, hooked)
    for number, secret in enumerate([SECRET, "a new secret"]):
        headers = github(b"{}", delivery=str(number), secret=secret)
        assert (await client.post(hooked.url, content=b"{}", headers=headers)).status_code == 202
    assert (await client.post(hooked.url, content=b"{}", headers=github(b"{}", secret="third"))).status_code == 403
    await runtime.stop_all()
    shown = caplog.text + repr(hooked) + repr(hooked.config) + repr(vars(hooked))
    assert SECRET not in shown
    assert "a new secret" not in shown
