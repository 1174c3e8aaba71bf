"""Atomic batches (ADR-50): several messages of one stream that are all stored, or none of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import orjson

from natterjack import codec
from natterjack.bus.mailbox import Message
from natterjack.bus.missing import check_stored
from natterjack.bus.stored import WRONG_LAST
from natterjack.bus.streams import STORE_BUDGET, Streams
from natterjack.errors import (
    ConfigError,
    ConflictError,
    DisconnectedError,
    NoRespondersError,
    RequestTimeoutError,
    StreamError,
)

ID: Final = "Nats-Batch-Id"
COMMIT: Final = "Nats-Batch-Commit"
MAX_BATCH: Final = 1000
"""Messages a batch may have, by the server's default."""

_SEQUENCE: Final = "Nats-Batch-Sequence"
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
_DUPLICATE, _OFF, _INCOMPLETE, _BUSY = 10201, 10174, 10176, 10210


class BatchMessage(NamedTuple):
    """One message of a batch.

    Attributes:
        subject: A subject of the stream.
        data: Payload.
        headers: Headers.
        expect: Last sequence that `guarded` must have before the batch (0: none); None: it is not looked at.
        guarded: The subject of `expect`; by default its own.
    """

    subject: str
    data: bytes
    headers: dict[str, str]
    expect: int | None = None
    guarded: str = ""

    def stamped(self) -> dict[str, str]:
        """Return its headers with what it expects."""
        if self.expect is None:
            return self.headers
        other = {f"{_EXPECTED}-Subject": self.guarded} if self.guarded else {}
        return {**self.headers, _EXPECTED: str(self.expect), **other}


def in_batch(headers: Mapping[str, str]) -> tuple[str, bool]:
    """Return of which batch a stored message is, and whether it is the batch's last; `""` if of none."""
    return headers.get(ID, ""), COMMIT in headers


async def store_batch(bus: Streams, messages: Sequence[BatchMessage], *, id: str) -> int | None:
    """Store all of the messages, or none, trying again for 15 s while the server is away.

    The first message carries the batch's id as its deduplication id: when the acknowledgement was lost, the server
    itself says of a second try that the first was stored, so none is taken for a lost race, and none is stored
    twice [R5]. Batches that others began and abandoned are dropped by the server after 10 s.

    Args:
        bus: The connection.
        messages: At most `MAX_BATCH`, all of one stream.
        id: At most 60 characters that nobody can guess.

    Returns:
        The sequence of the last message; the others come right before it. None if it was stored by a try whose
        acknowledgement was lost.

    Raises:
        ConflictError: What a message expects does not hold; nothing was stored.
        ConfigError: The stream takes no batches.
        NotProvisionedError: No stream captures the subjects.
        StreamError: The stream refuses, e.g. because it is full.
        PayloadError: One is larger than the server takes; nothing was sent.
        RefusedError: The broker does not allow one of the subjects.
    """
    deadline, pause, tried = time.monotonic() + STORE_BUDGET, 0.02, 0
    while True:
        tried += 1
        try:
            timeout = min(5.0, max(0.05, deadline - time.monotonic()))
            await bus.until_connected(timeout)
            return _sequence(await _send(bus, messages, id, f"{id}.{tried}", timeout))
        except (RequestTimeoutError, DisconnectedError, NoRespondersError, StreamError) as error:
            if isinstance(error, StreamError) and error.code == _DUPLICATE:
                return None
            if isinstance(error, StreamError) and error.code not in (_INCOMPLETE, _BUSY):
                raise
            if isinstance(error, NoRespondersError) and tried == 1:
                await check_stored(bus, messages[0].subject)
            if bus.closed.is_set() or time.monotonic() + pause > deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(1.0, pause * 2)


async def _send(bus: Streams, messages: Sequence[BatchMessage], id: str, batch: str, timeout: float) -> list[Message]:
    """Send each as a request, so that a refusal of any is heard at once; the server answers each."""
    headers = [{**message.stamped(), ID: batch, _SEQUENCE: str(number)} for number, message in enumerate(messages, 1)]
    headers[0][codec.MSG_ID] = id
    headers[-1][COMMIT] = "1"
    for message, each in zip(messages, headers, strict=True):  # before any is sent: what is begun holds others up
        bus.check_size(message.data, each)
    tasks = [
        asyncio.create_task(
            bus.request(message.subject, message.data, timeout=timeout, headers=each, fails_on_disconnect=True)
        )
        for message, each in zip(messages, headers, strict=True)
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _sequence(replies: Sequence[Message]) -> int:
    """Return the sequence that the last reply tells, or raise what the first problem is."""
    answers = [orjson.loads(reply.data) for reply in replies if reply.data]
    for problem in (answer["error"] for answer in answers if "error" in answer):
        code = problem.get("err_code", 0)
        if code in WRONG_LAST:
            text = problem.get("description", "")
            msg = f"a key of the transaction was written by somebody else meanwhile ({text}); nothing was changed"
            raise ConflictError(msg)
        if code == _OFF:
            msg = (
                "the server takes no transactions for this context: they are off, because whoever begins batches"
                " without end holds up all others. `transactions = true` under [team], then provisioning, allows them"
            )
            raise ConfigError(msg)
        raise StreamError.read(problem, "a batch")
    return int(answers[-1]["seq"])
