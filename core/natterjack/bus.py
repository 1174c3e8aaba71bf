"""The bus: one connection to NATS, and the only module that imports `nats`.

It adds to nats-py what the kernel needs and the client lacks: errors at once where the server refuses
something, replies without a timer and a task each, stores that survive a restart of the server without storing
twice, and closing that never hangs.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

import nats
import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg as Message
from nats.aio.subscription import Subscription as RawSubscription

from natterjack import codec
from natterjack.errors import (
    BrokerError,
    ConflictError,
    ConnectError,
    CredentialsError,
    DisconnectedError,
    NatterjackError,
    NoRespondersError,
    NotProvisionedError,
    PayloadError,
    RefusedError,
    RequestTimeoutError,
    StreamError,
)
from natterjack.server import API_PREFIX, Server

__all__ = ["Bus", "Message", "Stored", "Subscription", "error_of"]

log = logging.getLogger("natterjack.bus")

OLDEST_SERVER: Final = (2, 12)
STORE_BUDGET: Final = 15.0
"""Seconds a store is retried: a killed leader of a three-node cluster stalls its stream 4 to 7 s."""
_WRONG_LAST: Final = (10071, 10164)
_NOT_FOUND: Final = (10059, 10014, 10037)
_QUIET_ERRORS: Final = (ConnectionError, OSError, nats.errors.StaleConnectionError, nats.errors.UnexpectedEOF)


class Stored(NamedTuple):
    """The server's acknowledgement of a store.

    Attributes:
        sequence: Sequence in its stream.
        duplicate: Whether the stream already had a message of this id.
    """

    sequence: int
    duplicate: bool


@dataclass(slots=True)
class _Waiter:
    """Somebody waiting for one reply, or for several."""

    subject: str
    done: asyncio.Future[Message]
    collect: Callable[[Message], bool] | None = None  # returns True on the last
    fails_on_disconnect: bool = False


@dataclass(slots=True)
class Subscription:
    """Interest in a subject; `drain` lets what has arrived be handled first, `unsubscribe` does not."""

    raw: RawSubscription

    async def unsubscribe(self) -> None:
        """Stop, dropping what was not handled yet."""
        try:
            await self.raw.unsubscribe()
        except (nats.errors.ConnectionClosedError, nats.errors.BadSubscriptionError) as error:
            log.debug("unsubscribed from %s, which had ended: %s", self.raw.subject, error)

    async def drain(self) -> None:
        """Stop, after what has arrived was handled."""
        try:
            await self.raw.drain()
        except nats.errors.Error as error:
            log.debug("drained %s, which had ended: %s", self.raw.subject, error)


@dataclass(slots=True, eq=False)
class Bus:
    """One principal's connection. Make it with `Bus.connect`.

    Attributes:
        server: Where it is connected.
        principal: As whom.
        closed: Set once the connection is gone for good; `reason` then says why.
    """

    server: Server
    principal: str
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""
    _nc: Client = field(default_factory=Client)
    _waiting: dict[str, _Waiter] = field(default_factory=dict)
    _denied: dict[str, str] = field(default_factory=dict)
    _connected: asyncio.Event = field(default_factory=asyncio.Event)
    _on_reconnect: list[Callable[[], None]] = field(default_factory=list)
    _on_slow: dict[int, Callable[[], None]] = field(default_factory=dict)
    _inbox: str = ""
    _ids: str = field(default_factory=lambda: secrets.token_urlsafe(16))  # 128 random bits [R6]
    _count: int = 0
    _closing: bool = False
    _last_error: Exception | None = None

    # Connecting and closing

    @classmethod
    async def connect(cls, server: Server, *, principal: str, timeout: float = 5.0) -> Self:
        """Connect, or say at once why not; afterwards it reconnects for ever.

        Args:
            server: Where, and with which credentials.
            principal: Names the connection and its inbox, `_INBOX.<principal>.…`.
            timeout: Seconds for the first connection.

        Raises:
            CredentialsError: The server refuses the credentials, or a file of them cannot be read.
            ConnectError: No server answers, or it is too old.
        """
        bus = cls(server, principal)
        try:
            async with asyncio.timeout(timeout):
                await bus._nc.connect(**bus._options())
        except TimeoutError as error:
            await bus.close()
            raise ConnectError(bus._failure(error)) from error
        except (nats.errors.Error, OSError, ValueError) as error:
            await bus.close()
            raise bus._connect_error(error) from error
        try:
            await bus._begin()
        except BaseException:
            await bus.close()
            raise
        return bus

    def _options(self) -> dict[str, Any]:
        server = self.server
        options: dict[str, Any] = {
            "servers": server.urls,
            "name": f"natterjack {self.principal}",
            "inbox_prefix": f"_INBOX.{self.principal}",
            "allow_reconnect": False,  # the first time: fail at once instead of retrying for two minutes
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0.05,
            "error_cb": self._error,
            "disconnected_cb": self._disconnected,
            "reconnected_cb": self._reconnected,
            "closed_cb": self._closed,
            "tls": server.tls(),
        }
        if server.nkey:
            options["nkeys_seed_str" if server.nkey.startswith("SU") else "nkeys_seed"] = server.nkey
        options |= {"token": server.token, "user": server.user, "password": server.password}
        return {key: value for key, value in (options | {"user_credentials": server.creds}).items() if value is not None}

    def _connect_error(self, error: Exception) -> ConnectError:
        text = f"{error} {self._last_error or ''}".lower()
        if isinstance(error, FileNotFoundError | PermissionError):
            return CredentialsError(f"the credentials for {self.server} cannot be read: {error}")
        if "authorization" in text or "authentication" in text or "nkey" in text or "jwt" in text:
            msg = f"{self.server} refuses these credentials ({_clean(error)}). Check the token, nkey or creds file."
            return CredentialsError(msg)
        return ConnectError(self._failure(error))

    def _failure(self, error: Exception) -> str:
        cause = _clean(self._last_error or error)
        return f"no NATS server answers at {self.server} ({cause}). Start one with `natterjack broker run`."

    async def _begin(self) -> None:
        version = self._nc.connected_server_version
        if (version.major, version.minor) < OLDEST_SERVER:
            wanted = ".".join(str(part) for part in OLDEST_SERVER)
            msg = f"{self.server} runs nats-server {version.major}.{version.minor}, but {wanted} or newer is needed."
            raise ConnectError(msg)
        self._nc.options |= {"allow_reconnect": True, "max_reconnect_attempts": -1, "reconnect_time_wait": 0.2}
        self._inbox = f"_INBOX.{self.principal}.{secrets.token_hex(8)}"
        self._connected.set()
        await self.subscribe(f"{self._inbox}.*", self._reply)

    async def close(self, timeout: float = 5.0) -> None:
        """Send what is buffered and close, within a deadline in seconds. Closing twice is fine."""
        self._closing = True
        try:
            async with asyncio.timeout(timeout):
                await self._nc.close()
        except (TimeoutError, nats.errors.Error, OSError) as error:
            log.debug("closing the connection to %s: %s", self.server, error)
        self._end("the connection was closed")

    def _end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._connected.clear()
        self.closed.set()
        self._fail_waiters(lambda _: True)

    async def flush(self) -> None:
        """Wait until the server has seen all that was sent.

        Raises:
            DisconnectedError: The connection went meanwhile.
        """
        try:
            # nats-py writes its PING ahead of what is still buffered, so that alone would prove nothing.
            await self._nc._flush_pending(force_flush=True)
            await self._nc.flush()
        except (nats.errors.Error, OSError) as error:
            raise DisconnectedError(f"{self.server} did not confirm: {_clean(error)}") from error

    # What the connection tells

    @property
    def connected(self) -> bool:
        """Whether the connection is up at this moment."""
        return bool(self._nc.is_connected)

    @property
    def max_payload(self) -> int:
        """Bytes a message may have on this server."""
        return int(self._nc.max_payload)

    @property
    def version(self) -> str:
        """The server's version."""
        return str(self._nc.connected_server_version)

    @asynccontextmanager
    async def reconnects(self, callback: Callable[[], None]) -> AsyncIterator[None]:
        """Within the context, call `callback` after each reconnect."""
        self._on_reconnect.append(callback)
        try:
            yield
        finally:
            self._on_reconnect.remove(callback)

    async def _error(self, error: Exception) -> None:
        self._last_error = error
        text = str(error)
        if "permissions violation" in text.lower():
            self._refused(text)
        elif isinstance(error, nats.errors.SlowConsumerError):
            self._slow(error)
        elif isinstance(error, _QUIET_ERRORS) or not self._connected.is_set():
            log.debug("%s: %s", self.server, _clean(error))
        else:
            log.error("%s: %s", self.server, _clean(error), exc_info=error if error.__traceback__ else None)

    def _refused(self, text: str) -> None:
        """Fail whoever waits on the subject; nats-py has lower-cased it."""
        parts = text.split('"')
        subject = parts[1] if len(parts) > 1 else ""
        subscribing = "subscription" in text.lower()
        message = f"the broker refuses {self.principal!r} to {'subscribe to' if subscribing else 'publish on'} {subject!r}"
        if subscribing:
            self._denied[subject.lower()] = message
            return
        waiters = [waiter for waiter in self._waiting.values() if waiter.subject.lower() == subject.lower()]
        for waiter in waiters:
            _fail(waiter.done, RefusedError(message))
        if not waiters:
            log.error("%s", message)

    def _slow(self, error: nats.errors.SlowConsumerError) -> None:
        log.warning("messages on %s came faster than they were handled; some were dropped", error.subject)
        callback = self._on_slow.get(error.sid)
        if callback is not None:
            callback()

    async def _disconnected(self) -> None:
        self._connected.clear()
        if not self._closing:
            log.info("%s: disconnected from %s, reconnecting", self.principal, self.server)
        self._fail_waiters(lambda waiter: waiter.fails_on_disconnect)

    async def _reconnected(self) -> None:
        log.info("%s: reconnected to %s", self.principal, self.server)
        self._connected.set()
        for callback in list(self._on_reconnect):
            callback()

    async def _closed(self) -> None:
        if not self._closing:
            self._end(f"{self.server} closed the connection ({_clean(self._last_error) if self._last_error else 'no reason given'})")
            log.error("%s: %s", self.principal, self.reason)

    def _fail_waiters(self, chosen: Callable[[_Waiter], bool]) -> None:
        for waiter in self._waiting.values():
            if chosen(waiter):
                _fail(waiter.done, DisconnectedError(f"the connection to {self.server} went before a reply came"))

    # Publishing, subscribing

    async def publish(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Publish without an acknowledgement; while reconnecting it is buffered.

        Raises:
            PayloadError: Larger than the server takes.
            DisconnectedError: The connection is closed, or its buffer full.
        """
        try:
            await self._nc.publish(subject, data, reply, headers)
        except nats.errors.MaxPayloadError as error:
            raise PayloadError(self._too_large(data)) from error
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            raise DisconnectedError(self.reason or "the connection is closed") from error
        except nats.errors.OutboundBufferLimitError as error:
            raise DisconnectedError(f"{self.server} is away and the buffer for it is full") from error

    def _too_large(self, data: bytes) -> str:
        return (
            f"the payload has {len(data):,} bytes but the server takes {self.max_payload:,}; "
            "send a reference to the data instead"
        )

    async def subscribe(
        self,
        subject: str,
        callback: Callable[[Message], Awaitable[None]],
        *,
        queue: str = "",
        on_lost: Callable[[], None] | None = None,
    ) -> Subscription:
        """Subscribe, and return once the server knows.

        Args:
            subject: Pattern.
            callback: A coroutine function; calls of one subscription come one after another.
            queue: Queue group.
            on_lost: Called when messages were dropped because the callback is too slow.

        Raises:
            RefusedError: The broker does not allow it.
        """
        try:
            raw = await self._nc.subscribe(subject, queue=queue, cb=callback)
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            raise DisconnectedError(self.reason or "the connection is closed") from error
        if on_lost is not None:
            self._on_slow[raw._id] = on_lost
        await self.flush()
        denied = self._denied.pop(subject.lower(), None)
        if denied is not None:
            raise RefusedError(denied)
        return Subscription(raw)

    # Requests

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
        waiter = _Waiter(subject, asyncio.get_running_loop().create_future(), None, fails_on_disconnect)
        reply = await self._wait_for(waiter, data, headers, timeout)
        if reply.headers and reply.headers.get("Status") == "503" and not reply.data:
            raise NoRespondersError(subject)
        return reply

    async def request_many(
        self,
        subject: str,
        data: bytes = b"",
        *,
        timeout: float,
        until: Callable[[Message], bool],
    ) -> list[Message]:
        """Send a request and collect replies, until `until` says that one was the last.

        Raises:
            RequestTimeoutError: The last did not come in time.
            NoRespondersError: Nobody listens there.
        """
        replies: list[Message] = []

        def collect(message: Message) -> bool:
            replies.append(message)
            return until(message)

        waiter = _Waiter(subject, asyncio.get_running_loop().create_future(), collect, fails_on_disconnect=True)
        await self._wait_for(waiter, data, None, timeout)
        if _status(replies[0]) == "503":
            raise NoRespondersError(subject)
        return replies

    async def gather(self, subject: str, *, window: float) -> list[Message]:
        """Send a request to everybody who listens and return what comes within `window` seconds."""
        replies: list[Message] = []

        def collect(message: Message) -> bool:
            if _status(message) == "503":
                return True
            replies.append(message)
            return False

        waiter = _Waiter(subject, asyncio.get_running_loop().create_future(), collect)
        try:
            await self._wait_for(waiter, b"", None, window)
        except RequestTimeoutError:
            return replies
        return replies

    async def _wait_for(
        self, waiter: _Waiter, data: bytes, headers: Mapping[str, str] | None, timeout: float
    ) -> Message:
        self._count += 1
        token = f"{self._count:x}"
        self._waiting[token] = waiter
        timer = asyncio.get_running_loop().call_later(timeout, _expire, waiter, timeout)
        try:
            await self.publish(waiter.subject, data, headers=headers, reply=f"{self._inbox}.{token}")
            return await waiter.done
        finally:
            timer.cancel()
            del self._waiting[token]
            waiter.done.cancel()

    async def _reply(self, message: Message) -> None:
        waiter = self._waiting.get(message.subject[len(self._inbox) + 1 :])
        if waiter is None or waiter.done.done():
            return
        if waiter.collect is None or waiter.collect(message) or _status(message) == "503":
            waiter.done.set_result(message)

    # JetStream

    async def api(self, name: str, body: Mapping[str, Any] | None = None, *, timeout: float = 10.0) -> dict[str, Any]:
        """Call the JetStream API, e.g. `STREAM.INFO.EVENTS`, and return its answer.

        Raises:
            NotProvisionedError: The stream, consumer or message it names does not exist.
            StreamError: JetStream refuses; it carries the code.
            BrokerError: JetStream is not enabled.
        """
        data = orjson.dumps(body) if body else b""
        try:
            reply = await self.request(f"{self.server.prefix}.{name}", data, timeout=timeout, fails_on_disconnect=True)
        except NoRespondersError as error:
            msg = f"{self.server} has no JetStream for {self.principal!r}. Start nats-server with -js."
            raise BrokerError(msg) from error
        answer: dict[str, Any] = orjson.loads(reply.data)
        error = answer.get("error")
        if error and error.get("err_code") in _NOT_FOUND:
            raise NotProvisionedError(".".join(name.split(".")[-2 if "CONSUMER" in name else -1 :]))
        if error:
            raise StreamError(error.get("err_code", 0), error.get("description", ""), name)
        return answer

    async def store(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,  # noqa: A002 - the field's word
        expect: int | None = None,
        stream: str = "",
        budget: float = STORE_BUDGET,
    ) -> Stored:
        """Publish into a stream and return once it is stored, trying again while the server is away.

        Args:
            subject: A subject that a stream captures.
            data: Payload.
            headers: Headers beside the deduplication id.
            id: Deduplication id; by default an unguessable one [R6].
            expect: Last sequence that the subject must have (0: none), for compare-and-set.
            stream: The stream's name, needed with `expect` to tell a lost ack from a lost race [R5].
            budget: Seconds to go on trying.

        Raises:
            ConflictError: `expect` did not hold.
            NotProvisionedError: No stream captures the subject.
            StreamError: The stream refuses, e.g. because it is full.
        """
        if len(data) > self.max_payload > 0:
            raise PayloadError(self._too_large(data))
        message_id = id or self.new_id()
        sent = {**(headers or {}), codec.MSG_ID: message_id}
        if expect is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expect)
        deadline = time.monotonic() + budget
        pause, tried = 0.02, 0
        while True:
            tried += 1
            try:
                return await self._store_once(subject, data, sent, min(5.0, max(0.05, deadline - time.monotonic())))
            except (RequestTimeoutError, DisconnectedError, NoRespondersError) as error:
                if isinstance(error, NoRespondersError) and tried == 1:
                    await self._check_stream(subject)
                if self.closed.is_set() or time.monotonic() + pause > deadline:
                    raise
                await asyncio.sleep(pause)
                pause = min(1.0, pause * 2)
            except ConflictError:
                ours = await self._stored_already(stream, subject, message_id) if tried > 1 and stream else None
                if ours is None:
                    raise
                return ours

    async def _store_once(self, subject: str, data: bytes, headers: Mapping[str, str], timeout: float) -> Stored:
        if not self._connected.is_set():
            try:
                async with asyncio.timeout(timeout):
                    await self._connected.wait()
            except TimeoutError as error:
                raise DisconnectedError(f"{self.server} is away since more than {timeout:.0f} s") from error
        reply = await self.request(subject, data, timeout=timeout, headers=headers, fails_on_disconnect=True)
        try:
            ack = orjson.loads(reply.data)
        except orjson.JSONDecodeError as error:
            raise BrokerError(f"{subject!r} is answered by somebody else than JetStream: {reply.data[:80]!r}") from error
        problem = ack.get("error")
        if problem is None:
            return Stored(ack["seq"], ack.get("duplicate", False))
        if problem.get("err_code") in _WRONG_LAST:
            raise ConflictError(f"{subject!r} was written by somebody else meanwhile ({problem['description']})")
        raise StreamError(problem.get("err_code", 0), problem.get("description", ""), subject)

    async def _check_stream(self, subject: str) -> None:
        """Tell a missing stream, which no retry mends, from one whose leader is being elected."""
        try:
            found = await self.api("STREAM.NAMES", {"subject": subject}, timeout=2.0)
        except (NatterjackError, TimeoutError) as error:
            log.debug("cannot tell whether a stream captures %s: %s", subject, error)
            return
        if not found.get("streams"):
            raise NotProvisionedError(f"a stream for {subject!r}")

    async def _stored_already(self, stream: str, subject: str, message_id: str) -> Stored | None:
        """A conflict after a retry may be our own first try, whose ack was lost: look at the id [R5]."""
        last = await self.last(stream, subject)
        if last is None or (last.headers or {}).get(codec.MSG_ID) != message_id:
            return None
        return Stored(int(last.headers["Nats-Sequence"]), duplicate=True)

    async def last(self, stream: str, subject: str, *, timeout: float = 5.0) -> Message | None:
        """Return the newest message on a subject of a stream with direct access, or None."""
        name = f"{self.server.prefix}.DIRECT.GET.{stream}.{subject}"
        reply = await self.request(name, timeout=timeout, fails_on_disconnect=True)
        if _status(reply) == "404":
            return None
        return reply

    def new_id(self) -> str:
        """Return a fresh deduplication id that nobody else can guess [R6]."""
        self._count += 1
        return f"{self._ids}{self._count:x}"


def error_of(message: Message) -> tuple[int, str] | None:
    """Return code and text of a service error (ADR-32), or None for an ordinary reply."""
    headers = message.headers
    if not headers or (codec.ERROR not in headers and codec.ERROR_CODE not in headers):
        return None
    code = headers.get(codec.ERROR_CODE, "500")
    return (int(code) if code.isdigit() else 500), headers.get(codec.ERROR, "")


def _status(message: Message) -> str:
    return (message.headers or {}).get("Status", "")


def _fail(future: asyncio.Future[Message], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _expire(waiter: _Waiter, timeout: float) -> None:
    _fail(waiter.done, RequestTimeoutError(waiter.subject, timeout))


def _clean(error: Exception) -> str:
    """Return an error's own words: without nats-py's prefix, never empty."""
    return str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__
