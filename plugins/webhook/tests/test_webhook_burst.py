"""A burst of requests while the broker restarts: whatever was answered 202 is an event, and is handled."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import Counter

import httpx
import orjson
import pytest

from natterjack import AgentProcess, AgentRuntime
from natterjack.testing import NatsServer, ScriptedAgent, until
from natterjack_webhook import WebhookTrigger

SENDERS = 50


class Burst:
    """Sends numbered deliveries, each until it is accepted, as GitHub does when somebody sends them again."""

    def __init__(self, url: str, count: int) -> None:
        self._url, self._left = url, list(range(count))
        self.accepted: dict[int, int] = {}
        self.refused: Counter[int] = Counter()

    async def send(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(SENDERS):
                group.create_task(self._sender())

    async def _sender(self) -> None:
        url = httpx.URL(self._url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        while self._left:
            number = self._left.pop()
            writer.write(request(number))
            status, answer = await response(reader)
            if status == 202:
                self.accepted[number] = orjson.loads(answer)["event"]
            else:
                self.refused[status] += 1
                self._left.append(number)
        writer.close()
        await writer.wait_closed()


def request(number: int) -> bytes:
    """One delivery, as bytes: a client for each of thousands would cost more than all that is tested."""
    body = b'{"n": %d}' % number
    lines = [
        "POST /in HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"X-Hub-Signature-256: sha256={hmac.new(b's3cret', body, hashlib.sha256).hexdigest()}",
        "X-GitHub-Event: push",
        f"X-GitHub-Delivery: d{number}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


@pytest.mark.parametrize("count", [200, pytest.param(5000, marks=[pytest.mark.full, pytest.mark.timeout(300)])])
async def test_a_restart_of_the_broker_loses_no_accepted_request(
    runtime: AgentRuntime, own_server: NatsServer, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    settings = {"path": "/in", "listen": "127.0.0.1:0", "signature": "github", "secret": "env:HOOK_SECRET"}
    agent, hooked = ScriptedAgent(), WebhookTrigger.create(settings)
    runtime.add_process(AgentProcess("taker", agent=agent, triggers=[hooked], retry_delay=0.05))
    await runtime.start_all()
    burst = Burst(hooked.url, count)
    sending = asyncio.create_task(burst.send())
    await until(lambda: len(burst.accepted) > count // 3 or sending.done(), 120)
    assert not sending.done()
    await asyncio.to_thread(own_server.kill)
    await asyncio.to_thread(own_server.start)
    before = len(burst.accepted)
    await sending
    assert before < count
    assert set(burst.refused) <= {429, 503}
    assert len(set(burst.accepted.values())) == count
    await until(lambda: len({event.data["n"] for event in agent.events}) == count, 120)
    handled = {event.data["n"]: event.sequence for event in agent.events}
    assert handled == burst.accepted
