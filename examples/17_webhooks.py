"""Webhooks: a signed request from outside wakes an agent, and its result is posted to others.

GitHub is played by this program, and so is the one who is told: another agent, woken by a webhook, too. A request that
is forged is refused; one that is sent twice is one event.

Needs `natterjack install webhook`.

Prints:
    forged: 403
    genuine: 202
    again: 202
    told: review.done {'number': 7, 'verdict': 'looks good'}
"""

import asyncio
import hashlib
import hmac
import os
from typing import Any

import httpx

from natterjack import Agent, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext
from natterjack_webhook import WebhookTrigger

# Settings name a variable or a file; the secret itself is never written there.
os.environ |= {"GITHUB_SECRET": "mum's the word", "NOTIFY_SECRET": "open sesame"}
told: asyncio.Queue[Event] = asyncio.Queue()


class Reviewer(Agent):
    """Looks at pull requests."""

    async def handle(self, event: Event, ctx: RunContext) -> dict[str, Any]:
        return {"number": event.data["number"], "verdict": "looks good"}


class Archive(Agent):
    """Is told of reviews."""

    async def handle(self, event: Event, ctx: RunContext) -> None:
        await told.put(event)


def hook(**settings: Any) -> WebhookTrigger:
    return WebhookTrigger.create({"listen": "127.0.0.1:8712", **settings})


async def deliver(client: httpx.AsyncClient, secret: bytes) -> int:
    body = b'{"action": "opened", "number": 7}'
    headers = {"X-GitHub-Event": "pull_request", "X-GitHub-Delivery": "72d3162e", "Content-Type": "application/json"}
    headers["X-Hub-Signature-256"] = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
    return (await client.post("http://127.0.0.1:8712/github", content=body, headers=headers)).status_code


async def main() -> None:
    runtime = AgentRuntime()
    github = hook(path="/github", signature="github", secret="env:GITHUB_SECRET")
    told_of = hook(path="/reviews", signature="standard", secret="env:NOTIFY_SECRET")
    notify = {"kind": "webhook", "url": "http://127.0.0.1:8712/reviews", "secret": "env:NOTIFY_SECRET"}
    runtime.add_process(AgentProcess("reviewer", agent=Reviewer(), triggers=[github], result_event="review.done"))
    runtime.add_process(AgentProcess("notify", agent_config=notify, triggers=[EventTrigger("review.done")]))
    runtime.add_process(AgentProcess("archive", agent=Archive(), triggers=[told_of]))
    async with runtime, httpx.AsyncClient() as client:
        print("forged:", await deliver(client, b"guessed"))
        print("genuine:", await deliver(client, b"mum's the word"))
        print("again:", await deliver(client, b"mum's the word"))
        event = await told.get()
        print("told:", event.type, event.data["data"])


asyncio.run(main())
