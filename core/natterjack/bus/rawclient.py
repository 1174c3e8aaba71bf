"""nats-py's client as the bus uses it: what a hostile message or a cancelled call must not do to its read loop.

And the hot paths, which nats-py walks slowly: a message is found in what was read without regular expressions, handed
to a plain function without a queue and a task, and written without a coroutine.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

import nats.errors
from nats.aio.client import Client, RawCredentials
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.protocol.parser import Parser

from natterjack.bus.headers import decode
from natterjack.bus.lapse import UNREADABLE, Lapse, read_creds

log = logging.getLogger("natterjack.bus")

_SEAL: Final = "natterjack: deduplication ids"
_MESSAGES: Final = (b"MSG", b"HMSG")
_UNUSED: Final[asyncio.Queue[Any]] = asyncio.Queue()
"""The queue of subscriptions that need none; nothing is ever put into it."""


class Incoming:
    """A message as it arrives; its headers are read when somebody asks for them."""

    __slots__ = ("_block", "_headers", "data", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, block: bytes) -> None:
        self.subject, self.reply, self.data, self._block = subject, reply, data, block
        self._headers: dict[str, str] | None = None

    @property
    def headers(self) -> dict[str, str] | None:
        """Its headers, the last of each name."""
        if self._block:
            self._headers, self._block = decode(self._block), b""
        return self._headers


Listener = Callable[[Incoming], None]


class RawParser(Parser):
    """Finds messages; every other operation is left to nats-py.

    Attributes:
        line: The last other operation, as the server has written it: nats-py lower-cases what it refuses.
    """

    def reset(self) -> None:
        """Begin anew, on a new connection."""
        super().reset()
        self._parts: list[bytes] = []
        self._wanted = 0
        self.line = b""

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read from the server: any number of operations, the last of them perhaps cut off."""
        if self._parts:
            self._parts.append(data)
            self._wanted -= len(data)
            if self._wanted > 0:
                return
            data, self._parts = b"".join(self._parts), []
        at, size = 0, len(data)
        while at < size:
            end = data.find(b"\r\n", at)
            if end < 0:
                self._parts, self._wanted = [data[at:]], 1
                return
            words, after = data[at:end].split(b" "), end + 2
            if words[0] not in _MESSAGES:
                self.line, self.buf = data[at:end], bytearray(data[at:after])
                await super().parse()
                at = after
                continue
            try:
                body, stop = after + (int(words[-2]) if words[0] == b"HMSG" else 0), after + int(words[-1])
            except (ValueError, IndexError) as error:
                raise nats.errors.ProtocolError from error
            if stop + 2 > size:
                self._parts, self._wanted = [data[at:]], stop + 2 - size
                return
            taking = self.nc.take(words, data[after:body], data[body:stop])
            if taking is not None:
                await taking
            at = stop + 2


class _Transport(TcpTransport):
    """nats-py's, without its two faults once TLS goes over it."""

    _shaking_hands = False

    def __bool__(self) -> bool:
        return True  # or nats-py makes one of its own

    async def connect_tls(self, *args: Any) -> None:
        self._shaking_hands = True
        await super().connect_tls(*args)
        self._shaking_hands = False
        writer: Any = self._io_writer
        writer._protocol._over_ssl = True  # else asyncio warns when the connection ends

    async def wait_closed(self) -> None:
        # Where the handshake has failed, asyncio tells TLS that the connection has ended, and nobody else.
        if not self._shaking_hands and self._io_writer is not None:
            await self._io_writer.wait_closed()


class RawClient(Client):
    """nats-py's client, without its ways to go deaf, to leak or to talk in the clear."""

    lapse: Lapse
    _ps: RawParser
    _flush_queue: asyncio.Queue[asyncio.Future[Any]]  # there once it begins to connect

    def __init__(self, tls: Callable[[], ssl.SSLContext | None] = lambda: None) -> None:
        """Make one that asks for its certificates each time it connects: those in files may be others by then."""
        super().__init__()
        self._tls = tls
        self._ps = RawParser(self)
        self._listeners: dict[int, Listener] = {}
        self._is_writing = False  # once this turn of the event loop ends
        self._left: Any = None
        self._seal: bytes | None = None

    # Receiving

    async def listen(self, subject: str, listener: Listener, queue: str = "") -> Subscription:
        """Subscribe by a plain function: it is called while messages are read, so it must be quick."""

        async def queued(message: Incoming) -> None:
            listener(message)

        subscription = await self.subscribe(subject, queue=queue, cb=queued)  # type: ignore[arg-type]
        self._listeners[subscription._id] = listener
        if subscription._pending_queue.empty():  # its queue and task have no more to do, and weigh 4 KB
            subscription._stop_processing()
            subscription._pending_queue = _UNUSED
        return subscription

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        self._listeners.pop(sid, None)

    def take(self, words: list[bytes], block: bytes, data: bytes) -> Awaitable[None] | None:
        """Hand a message to whom it is for, or return what does so; `words` are those of its line in the protocol.

        They are `MSG <subject> <sid> [<reply>] <size>`, or of `HMSG`, which has two sizes.
        """
        sid, subject = int(words[2]), words[1]
        reply = words[3] if len(words) == (6 if block else 5) else b""
        listener = self._listeners.get(sid)
        if listener is None:
            return self._process_msg(sid, subject, reply, data, block)
        try:
            listener(_incoming(subject, reply, data, block))
        except Exception:  # would end the read loop
            log.exception("a message on %r could not be taken", subject)
        return None

    async def _process_headers(self, headers: bytes) -> Any:
        return headers  # they are read by who wants them

    def _build_message(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> Any:
        del sid
        return _incoming(subject, reply, data, headers)

    # Sending

    def write(self, subject: str, data: bytes, block: bytes = b"", reply: str = "") -> None:
        """Send a message, its headers given as a block; `breathe` afterwards where more is to come.

        All that is sent in one turn of the event loop goes together when it ends.
        """
        if block:
            head, size = len(block), len(block) + len(data)
            command = b"%b%b%b\r\n" % (f"HPUB {subject} {reply} {head} {size}\r\n".encode(), block, data)
        else:
            command = b"%b%b\r\n" % (f"PUB {subject} {reply} {len(data)}\r\n".encode(), data)
        self._pending.append(command)
        self._pending_data_size += len(command)
        if not self._is_writing and self.is_connected:
            self._is_writing = True
            asyncio.get_running_loop().call_soon(self._write_out)

    def _write_out(self) -> None:
        """Give what is buffered to the transport; while that has not sent what it has, to nats-py's flusher."""
        self._is_writing = False
        if not self._pending or not self.is_connected:
            return
        writer = getattr(self._transport, "_io_writer", None)  # a web socket has none
        if writer is None or writer.transport.get_write_buffer_size():
            if self._flush_queue.empty():
                self._flush_queue.put_nowait(asyncio.get_running_loop().create_future())
        elif not writer.is_closing():  # else it is sent once there is a connection again
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            writer.writelines(pending)

    @property
    def is_full(self) -> bool:
        """Whether more is to be sent than should be kept in memory."""
        return self._pending_data_size > self._max_pending_size

    async def breathe(self) -> None:
        """Return once what is to be sent was given to the transport, and that has room again."""
        if self.is_connected:
            flushed = asyncio.get_running_loop().create_future()
            await self._flush_queue.put(flushed)  # nats-py's own wait for its flusher swallows a cancellation
            await flushed

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes may wait for a connection that is away."""
        return self._pending_data_size + size <= self._max_pending_size

    # Logging in

    def _connect_command(self) -> bytes:
        """Say who logs in, by what its file has now; nats-py would mix old and new, or look in it for ever."""
        file = self.lapse.file
        if file is not None:
            try:
                if self._user_credentials is not None:
                    self._user_credentials = RawCredentials(read_creds(file))
                self._setup_nkeys_connect()
            except Exception as error:  # of nkeys, which would end the attempts to reconnect
                msg = f"no {'credentials' if self._user_credentials else 'key'} {UNREADABLE} {file}: {error}"
                raise nats.errors.Error(msg) from error
        return super()._connect_command()

    def seal(self, id: str) -> str:
        """Return of an id what only who logs in as this client does can make, the same each time."""
        if self._seal is None:
            shown = self.options.get("token") or self.options.get("password")
            if self._signature_cb is not None:
                shown = self._signature_cb(_SEAL)
            given = shown.encode() if isinstance(shown, str) else bytes(shown or secrets.token_bytes(32))
            self._seal = hashlib.blake2b(given, person=b"natterjack", digest_size=32).digest()
        return hashlib.blake2b(id.encode(), key=self._seal, digest_size=16).hexdigest()

    async def _attempt_reconnect(self) -> None:
        try:
            await super()._attempt_reconnect()
        except asyncio.InvalidStateError:  # in its last line: the attempt before it, given up for it, did that as well
            log.debug("the connection went again while it came back")

    async def _select_next_server(self) -> None:
        await self.lapse.pause()
        if self.lapse.end:
            raise nats.errors.NoServersError
        self._server_pool.sort(key=lambda server: server is self._left)  # that one last
        self._left = None
        await super()._select_next_server()

    async def leave(self) -> bool:
        """Go to another server, and tell whether there is one; nats-py alone may come to the same again."""
        if len(self._server_pool) == 1:
            return False
        self._left = self._current_server
        await self.force_reconnect()
        return True

    async def _process_err(self, err_msg: str) -> None:
        if self.options["allow_reconnect"] and self.lapse.lost(err_msg):  # nats-py would close for good, in silence
            await self._process_op_err(nats.errors.Error(err_msg))
        elif "permissions violation" in err_msg:  # names a subject, and upper case is another one
            await self._error_cb(nats.errors.Error(self._ps.line.decode("utf-8", "replace")))
        else:
            await super()._process_err(err_msg)

    # Faults

    async def close(self) -> None:
        """Close. Where the transport goes meanwhile, nats-py's wait for it is cancelled, though nobody cancelled us."""
        try:
            await super().close()
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            log.debug("the connection went while it was being closed: %r", error)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if not self.is_connected:  # what is buffered cannot be sent, and would break off the closing half-way
            self._pending, self._pending_data_size = [], 0
        try:
            await super()._close(status, do_cbs)
        finally:
            writer = getattr(self._transport, "_io_writer", None)
            if writer is not None and _has_left(writer.transport):  # it would stay open until that is sent
                writer.transport.abort()
            while not self._flush_queue.empty():  # its flusher has ended, and tells nobody who waits for it
                flushed = self._flush_queue.get_nowait()
                if not flushed.done():
                    flushed.set_result(None)

    @property
    def where(self) -> str:
        """Host and port of the server where it is, of those that there are; or was at the last."""
        found = self._current_server.uri if self._current_server else None
        return f"{found.hostname}:{found.port}" if found else "no server"

    @property
    def clustered(self) -> bool:
        """Whether its server is of a cluster: only then does it name one."""
        return bool(self._server_info.get("cluster"))

    @property
    def certified_until(self) -> datetime | None:
        """When the server's certificate ends; None: there is none, or it is not known, as over a web socket."""
        writer = getattr(self._transport, "_io_writer", None)
        shown = writer and writer.get_extra_info("ssl_object")
        ends = (shown.getpeercert() or {}).get("notAfter") if shown else None
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), UTC) if ends else None

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """What the next connection trusts and shows."""
        return self._tls() or ssl.create_default_context()

    async def _connect_to_server(self, s: Any) -> None:
        if self._transport:
            self._transport.close()  # type: ignore[no-untyped-call]  # of an attempt that failed after the connection
        if s.uri.scheme in ("nats", "tls"):
            self._transport = _Transport()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        scheme = self._current_server.uri.scheme if self._current_server else ""
        wants_tls = scheme == "tls" or (self.options.get("tls") and scheme == "nats")
        if initial_connection and wants_tls and not info.get("tls_required"):  # before it sends credentials
            msg = "the server offers no TLS"
            raise nats.errors.Error(msg)
        await super()._process_info(info, initial_connection)

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():  # a cancelled flush; a result for it would end the read loop
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


def _incoming(subject: bytes, reply: bytes, data: bytes, block: bytes) -> Incoming:
    # A subject may hold any byte.
    return Incoming(subject.decode("utf-8", "replace"), reply.decode("utf-8", "replace"), data, block)


def _has_left(transport: asyncio.WriteTransport) -> bool:
    try:
        return transport.get_write_buffer_size() > 0
    except AttributeError:  # asyncio's, where the TLS handshake has failed
        return False
