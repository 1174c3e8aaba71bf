"""Replies: who waits for what, on one inbox, without a task per request.

nats-py's `request` makes a future, a timer and a wait for each; this one keeps one timer for all, fails a waiting call
at once when the server refuses its subject, and can collect several replies.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol

import orjson

from natterjack import codec
from natterjack.bus.headers import encode
from natterjack.clock import Alarm
from natterjack.errors import BrokerError, NatterjackError, NoRespondersError, PayloadError, RequestTimeoutError
from natterjack.messages import Envelope
from natterjack.server import Server
from natterjack.subjects import OPERATOR

NO_RESPONDERS: Final = "503"
FAR: Final = "_R_."
"""What the reply subjects begin with that the server makes between accounts."""
ROOM: Final = 64 * 1024 * 1024
"""Bytes of replies that may wait for a slow reader; a sender that keeps pace with its reader never comes near."""


class Message(Protocol):
    """A message as it arrives."""

    subject: str
    reply: str
    data: bytes

    @property
    def headers(self) -> dict[str, str] | None:
        """Its headers, the last of each name."""


Send = Callable[[str, bytes, bytes, str], None]
"""Sends subject, data, header block, reply subject."""


class _Waiter:
    """Somebody waiting for one reply, or for several."""

    __slots__ = ("collect", "deadline", "done", "fails_on_disconnect", "subject", "timeout")

    def __init__(
        self, subject: str, collect: Callable[[Message], bool] | None, fails_on_disconnect: bool, timeout: float
    ) -> None:
        loop = asyncio.get_running_loop()
        self.subject, self.collect, self.fails_on_disconnect = subject, collect, fails_on_disconnect
        self.timeout, self.deadline = timeout, loop.time() + timeout
        self.done: asyncio.Future[Message] = loop.create_future()


class Mailbox:
    """Waits for replies on `<prefix>.*`.

    Args:
        prefix: Subject of the inbox.
        send: Sends requests.
    """

    def __init__(self, prefix: str, send: Send) -> None:
        self.prefix = prefix
        self._send = send
        self._waiting: dict[str, _Waiter] = {}
        self._count = 0
        self._alarm = Alarm(self._expire)

    async def request(
        self,
        subject: str,
        data: bytes,
        *,
        timeout: float,
        headers: bytes = b"",
        collect: Callable[[Message], bool] | None = None,
        fails_on_disconnect: bool = False,
    ) -> Message:
        """Send a request and return its reply, or the last one.

        Args:
            subject: Where to.
            data: Payload.
            timeout: Seconds.
            headers: Headers, as a block.
            collect: Called with each reply; returns True on the last.
            fails_on_disconnect: Raise as soon as the connection goes, for what may be sent again.

        Raises:
            RequestTimeoutError: No (last) reply in time.
        """
        waiter = _Waiter(subject, collect, fails_on_disconnect, timeout)
        token = self._begin(waiter, data, headers)
        try:
            return await waiter.done
        finally:
            self._remove(token, waiter)

    def open(self, subject: str, data: bytes, *, timeout: float, headers: bytes) -> Replies:
        """Send a request and return its replies, any number of them; close them in the end."""
        replies = Replies(self._send)
        waiter = _Waiter(subject, replies.collect, fails_on_disconnect=True, timeout=timeout)
        token = self._begin(waiter, data, headers)
        replies.attach(waiter.done, partial(self._remove, token, waiter))
        return replies

    def _remove(self, token: str, waiter: _Waiter) -> None:
        self._waiting.pop(token, None)
        waiter.done.cancel()

    def post(
        self, subject: str, data: bytes, *, timeout: float, headers: bytes, fails_on_disconnect: bool
    ) -> asyncio.Future[Message]:
        """Send a request and return what will be its reply; arguments and errors as for `request`."""
        waiter = _Waiter(subject, None, fails_on_disconnect, timeout)
        self._begin(waiter, data, headers)
        return waiter.done

    def _begin(self, waiter: _Waiter, data: bytes, headers: bytes) -> str:
        """Send a request and remember who waits; returns the last token of the reply's subject."""
        self._count += 1
        token = f"{self._count:x}"
        self._send(waiter.subject, data, headers, f"{self.prefix}.{token}")
        self._waiting[token] = waiter
        self._alarm.by(waiter.deadline)
        return token

    def _expire(self) -> None:
        """Fail those whose time is over, and come back for the next."""
        now = asyncio.get_running_loop().time()
        for token, waiter in list(self._waiting.items()):
            if waiter.deadline <= now:
                self._fail(token, RequestTimeoutError(waiter.subject, waiter.timeout))
            else:
                self._alarm.by(waiter.deadline)

    def receive(self, message: Message) -> None:
        """Hand a reply to who waits for it; a late one is dropped."""
        token = message.subject[len(self.prefix) + 1 :]
        waiter = self._waiting.get(token)
        if waiter is None or (waiter.collect is not None and not waiter.collect(message)):
            return
        del self._waiting[token]
        if not waiter.done.done():
            waiter.done.set_result(message)

    def refuse(self, subject: str, error: NatterjackError) -> bool:
        """Fail those who wait on a subject; returns whether anybody did."""
        tokens = [token for token, waiter in self._waiting.items() if waiter.subject == subject]
        for token in tokens:
            self._fail(token, error)
        return bool(tokens)

    def disconnected(self, error: NatterjackError, *, for_good: bool) -> None:
        """Fail those whose reply cannot come any more."""
        for token, waiter in list(self._waiting.items()):
            if for_good or waiter.fails_on_disconnect:
                self._fail(token, error)
        if for_good:
            self._alarm.stop()

    def _fail(self, token: str, error: NatterjackError) -> None:
        waiter = self._waiting.pop(token)
        if not waiter.done.done():
            waiter.done.set_exception(error)


class Replies:
    """What comes back on one request, in order, until it is closed.

    Args:
        send: Says that somebody still waits, to an answerer in another account: of that, the server tells it nothing.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._arrived: deque[Message] = deque()
        self._size = 0
        self._look = asyncio.Event()

    def attach(self, failed: asyncio.Future[Message], close: Callable[[], None]) -> None:
        """Learn from a future when no more can come, and how to close."""
        self._failed, self._close = failed, close
        failed.add_done_callback(self._wake)

    def _wake(self, failed: asyncio.Future[Message]) -> None:
        if not failed.cancelled():
            failed.exception()  # seen, even if nobody reads on
        self._look.set()

    def collect(self, message: Message) -> bool:
        """Take one that arrived; it is never the last."""
        if message.reply.startswith(FAR):
            self._send(message.reply, b"", b"", "")
        self._arrived.append(message)
        self._size += len(message.data)
        self._look.set()
        if self._size > ROOM and not self._failed.done():
            self._failed.set_exception(BrokerError(f"{self._size:,} bytes were sent faster than they are read"))
        return False

    async def next(self, patience: float) -> Message | None:
        """Return the next one, or None after so many seconds without any.

        Raises:
            RequestTimeoutError: The request's own time is over.
            RefusedError: The broker does not allow the request.
            DisconnectedError: The connection went, so that some may be lost.
            BrokerError: They came too fast.
        """
        while not self._arrived:
            if self._failed.done():
                self._failed.result()
            self._look.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._look.wait()
            except TimeoutError:
                return None
        message = self._arrived.popleft()
        self._size -= len(message.data)
        return message

    def close(self) -> None:
        """Wait no more; what still comes is dropped."""
        self._close()


class Requests:
    """Requests and their replies, as the bus offers them."""

    _mailbox: Mailbox
    server: Server

    @staticmethod
    def stamped(envelope: Envelope) -> dict[str, str]:
        """Return the one header that carries an envelope."""
        return {codec.HEADER: codec.pack(envelope)}

    def envelope_of(self, message: Message) -> Envelope:
        """Return what came with a message in that header; raise `PayloadError` if it is malformed.

        Where the broker attests who sends, that is its source; only the operator may speak for others.
        """
        envelope = envelope_of(message)
        sender = sender_of(message) if self.server.attests else ""
        if not sender or (sender == OPERATOR and envelope.source):
            return envelope
        return envelope._replace(source=sender)

    async def request(
        self,
        subject: str,
        data: bytes = b"",
        *,
        timeout: float,
        headers: Mapping[str, str] | None = None,
        fails_on_disconnect: bool = False,
    ) -> Message:
        """Send a request and return its one reply.

        Args:
            subject: Where to.
            data: Payload.
            timeout: Seconds.
            headers: Headers.
            fails_on_disconnect: Raise as soon as the connection goes, for what may be sent again.

        Raises:
            NoRespondersError: Nobody listens there, known in a millisecond.
            RequestTimeoutError: No reply in time.
            RefusedError: The broker does not allow it, known in a millisecond.
            DisconnectedError: The connection is closed, or went meanwhile.
        """
        reply = await self._mailbox.request(
            subject, data, timeout=timeout, headers=encode(headers), fails_on_disconnect=fails_on_disconnect
        )
        return answered(subject, reply)

    def ask(
        self, subject: str, data: bytes, *, timeout: float, headers: bytes, fails_on_disconnect: bool
    ) -> asyncio.Future[Message]:
        """Send a request and return what will be its reply, within `timeout` seconds; `answered` reads it."""
        return self._mailbox.post(
            subject, data, timeout=timeout, headers=headers, fails_on_disconnect=fails_on_disconnect
        )

    async def request_many(
        self,
        subject: str,
        data: bytes = b"",
        *,
        timeout: float,
        until: Callable[[Message], bool],
    ) -> list[Message]:
        """Send a request and collect replies, until `until` says that one was the last, within `timeout` seconds.

        Raises:
            RequestTimeoutError: The last did not come in time.
            NoRespondersError: Nobody listens there.
        """
        replies: list[Message] = []

        def collect(message: Message) -> bool:
            replies.append(message)
            return status_of(message) == NO_RESPONDERS or until(message)

        await self._mailbox.request(subject, data, timeout=timeout, collect=collect, fails_on_disconnect=True)
        if status_of(replies[-1]) == NO_RESPONDERS:
            raise NoRespondersError(subject)
        return replies

    def open(self, subject: str, data: bytes, *, timeout: float, headers: Mapping[str, str] | None = None) -> Replies:
        """Send a request and return its replies, however many come within `timeout` seconds; close them in the end."""
        return self._mailbox.open(subject, data, timeout=timeout, headers=encode(headers))

    async def gather(self, subject: str, *, window: float) -> list[Message]:
        """Send a request to everybody who listens and return what comes within `window` seconds."""
        replies: list[Message] = []

        def collect(message: Message) -> bool:
            if status_of(message) == NO_RESPONDERS:
                return True
            replies.append(message)
            return False

        try:
            await self._mailbox.request(subject, b"", timeout=window, collect=collect)
        except RequestTimeoutError:
            return replies
        return replies


def answered(subject: str, reply: Message) -> Message:
    """Return what came back on a request.

    Raises:
        NoRespondersError: Nobody listens there.
    """
    if not reply.data and status_of(reply) == NO_RESPONDERS:
        raise NoRespondersError(subject)
    return reply


def status_of(message: Message) -> str:
    """Return the status that the server put in place of a payload: `503`, `404`, `408`, …; usually empty.

    A stored message never is one, whatever its own headers pretend.
    """
    headers = message.headers
    return "" if headers is None or "Nats-Stream" in headers else headers.get("Status", "")


def envelope_of(message: Message) -> Envelope:
    """Return what came with a message in its `Natterjack` header.

    Raises:
        PayloadError: The header is malformed.
    """
    headers = message.headers
    return codec.unpack(headers.get(codec.HEADER)) if headers else Envelope()


def sender_of(message: Message) -> str:
    """Return the principal from whose account a request came; empty: from one's own.

    Raises:
        PayloadError: What says so is not the server's.
    """
    told = (message.headers or {}).get("Nats-Request-Info")
    try:
        return Server.principal_of(orjson.loads(told)) if told else ""
    except (ValueError, LookupError, TypeError) as error:
        msg = f"{told!r:.100} is no Nats-Request-Info; leave this header to the server"
        raise PayloadError(msg) from error


def error_of(message: Message) -> tuple[int, str] | None:
    """Return code and text of a service error (ADR-32), or None for an ordinary reply."""
    headers = message.headers
    if not headers or (codec.ERROR not in headers and codec.ERROR_CODE not in headers):
        return None
    code = headers.get(codec.ERROR_CODE, "500")
    return (int(code) if re.fullmatch("[0-9]{3}", code) else 500), headers.get(codec.ERROR, "")
