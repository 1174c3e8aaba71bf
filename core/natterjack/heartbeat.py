"""Heartbeats: that an agent lives, told now and then, and on demand (Synadia Agent Protocol 0.3, section 8)."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from natterjack import subjects
from natterjack.bus import Message, Subscription
from natterjack.errors import DisconnectedError
from natterjack.service import QUEUE, Service

log = logging.getLogger("natterjack.heartbeat")

INTERVAL: Final = 30
"""Seconds between two heartbeats."""


class Heartbeat:
    """Tells on `agents.hb.…` that an agent lives, and says so on `agents.status.…` when asked.

    Args:
        service: The agent's; its endpoint `status` is served here.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._bus = service, service.bus
        self._task: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Begin, with a first heartbeat at once."""
        subject = subjects.status(self._service.team, self._service.agent)
        self._subscription = await self._bus.subscribe(subject, self._receive, queue=QUEUE)
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Tell no more."""
        if self._task is not None:
            self._task.cancel()
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    async def _run(self) -> None:
        subject = subjects.heartbeat(self._service.team, self._service.agent)
        while True:
            try:
                await self._bus.publish(subject, self._beat())
            except DisconnectedError as error:
                log.debug("%s cannot tell that it lives: %s", self._service.agent, error)
            await asyncio.sleep(INTERVAL)

    async def _receive(self, message: Message) -> None:
        if message.reply.startswith(("_INBOX.", "_R_.")):
            await self._bus.publish(message.reply, self._beat())

    def _beat(self) -> bytes:
        prompts = [endpoint for endpoint in self._service.endpoints if endpoint.name == "prompt"]
        endpoints = {each.name: {"subject": each.subject, "metadata": each.metadata} for each in prompts}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        told: dict[str, Any] = {"instance_id": self._service.id, "ts": now, "interval_s": INTERVAL}
        return orjson.dumps({**self._service.names, **told, "endpoints": endpoints})
