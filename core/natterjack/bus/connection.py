"""The bus: one connection to NATS.

It adds to nats-py what the kernel needs and the client lacks: errors at once where the server refuses
something, replies without a timer and a task each, stores that survive a restart of the server without storing
twice, and closing that never hangs.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, Self

import nats
import nats.errors
from nats.aio.subscription import Subscription as RawSubscription

from natterjack.bus.headers import encode as encode_headers
from natterjack.bus.lapse import Lapse
from natterjack.bus.login import check_server_version, login_error, login_options, own_words
from natterjack.bus.mailbox import Mailbox, Message
from natterjack.bus.rawclient import RawClient
from natterjack.bus.silence import Silence
from natterjack.bus.stored import Stored
from natterjack.bus.streams import Streams, too_large
from natterjack.bus.subscription import Attempt, Subscription
from natterjack.errors import DisconnectedError, NatterjackError, PayloadError, RefusedError, RequestTimeoutError
from natterjack.server import API_PREFIX, Server
from natterjack.subjects import ANYONE, OPERATOR

log = logging.getLogger("natterjack.bus")

_QUIET_ERRORS: Final = (ConnectionError, OSError, nats.errors.StaleConnectionError, nats.errors.UnexpectedEOF)


class Bus(Streams):
    """One principal's connection. Make it with `Bus.connect`.

    Attributes:
        server: Where it is connected.
        principal: As whom.
        closed: Set once the connection is gone for good; `reason` then says why.
    """

    def __init__(self, server: Server, principal: str) -> None:
        super().__init__()
        self.server, self.principal = server, principal
        self.operates = principal == OPERATOR
        self.closed = asyncio.Event()
        self.reason = ""
        self._nc = RawClient(server.tls)
        self._lapse = self._nc.lapse = Lapse(server, principal)
        self._mailbox = Mailbox(f"_INBOX.{principal}.{secrets.token_hex(8)}", self.send)
        self._connected = asyncio.Event()
        self._began = self._closing = False
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._subscribing: list[Attempt] = []
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_slow: dict[int, Callable[[], None]] = {}
        self._last_error: Exception | None = None
        self._complaint = ""
        self._silence = Silence()

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
            ConfigError: The token is somebody else's.
        """
        server = server.of(principal)
        bus = cls(server, principal)
        try:
            async with asyncio.timeout(timeout):
                await bus._nc.connect(**login_options(server, principal) | bus._callbacks())
            await bus._begin()
        except BaseException as error:
            await bus.close(0.1)  # nothing is buffered yet, and after a failed TLS handshake it would hang
            if isinstance(error, NatterjackError) or not isinstance(error, Exception):
                raise
            raise login_error(server, error, bus._last_error) from error  # nkeys has its own errors
        return bus

    def _callbacks(self) -> dict[str, Any]:
        return {
            "error_cb": self._error,
            "disconnected_cb": self._disconnected,
            "reconnected_cb": self._reconnected,
            "closed_cb": self._closed,
        }

    async def _begin(self) -> None:
        if not self.connected:  # nats-py takes the end of the stream for an answer
            msg = "the server hung up; it may want a client certificate"
            raise nats.errors.Error(msg)
        check_server_version(self.server, *self.version[:2])
        self._nc.options |= {"allow_reconnect": True, "max_reconnect_attempts": -1, "reconnect_time_wait": 0.2}
        self._began = True
        self._up()
        await self.listen(f"{self._mailbox.prefix}.*", self._mailbox.receive)

    def _up(self) -> None:
        self._gone = asyncio.get_running_loop().create_future()
        self._complaint = ""
        self._lapse.ended()
        self._connected.set()

    def _down(self) -> None:
        self._connected.clear()
        if not self._gone.done():
            self._gone.set_result(None)

    @property
    def author(self) -> str:
        """As whose the broker stores what it publishes."""
        return self.principal if self.server.attests else ANYONE

    def seal(self, id: str) -> str:
        """Return a deduplication id that only this principal can make; the same for each of its processes.

        Deduplication ids are of a whole stream: who used another's first would keep that one's event out [R6].
        """
        return self._nc.seal(id)

    async def close(self, timeout: float = 5.0) -> None:
        """Send what is buffered and close, within a deadline in seconds. Closing twice is fine."""
        self._closing = True
        try:
            try:
                await self.audit.settle(timeout / 2)
            finally:  # also where that was cancelled: it would stay connected for ever
                async with asyncio.timeout(timeout / 2):
                    if self._nc._flush_queue is not None:  # else it never began to connect, and cannot be closed
                        await self._nc.close()
        except (TimeoutError, nats.errors.Error, OSError) as error:
            log.debug("closing the connection to %s: %s", self.server, error)
        finally:
            self._end("the connection was closed")

    def _end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self._down()
        self.closed.set()
        self._connected.set()  # wakes who waits for it, to be told why that is in vain
        self._mailbox.disconnected(DisconnectedError(self.reason), for_good=True)
        for callback in list(self._on_slow.values()):
            callback()

    async def flush(self, timeout: float = 10.0) -> None:
        """Wait until the server has seen all that was sent.

        Args:
            timeout: Seconds, for a reconnect, too.

        Raises:
            DisconnectedError: The connection went meanwhile, or is away.
        """
        await self.until_connected(timeout)
        pong, gone = asyncio.get_running_loop().create_future(), self._gone
        # nats-py's own flush writes its PING ahead of what is still buffered, and waits on after a disconnect.
        self._nc._pongs.append(pong)
        await self._nc._send_command(b"PING\r\n")
        await self._nc._flush_pending()
        await asyncio.wait({pong, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not pong.done():
            why = "the connection went" if gone.done() else f"nothing came within {timeout:g} s"
            msg = f"{self.server} did not confirm: {why}"
            raise DisconnectedError(msg)

    # What the connection tells

    @property
    def connected(self) -> bool:
        """Whether the connection is up at this moment."""
        return bool(self._nc.is_connected)

    @property
    def clustered(self) -> bool:
        """Whether its server is one of several."""
        return self._nc.clustered

    @property
    def certified_until(self) -> datetime | None:
        """When the server's certificate ends; None: there is none, or it is not known."""
        return self._nc.certified_until

    @property
    def max_payload(self) -> int:
        """Bytes a message may have on this server."""
        return int(self._nc.max_payload)

    @property
    def version(self) -> tuple[int, int, int]:
        """The server's version."""
        found = self._nc.connected_server_version
        return found.major, found.minor, found.patch

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
        text, quiet = str(error), isinstance(error, _QUIET_ERRORS) or self._closing or not self._began
        if "permissions violation" in text.lower():
            self._refused(text)
        elif isinstance(error, nats.errors.SlowConsumerError):
            self._slow(error)
        elif quiet or (not self.connected and self._lapse.note(own_words(error))):  # which says so, once
            log.debug("%s: %s", self.server, own_words(error))
        elif self.connected:
            log.error("%s: %s", self.server, own_words(error), exc_info=error if error.__traceback__ else None)
        elif text != self._complaint:  # it goes on trying, and says so once
            self._complaint = text
            log.warning("%s cannot reconnect to %s: %s", self.principal, self.server, own_words(error))

    def _refused(self, text: str) -> None:
        """Fail whoever waits on the subject."""
        parts = text.split('"')
        subject = parts[1] if len(parts) > 1 else ""
        subscribing = "for subscription to" in text.lower()  # a subject may have the word, too
        what = "subscribe to" if subscribing else "publish on"
        message = f"the broker refuses {self.principal!r} to {what} {subject!r}"
        if self.server.token and not self.server.attests and subject.startswith(API_PREFIX):
            message += f". Where each principal has an account, set NATS_PREFIX={Server.SECURED_PREFIX}"
        self.audit.refused_by_broker(message)
        attempts = [attempt for attempt in self._subscribing if subscribing and attempt.subject == subject]
        for attempt in attempts:
            attempt.refusal = message
        if not attempts and (subscribing or not self._mailbox.refuse(subject, RefusedError(message))):
            log.error("%s", message)

    def _slow(self, error: nats.errors.SlowConsumerError) -> None:
        log.warning("messages on %s came faster than they were handled; some were dropped", error.subject)
        callback = self._on_slow.get(error.sid)
        if callback is not None:
            callback()

    async def _disconnected(self) -> None:
        self._down()
        if not self._closing:
            log.info("%s: disconnected from %s, reconnecting", self.principal, self._nc.where)
        error = DisconnectedError(f"the connection to {self.server} went before a reply came")
        self._mailbox.disconnected(error, for_good=False)

    async def _reconnected(self) -> None:
        log.info("%s: reconnected to %s", self.principal, self._nc.where)
        self._up()
        for callback in list(self._on_reconnect):
            callback()

    async def _closed(self) -> None:
        if not self._closing:
            error = self._nc.last_error or self._last_error
            reason = own_words(error) if error else "no reason given"
            self._end(self._lapse.end or f"{self.server} closed the connection ({reason})")
            log.error("%s: %s", self.principal, self.reason)

    async def _store_once(self, subject: str, data: bytes, headers: bytes, timeout: float) -> Stored:
        try:
            return await super()._store_once(subject, data, headers, timeout)
        except RequestTimeoutError:
            if self._silence.lasts() and await self._nc.leave():
                log.warning("%s: its server stores nothing, and may be cut off; it goes to another", self.principal)
            raise

    async def until_connected(self, timeout: float) -> None:
        """Return once the connection is up.

        Raises:
            DisconnectedError: It is not, after `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._connected.wait()
        except TimeoutError as error:
            msg = f"{self.server} is away since more than {timeout:g} s"
            raise DisconnectedError(msg) from error
        if self.closed.is_set():
            raise DisconnectedError(self.reason)

    # Publishing, subscribing

    async def publish(
        self, subject: str, data: bytes = b"", headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Publish without an acknowledgement; while reconnecting it is buffered.

        Raises:
            PayloadError: Larger than the server takes.
            DisconnectedError: The connection is closed, or its buffer full.
        """
        self.send(subject, data, encode_headers(headers), reply)
        await self.breathe()

    async def breathe(self) -> None:
        """Wait while more is to be sent than should be kept in memory; after `send`, where more is to come."""
        if self._nc.is_full:
            await self._nc.breathe()

    def send(self, subject: str, data: bytes, headers: bytes = b"", reply: str = "") -> None:
        """Publish at once, headers given as a block; for who sends little, or waits for what comes back.

        Raises:
            PayloadError: Larger than the server takes, or the subject has blanks.
            DisconnectedError: The connection is closed, or its buffer full.
        """
        size = len(data) + len(headers)
        if size > self._nc.max_payload:
            raise too_large(size, self._nc.max_payload)
        if not subject or (subject + reply).split() != [subject + reply]:
            msg = f"{subject!r} is no subject to publish on, or {reply!r} none to reply to; use no blanks"
            raise PayloadError(msg)
        if not self._nc.is_connected:
            self._check_buffer(size)
        self._nc.write(subject, data, headers, reply)

    def _check_buffer(self, size: int) -> None:
        """Raise unless what cannot be sent now may wait until it can."""
        if self._nc.is_closed or self._closing:
            raise DisconnectedError(self.reason or "the connection is closed")
        if not self._nc.has_room(size):
            msg = f"{self.server} is away and the buffer for it is full"
            raise DisconnectedError(msg)

    async def listen(
        self, subject: str, listener: Callable[[Message], None], *, queue: str = "", confirmed: bool = True
    ) -> Subscription:
        """Subscribe by a plain function, called as soon as a message is read: it must be quick. Errors as below.

        If not `confirmed`, it returns before the server knows; what is published next still comes after.
        """
        return await self._subscribe(subject, self._nc.listen(subject, listener, queue), None, confirmed=confirmed)

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
            on_lost: Called when messages were dropped because the callback is too slow, and when the connection
                is gone for good.

        Raises:
            RefusedError: The broker does not allow it.
        """
        return await self._subscribe(subject, self._nc.subscribe(subject, queue=queue, cb=callback), on_lost)

    async def _subscribe(
        self,
        subject: str,
        subscribing: Awaitable[RawSubscription],
        on_lost: Callable[[], None] | None,
        *,
        confirmed: bool = True,
    ) -> Subscription:
        attempt, raw = Attempt(subject), None
        self._subscribing.append(attempt)
        try:
            raw = await subscribing
            if on_lost is not None:
                self._on_slow[raw._id] = on_lost
            if confirmed:
                await self.flush()
                attempt.raise_refused()
        except BaseException as error:
            if raw is not None:
                await Subscription(raw, self).unsubscribe()
            if isinstance(error, nats.errors.ConnectionClosedError | nats.errors.ConnectionDrainingError):
                raise DisconnectedError(self.reason or "the connection is closed") from error
            raise
        finally:
            self._subscribing.remove(attempt)
        return Subscription(raw, self)
