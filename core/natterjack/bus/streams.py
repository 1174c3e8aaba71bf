"""Streams: storing with an acknowledgement, reading back, and the JetStream API, over plain requests."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar

import orjson

from natterjack import codec, subjects
from natterjack.bus.audit import Audit
from natterjack.bus.headers import encode
from natterjack.bus.mailbox import Message, Requests, status_of
from natterjack.bus.missing import check_stored
from natterjack.bus.stored import AWAY, EXPECT, REPLY, Stored, is_full, stored
from natterjack.errors import (
    BrokerError,
    ConflictError,
    NoRespondersError,
    NotProvisionedError,
    PayloadError,
    StreamError,
)
from natterjack.server import Server

log = logging.getLogger("natterjack.bus")

STORE_BUDGET: Final = 15.0
"""Seconds a store is retried: a killed leader of a three-node cluster stalls its stream 4 to 7 s."""
PAGE: Final = 256

PATIENCE: Final = 2.0
"""Seconds to ask again where nobody answers, but somebody may be there in a moment."""
_NOT_FOUND: Final = (10059, 10014, 10037)

T = TypeVar("T")


def too_large(size: int, limit: int) -> PayloadError:
    """Return what to raise for more bytes than the server takes."""
    msg = f"payload and headers have {size:,} bytes, but the server takes {limit:,}; send a reference instead"
    return PayloadError(msg)


class Streams(Requests, ABC):
    """What the bus can do with JetStream.

    Attributes:
        server: Where it is connected.
        principal: As whom.
        operates: Whether it may do all that the operator may; of a user the team says it.
        closed: Set once the connection is gone for good.
        audit: Writes down who was refused what.
    """

    server: Server
    principal: str
    operates: bool
    closed: asyncio.Event

    def __init__(self) -> None:
        self.audit = Audit(self)

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the connection is up at this moment."""

    @property
    @abstractmethod
    def clustered(self) -> bool:
        """Whether its server is one of several."""

    @property
    @abstractmethod
    def max_payload(self) -> int:
        """Bytes a message may have on this server."""

    def check_size(self, data: bytes, headers: Mapping[str, str] | None) -> None:
        """Raise `PayloadError` for what the server would answer by closing the connection."""
        size = len(data) + len(encode(headers))
        if size > self.max_payload:
            raise too_large(size, self.max_payload)

    @abstractmethod
    async def until_connected(self, timeout: float) -> None:
        """Return once the connection is up, or raise `DisconnectedError` after `timeout` seconds."""

    async def api(self, name: str, body: Mapping[str, Any] | None = None, *, timeout: float = 10.0) -> dict[str, Any]:
        """Call the JetStream API, e.g. `STREAM.INFO.EVENTS`, and return its answer, within `timeout` seconds.

        Raises:
            NotProvisionedError: The stream, consumer or message it names does not exist.
            StreamError: JetStream refuses; it carries the code.
            BrokerError: JetStream is not enabled.
        """
        data = orjson.dumps(body) if body else b""
        try:
            reply = await self._ask(f"{self.server.prefix}.{name}", data, timeout)
        except NoRespondersError as error:
            msg = f"{self.server} has no JetStream for {self.principal!r}. Start nats-server with -js."
            raise BrokerError(msg) from error
        answer: dict[str, Any] = orjson.loads(reply.data)
        problem = answer.get("error")
        if problem and problem.get("err_code") in _NOT_FOUND:
            raise NotProvisionedError(".".join(name.split(".")[-2 if "CONSUMER" in name else -1 :]))
        if problem:
            raise StreamError.read(problem, name)
        return answer

    async def store(
        self,
        subject: str,
        data: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        id: str | None = None,
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
            ShareError: This principal has stored more than its share, and is refused for a while.
            StreamError: The stream refuses, e.g. because it is full.
        """
        message_id = id or self.new_id()
        sent = {**headers, codec.MSG_ID: message_id} if headers else {codec.MSG_ID: message_id}
        if expect is not None:
            sent[EXPECT] = str(expect)
        block = encode(sent)
        deadline = time.monotonic() + budget
        pause, tried, checked = 0.02, 0, False
        while True:
            tried += 1
            try:
                return await self._store_once(subject, data, block, min(REPLY, max(0.05, deadline - time.monotonic())))
            except AWAY as error:
                if isinstance(error, NoRespondersError) and (self.server.attests or not checked):
                    await check_stored(self, subject)
                    checked = True
                if self.closed.is_set() or time.monotonic() + pause > deadline:
                    raise
            except StreamError as error:
                if not (self.server.attests and is_full(error)) or time.monotonic() + pause > deadline:
                    raise  # where shares are enforced, more room may be opened
            except ConflictError:
                ours = await self._stored_already(stream, subject, message_id) if tried > 1 and stream else None
                if ours is None:
                    raise
                return ours
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

    def post(self, subject: str, data: bytes, headers: bytes) -> asyncio.Future[Message]:
        """Publish into a stream without waiting; `stored` reads what comes back. Nothing is tried again.

        Args:
            subject: A subject that a stream captures.
            data: Payload.
            headers: Headers, as a block.
        """
        return self._mailbox.post(subject, data, timeout=REPLY, headers=headers, fails_on_disconnect=True)

    async def _store_once(self, subject: str, data: bytes, headers: bytes, timeout: float) -> Stored:
        if not self.connected:
            await self.until_connected(timeout)
        reply = await self._mailbox.request(subject, data, timeout=timeout, headers=headers, fails_on_disconnect=True)
        return stored(subject, reply)

    async def _stored_already(self, stream: str, subject: str, message_id: str) -> Stored | None:
        """A conflict after a retry may be our own first try, whose ack was lost: look at the id [R5]."""
        last = await self.last(stream, subject)
        headers = (last.headers if last is not None else None) or {}
        if headers.get(codec.MSG_ID) != message_id:
            return None
        return Stored(int(headers["Nats-Sequence"]), duplicate=True)

    async def last(self, stream: str, subject: str) -> Message | None:
        """Return the newest message on a subject of a stream with direct access, or None."""
        return await self._get(f"{stream}.{subject}")

    async def at(self, stream: str, sequence: int) -> Message | None:
        """Return the message of a sequence of a stream with direct access, or None."""
        return await self._get(stream, orjson.dumps({"seq": sequence}))

    async def value(self, bucket: str, key: str) -> tuple[int, bytes]:
        """Return sequence and value of a key of a KV bucket; 0 and nothing: it was never written.

        Raises:
            NotProvisionedError: There is no such bucket.
        """
        try:
            last = await self.last(subjects.bucket_stream(bucket), subjects.key(bucket, key))
        except NoRespondersError as error:
            what = f"the bucket {bucket!r}"
            raise NotProvisionedError(what) from error
        return (0, b"") if last is None else (int((last.headers or {})["Nats-Sequence"]), last.data)

    async def put(self, bucket: str, key: str, data: bytes, *, expect: int) -> int:
        """Write a key of a KV bucket whose sequence is `expect` (0: it was never written), and return its new one.

        Raises:
            ConflictError: It was written meanwhile.
        """
        stream = subjects.bucket_stream(bucket)
        return (await self.store(subjects.key(bucket, key), data, expect=expect, stream=stream)).sequence

    async def change(self, bucket: str, key: str, change: Callable[[bytes], bytes | None]) -> bool:
        """Write what `change` makes of a key's value; it is called again if somebody else was first.

        Args:
            bucket: A KV bucket.
            key: The key.
            change: Returns what to write; None, or the same: nothing is written.

        Returns:
            Whether something was written.

        Raises:
            NotProvisionedError: There is no such bucket.
        """
        while True:
            sequence, data = await self.value(bucket, key)
            wanted = change(data)
            if wanted is None or wanted == data:
                return False
            try:
                await self.put(bucket, key, wanted, expect=sequence)
            except ConflictError:
                continue
            return True

    async def _get(self, what: str, body: bytes = b"") -> Message | None:
        name = f"{self.server.prefix}.DIRECT.GET.{what}"
        reply = await self._ask(name, body, timeout=5.0)
        return None if status_of(reply) == "404" else reply

    async def _ask(self, subject: str, data: bytes, timeout: float) -> Message:
        ask = partial(self.request, subject, data, timeout=timeout, fails_on_disconnect=True)
        return await self.patiently(ask, within=timeout)

    async def patiently(self, ask: Callable[[], Awaitable[T]], *, within: float) -> T:
        """Ask, and again for a moment if nobody is there, where that may be about to change.

        A secured broker that reads its accounts anew cuts them off from each other: 300 of them for up to 5 s. And a
        server of a cluster may not have heard yet of who answers.

        Args:
            ask: What to do; it may be done several times.
            within: Seconds after which it is done no more.

        Raises:
            NoRespondersError: Nobody is there then, either; at once, where nothing is about to change.
        """
        longest = within if self.server.attests else PATIENCE if self.clustered else 0.0
        ends = time.monotonic() + min(within, longest)
        pause = 0.01
        while True:
            try:
                return await ask()
            except NoRespondersError:
                if time.monotonic() >= ends:
                    raise
            await asyncio.sleep(pause)
            pause = min(0.1, pause * 2)

    async def read(
        self, stream: str, pattern: str, *, start: int = 1, since: datetime | None = None
    ) -> AsyncIterator[Message]:
        """Yield the stored messages that match a pattern, in order, from a sequence on, or stored since a moment.

        It ends with those that are there at the first; the moment may have fractions of seconds.

        Raises:
            NotProvisionedError: The stream does not exist.
        """
        begin: dict[str, Any] = {"start_time": since.astimezone(UTC).isoformat()} if since else {"seq": start}
        left: int | None = None
        while True:
            wanted = {**begin, "next_by_subj": pattern, "batch": PAGE}
            try:
                messages, end = await self.batch(stream, wanted, timeout=10.0)
            except NoRespondersError as error:
                msg = f"stream {stream!r}"
                raise NotProvisionedError(msg) from error
            # The server ends a page of large messages before it is full, and says how many there are still.
            pending = int(end.get("Nats-Num-Pending", "0"))
            left = len(messages) + pending if left is None else left
            for message in messages[:left]:
                yield message
                begin = {"seq": int((message.headers or {})["Nats-Sequence"]) + 1}
            left -= len(messages)
            if not messages or not pending or left <= 0:
                return

    async def batch(
        self, stream: str, wanted: Mapping[str, Any], *, timeout: float
    ) -> tuple[list[Message], dict[str, str]]:
        """Return the messages of one batched direct get (ADR-31), and its end's headers, within `timeout` seconds."""
        name = f"{self.server.prefix}.DIRECT.GET.{stream}"
        data = orjson.dumps(wanted)
        ask = partial(self.request_many, name, data, timeout=timeout, until=lambda reply: bool(status_of(reply)))
        *messages, end = await self.patiently(ask, within=timeout)
        return messages, end.headers or {}

    async def streams(self, pattern: str) -> list[str]:
        """Return the names of the streams whose subjects match a pattern."""
        return [str(name) async for name in self._pages("STREAM.NAMES", "streams", subject=pattern)]

    async def subjects_in(self, stream: str, pattern: str, *, timeout: float = 10.0) -> list[str]:
        """Return the subjects of a stream's messages that match a pattern, by page, each within `timeout` seconds.

        Raises:
            NotProvisionedError: The stream does not exist.
        """
        names: dict[str, None] = {}
        offset = 0
        while True:
            wanted = {"subjects_filter": pattern, "offset": offset}
            info = await self.api(f"STREAM.INFO.{stream}", wanted, timeout=timeout)
            page = info["state"].get("subjects") or {}
            names |= dict.fromkeys(page)
            offset += len(page)
            if not page or offset >= info.get("total", 0):
                return list(names)

    async def consumers(self, stream: str) -> list[str]:
        """Return the names of all consumers of a stream."""
        return [str(name) async for name in self._pages(f"CONSUMER.NAMES.{stream}", "consumers")]

    async def consumer_infos(self, stream: str) -> list[dict[str, Any]]:
        """Return what the server tells about all consumers of a stream."""
        return [info async for info in self._pages(f"CONSUMER.LIST.{stream}", "consumers")]

    async def _pages(self, name: str, key: str, **wanted: str) -> AsyncIterator[Any]:
        """Yield all streams or consumers; the server tells them in pages."""
        count = 0
        while True:
            page = await self.api(name, {**wanted, "offset": count})
            found = page.get(key) or []
            for each in found:
                yield each
            count += len(found)
            if count >= page.get("total", 0) or not found:
                return

    def new_id(self) -> str:
        """Return a fresh deduplication id, of 128 random bits: who has seen one can guess no other [R6]."""
        return secrets.token_urlsafe(16)
