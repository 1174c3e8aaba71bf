"""A burst of requests while the broker restarts: whatever was answered 202 is an event, and is handled."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import Counter

import httpx
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
        limits = httpx.Limits(max_connections=SENDERS)
        async with httpx.AsyncClient(timeout=30, limits=limits) as client, asyncio.TaskGroup() as group:
            for _ in range(SENDERS):
                group.create_task(self._sender(client))

    async def _sender(self, client: httpx.AsyncClient) -> None:
        while self._left:
            number = self._left.pop()
            body = b'{"n": %d}' % number
            digest = hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
            headers = {"content-type": "application/json", "x-hub-signature-256": f"sha256={digest}"}
            headers |= {"x-github-event": "push", "x-github-delivery": f"d{number}"}
            answer = await client.post(self._url, content=body, headers=headers)
            if answer.status_code == 202:
                self.accepted[number] = answer.json()["event"]
            else:
                self.refused[answer.status_code] += 1
                self._left.append(number)


@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=[pytest.mark.full, pytest.mark.timeout(300)])])
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
