"""The bus: one connection to NATS, and the only module that imports `nats`.

It adds to nats-py what the kernel needs and the client lacks: errors at once where the server refuses
something, replies without a timer and a task each, stores that survive a restart of the server without storing
twice, and closing that never hangs.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription as RawSubscription

from natterjack import codec
from natterjack.errors import (
    ConnectError,
    CredentialsError,
    DisconnectedError,
    NoRespondersError,
    RefusedError,
    RequestTimeoutError,
)
from natterjack.mailbox import Mailbox, Message, status_of
from natterjack.server import Server
from natterjack.streams import Stored, Streams

__all__ = ["Bus", "Message", "Stored", "Subscription", "error_of", "status_of"]

log = logging.getLogger("natterjack.bus")

OLDEST_SERVER: Final = (2, 12)
NO_RESPONDERS: Final = "503"
_QUIET_ERRORS: Final = (ConnectionError, OSError, nats.errors.StaleConnectionError, nats.errors.UnexpectedEOF)


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
            await self.raw.drain()  # type: ignore[no-untyped-call]
        except nats.errors.Error as error:
            log.debug("drained %s, which had ended: %s", self.raw.subject, error)


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
        self.closed = asyncio.Event()
        self.reason = ""
        self._nc = Client()
        self._mailbox = Mailbox(f"_INBOX.{principal}.{secrets.token_hex(8)}", self._publish)
        self._connected = asyncio.Event()
        self._closing = False
        self._denied: dict[str, str] = {}
        self._on_reconnect: list[Callable[[], None]] = []
        self._on_slow: dict[int, Callable[[], None]] = {}
        self._last_error: Exception | None = None

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
        return {
            key: value for key, value in (options | {"user_credentials": server.creds}).items() if value is not None
        }

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
        self._connected.set()
        await self.subscribe(f"{self._mailbox.prefix}.*", self._mailbox.receive)

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
        self._mailbox.disconnected(DisconnectedError(self.reason), for_good=True)

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
            msg = f"{self.server} did not confirm: {_clean(error)}"
            raise DisconnectedError(msg) from error

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
        message = (
            f"the broker refuses {self.principal!r} to {'subscribe to' if subscribing else 'publish on'} {subject!r}"
        )
        if subscribing:
            self._denied[subject.lower()] = message
            return
        if not self._mailbox.refuse(subject.lower(), RefusedError(message)):
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
        error = DisconnectedError(f"the connection to {self.server} went before a reply came")
        self._mailbox.disconnected(error, for_good=False)

    async def _reconnected(self) -> None:
        log.info("%s: reconnected to %s", self.principal, self.server)
        self._connected.set()
        for callback in list(self._on_reconnect):
            callback()

    async def _closed(self) -> None:
        if not self._closing:
            reason = _clean(self._last_error) if self._last_error else "no reason given"
            self._end(f"{self.server} closed the connection ({reason})")
            log.error("%s: %s", self.principal, self.reason)

    async def until_connected(self, timeout: float) -> None:
        """Return once the connection is up.

        Raises:
            DisconnectedError: It is not, after `timeout` seconds.
        """
        if self._connected.is_set():
            return
        try:
            async with asyncio.timeout(timeout):
                await self._connected.wait()
        except TimeoutError as error:
            msg = f"{self.server} is away since more than {timeout:.0f} s"
            raise DisconnectedError(msg) from error

    # Publishing, subscribing

    async def publish(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Publish without an acknowledgement; while reconnecting it is buffered.

        Raises:
            PayloadError: Larger than the server takes.
            DisconnectedError: The connection is closed, or its buffer full.
        """
        await self._publish(subject, data, headers, reply)

    async def _publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None, reply: str) -> None:
        self.check_size(data, headers)
        try:
            await self._nc.publish(subject, data, reply, headers)  # type: ignore[arg-type]  # it only reads them
        except (nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError) as error:
            raise DisconnectedError(self.reason or "the connection is closed") from error
        except nats.errors.OutboundBufferLimitError as error:
            msg = f"{self.server} is away and the buffer for it is full"
            raise DisconnectedError(msg) from error

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
        mailbox = self._mailbox
        reply = await mailbox.request(
            subject, data, timeout=timeout, headers=headers, fails_on_disconnect=fails_on_disconnect
        )
        if not reply.data and status_of(reply) == NO_RESPONDERS:
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
            return status_of(message) == NO_RESPONDERS or until(message)

        await self._mailbox.request(subject, data, timeout=timeout, collect=collect, fails_on_disconnect=True)
        if status_of(replies[-1]) == NO_RESPONDERS:
            raise NoRespondersError(subject)
        return replies

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


def error_of(message: Message) -> tuple[int, str] | None:
    """Return code and text of a service error (ADR-32), or None for an ordinary reply."""
    headers = message.headers
    if not headers or (codec.ERROR not in headers and codec.ERROR_CODE not in headers):
        return None
    code = headers.get(codec.ERROR_CODE, "500")
    return (int(code) if re.fullmatch("[0-9]{3}", code) else 500), headers.get(codec.ERROR, "")


def _clean(error: Exception) -> str:
    """Return an error's own words: without nats-py's prefix, never empty."""
    return str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__
