"""One streamed ask as the asker sees it: chunks as they come, questions answered, and signs that the peer lives."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Self

from natterjack import codec, subjects
from natterjack.bus import NO_RESPONDERS, Bus, Message, Replies, envelope_of, error_of, status_of
from natterjack.errors import (
    InvalidNameError,
    NoRespondersError,
    PayloadError,
    PeerError,
    PeerTimeoutError,
    PeerUnavailableError,
    peer_error,
)
from natterjack.messages import Envelope, Query
from natterjack.peers import wire

log = logging.getLogger("natterjack.peers")

PROBE: Final = 2.0
"""Seconds of silence after which the server is asked whether the answering process still lives."""
SILENCE: Final = 60.0
"""Seconds of silence, keep-alives included, after which a peer counts as dead (protocol section 6.6)."""

OnQuery = Callable[[Query], Awaitable[str]]
"""Answers what an agent asks back."""


class Conversation:
    """One request and its streamed answer.

    Args:
        bus: The asker's connection.
        name: What the asker calls the peer.
        agent: The peer's name in this team; empty for one that Natterjack does not host.
        deadline: When it must be over, by the monotonic clock.
        on_query: Answers questions of the peer.

    Attributes:
        request: Id by which it can be cancelled; unguessable [R15].
        run_id: The run that answers, once it has begun; empty if the peer does not say.
        begun: Whether a part of the answer has come.
        ended: Whether the peer is not, or no longer, at work on it.
        draining: Whether the peer wants somebody else to be asked.
    """

    def __init__(self, bus: Bus, name: str, agent: str, deadline: float, on_query: OnQuery | None) -> None:
        self._bus, self._name, self._agent, self._on_query = bus, name, agent, on_query
        self.deadline, self.request = deadline, secrets.token_hex(16)
        self.run_id = ""
        self.begun, self.ended, self.draining = False, True, False
        self._address = self._inbox = ""

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    async def chunks(self, subject: str, question: bytes, envelope: Envelope) -> AsyncGenerator[str, None]:
        """Ask on a subject, and yield the text of the answer as it comes.

        Raises:
            BrokerError: And its kinds, if nobody serves there, or the connection goes.
            RefusedError: The broker does not allow it.
            PeerError: And its kinds.
        """
        self.ended, self.draining, headers = False, False, {codec.HEADER: codec.pack(envelope)}
        replies = self._bus.open(subject, question, timeout=max(self.left, 0.001), headers=headers)
        try:
            while message := await self._next(replies):
                if text := await self._take(message):
                    self.begun = True
                    yield text
        finally:
            replies.close()

    async def _next(self, replies: Replies) -> Message | None:
        """Return the next message; None at the end."""
        silent = 0.0
        while (message := await replies.next(PROBE)) is None:
            silent += PROBE
            if silent >= SILENCE:
                raise PeerTimeoutError(self._name, 408, f"silent for more than {SILENCE:g} s, so it seems dead")
            if self._address:
                await self._bus.publish(self._address, reply=self._inbox)
        if status_of(message) == NO_RESPONDERS:
            self.ended = True
            if self._inbox:
                raise PeerUnavailableError(self._name, 503, "it went away in the middle of its answer")
            raise NoRespondersError(message.subject)
        problem = error_of(message)
        if problem is not None:
            self.ended, self.draining = True, problem[0] == wire.DRAINING
            raise peer_error(self._name, *problem)
        self.ended = not message.data and not message.headers
        return None if self.ended else message

    async def _take(self, message: Message) -> str:
        """Return the text of a message, which may be empty; answer it if it is a question."""
        try:
            if not self._inbox:
                self._begin(message)
            chunk = wire.read_chunk(message.data)
        except (PayloadError, InvalidNameError) as error:
            raise PeerError(self._name, 500, f"its answer cannot be read: {error}") from error
        if isinstance(chunk, wire.QueryChunk):
            await self._answer(chunk)
        elif message.data == wire.FLOW and self._address:
            await self._bus.publish(self._address, wire.READ, reply=self._inbox)
        return chunk if isinstance(chunk, str) else ""

    def _begin(self, message: Message) -> None:
        """Learn from the first message which run answers, and where it hears us."""
        about = envelope_of(message)
        self._inbox, self.run_id = message.subject, about.run
        if self._agent and about.request:
            self._address = subjects.answer(self._agent, subjects.check_name(about.request, "request id"))

    async def _answer(self, query: wire.QueryChunk) -> None:
        if not wire.may_reply(query.reply_subject, self._agent):
            log.warning("%s wants its question answered on %r, which is no inbox", self._name, query.reply_subject)
            return
        if self._on_query is None:
            await self._decline(query, "this asker answers no questions; it must give `on_query`")
            return
        limit = asyncio.timeout(self.left)
        try:
            async with limit:
                data = wire.write_prompt(await self._on_query(Query(query.id, query.prompt)))
        except BaseException as error:
            await self._decline(query, "the asker failed to answer")
            if limit.expired() and isinstance(error, TimeoutError):
                raise PeerTimeoutError(self._name, 408, "its question was not answered within the deadline") from error
            raise
        await self._bus.publish(query.reply_subject, data)

    async def _decline(self, query: wire.QueryChunk, why: str) -> None:
        await self._bus.publish(query.reply_subject, headers={codec.ERROR: why, codec.ERROR_CODE: "400"})


class AnswerStream:
    """The chunks of an answer, as they come. Leaving it early cancels the work at the peer.

    It asks when it is first read. An error comes where the next chunk would: the same as of `ask_peer`.

    Example::

        async with team.ask_stream("researcher", "What is new?") as chunks:
            async for chunk in chunks:
                print(chunk, end="")

    A plain `async for` over it is as good: a stream that nobody holds any more is cancelled, too.
    """

    def __init__(self, chunks: AsyncGenerator[str, None], about: Conversation | None = None) -> None:
        self._chunks, self._about = chunks, about

    @property
    def run_id(self) -> str:
        """The run that answers, once it has begun; empty if the peer does not say."""
        return self._about.run_id if self._about else ""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        return await anext(self._chunks)

    async def aclose(self) -> None:
        """Read no more; if the answer is not whole, the peer stops working on it."""
        await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
