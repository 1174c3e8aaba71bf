"""Replies: who waits for what, on one inbox, without a task per request.

nats-py's `request` makes a future, a timer and a wait for each; this one is a third faster, fails a waiting call at
once when the server refuses its subject, and can collect several replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from natterjack.errors import NatterjackError, RequestTimeoutError


class Message(Protocol):
    """A message as it arrives."""

    subject: str
    reply: str
    data: bytes

    @property
    def headers(self) -> dict[str, str] | None:
        """Its headers, the last of each name."""


Publish = Callable[[str, bytes, Mapping[str, str] | None, str], Awaitable[None]]
"""Publishes subject, data, headers, reply subject."""


@dataclass(slots=True)
class _Waiter:
    """Somebody waiting for one reply, or for several."""

    subject: str
    done: asyncio.Future[Message]
    collect: Callable[[Message], bool] | None
    fails_on_disconnect: bool


class Mailbox:
    """Waits for replies on `<prefix>.*`.

    Args:
        prefix: Subject of the inbox.
        publish: Sends requests.
    """

    def __init__(self, prefix: str, publish: Publish) -> None:
        self.prefix = prefix
        self._publish = publish
        self._waiting: dict[str, _Waiter] = {}
        self._count = 0

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        collect: Callable[[Message], bool] | None = None,
        fails_on_disconnect: bool = False,
    ) -> Message:
        """Send a request and return its reply, or the last one.

        Args:
            subject: Where to.
            data: Payload.
            timeout: Seconds.
            headers: Headers.
            collect: Called with each reply; returns True on the last.
            fails_on_disconnect: Raise as soon as the connection goes, for what may be sent again.

        Raises:
            RequestTimeoutError: No (last) reply in time.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(subject, loop.create_future(), collect, fails_on_disconnect)
        self._count += 1
        token = f"{self._count:x}"
        self._waiting[token] = waiter
        timer = loop.call_later(timeout, _expire, waiter, timeout)
        try:
            await self._publish(subject, data, headers, f"{self.prefix}.{token}")
            return await waiter.done
        finally:
            timer.cancel()
            del self._waiting[token]
            waiter.done.cancel()

    async def receive(self, message: Message) -> None:
        """Hand a reply to who waits for it; a late one is dropped."""
        waiter = self._waiting.get(message.subject[len(self.prefix) + 1 :])
        if waiter is None or waiter.done.done():
            return
        if waiter.collect is None or waiter.collect(message):
            waiter.done.set_result(message)

    def refuse(self, subject: str, error: NatterjackError) -> bool:
        """Fail those who wait on a subject, given in lower case; returns whether anybody did."""
        waiters = [waiter for waiter in self._waiting.values() if waiter.subject.lower() == subject]
        for waiter in waiters:
            _fail(waiter, error)
        return bool(waiters)

    def disconnected(self, error: NatterjackError, *, for_good: bool) -> None:
        """Fail those whose reply cannot come any more."""
        for waiter in self._waiting.values():
            if for_good or waiter.fails_on_disconnect:
                _fail(waiter, error)


def _expire(waiter: _Waiter, timeout: float) -> None:
    _fail(waiter, RequestTimeoutError(waiter.subject, timeout))


def _fail(waiter: _Waiter, error: NatterjackError) -> None:
    if not waiter.done.done():
        waiter.done.set_exception(error)


def status_of(message: Message) -> str:
    """Return the status that the server put in place of a payload: `503`, `404`, `408`, …; usually empty."""
    return (message.headers or {}).get("Status", "")
