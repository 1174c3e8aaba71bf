"""Plain subjects: what any program publishes there becomes an event in an agent's inbox, and is then as safe as any."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from natterjack import codec, subjects
from natterjack.bus import Bus, Message
from natterjack.components import Trigger
from natterjack.dead import DeadLetter, bury
from natterjack.errors import BrokerError, NatterjackError, PatternError, described
from natterjack.messages import Envelope, PlainMessage
from natterjack.subjects import MAX_SUBJECT

SUBJECT: Final = "Natterjack-Subject"
"""Header that names the subject where it could not be the event's type."""
_TRIGGERS: Final = {
    "events": 'for events use an event trigger, e.g. on = ["research.*"]',
    "messages": 'for messages use a message trigger, e.g. on = [{ message = "reports.*" }]',
    "inbox": "every agent is woken by its inbox without a trigger",
    "stored": "for events and messages use triggers of these kinds",
    "feed": "for events, messages and the context use triggers of these kinds",
}
_PLAIN = re.compile(r"[^\s.]+\Z")
PAUSE: Final = 1.0
"""Seconds before a message is tried again that the inbox did not take."""


def check_plain(pattern: object) -> str:
    """Return a pattern of subjects that belong to other programs.

    Raises:
        PatternError: Malformed, or it could match one of ours or of the server's; it names the trigger for those.
    """
    tokens = pattern.split(".") if isinstance(pattern, str) else []
    if not isinstance(pattern, str) or len(pattern) > MAX_SUBJECT or not all(_PLAIN.match(token) for token in tokens):
        raise PatternError(pattern, f"use tokens without blanks joined by '.', at most {MAX_SUBJECT} characters")
    if ">" in tokens[:-1] or any(len(token) > 1 and ("*" in token or ">" in token) for token in tokens):
        raise PatternError(pattern, "a wildcard must be a whole token between dots, and '>' may only stand last")
    root = tokens[0]
    if root in ("*", ">"):
        raise PatternError(pattern, "its first token must be no wildcard, which would match Natterjack's own subjects")
    if root[0] in "$_":
        raise PatternError(pattern, f"subjects that begin with {root[0]!r} are the server's own")
    if root in subjects.ROOTS or root == "agents":
        hint = _TRIGGERS.get(root, "listen on other subjects")
        raise PatternError(pattern, f"subjects that begin with '{root}.' are Natterjack's own; {hint}")
    return pattern


def type_of(message: PlainMessage, otherwise: str) -> str:
    """Return the type of the event that a message is: its subject, if that can be one."""
    return message.subject if subjects.is_type(message.subject) else otherwise


async def keep(bus: Bus, message: PlainMessage, kind: str, id: str | None = None) -> int:
    """Store a message in the agent's own inbox as it is, and return its sequence; errors as for `Bus.store`."""
    headers = {name: value for name, value in message.headers.items() if not name.lower().startswith("nats-")}
    headers[codec.HEADER] = codec.pack(Envelope(source=bus.principal))
    if kind != message.subject:
        headers[SUBJECT] = message.subject
    stored = await bus.store(subjects.inbox(bus.principal, kind), message.data, headers=headers, id=id)
    return stored.sequence


class Listener:
    """Brings what is published on plain subjects to one trigger of an agent.

    Args:
        bus: The agent's connection.
        trigger: Which trigger.
        callback: Takes each message.
        log: The trigger's logger.
    """

    def __init__(
        self,
        bus: Bus,
        trigger: Trigger,
        callback: Callable[[PlainMessage], Awaitable[object]],
        log: logging.Logger,
    ) -> None:
        self._bus, self._trigger, self._callback, self._log = bus, trigger, callback, log
        self._lost, self._ending = 0, asyncio.Event()

    async def run(self, pattern: str, ready: asyncio.Event) -> None:
        """Listen until cancelled, and set `ready` once the server knows; what has arrived is still taken then."""
        check_plain(pattern)
        group = subjects.durable(self._bus.principal, self._trigger.label)
        subscription = await self._bus.subscribe(pattern, self._receive, queue=group, on_lost=self._dropped)
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            self._ending.set()
            if not self._bus.connected:
                self._lost += subscription.raw.pending_msgs
            await asyncio.shield(subscription.drain())
            self._tell_lost()

    def _dropped(self) -> None:
        self._lost += 1

    def _tell_lost(self) -> None:
        if self._lost and not self._bus.closed.is_set():
            self._log.error("%d messages came faster than the inbox took them, and are lost", self._lost)
        self._lost = 0

    async def _receive(self, raw: Message) -> None:
        self._tell_lost()
        message = PlainMessage(raw.subject, raw.data, raw.headers or {})
        waits = False
        while (error := await self._try(message)) is not None:
            if not isinstance(error, BrokerError) or not error.retry or self._ending.is_set():
                await self._give_up(message, error)
                return
            if not waits:
                self._log.warning("a message on %r waits: %s", message.subject, error)
                waits = True
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), PAUSE)

    async def _try(self, message: PlainMessage) -> Exception | None:
        try:
            await self._callback(message)
        except Exception as error:  # a stranger's callback may fail in any way
            return error
        return None

    async def _give_up(self, message: PlainMessage, error: Exception) -> None:
        agent, kind = self._bus.principal, type_of(message, self._trigger.name)
        self._log.error("a message on %r becomes a dead letter: %s", message.subject, described(error))
        cause, subject = f"on {message.subject!r} came: {described(error)}", subjects.stored_inbox(agent, kind)
        letter = DeadLetter(agent, self._trigger.label, cause, 0, subjects.INBOX, subject, 0, "", "")
        try:
            await bury(self._bus, letter, message.data)
        except NatterjackError as problem:
            self._log.error("a message on %r is lost: %s", message.subject, problem)
