"""Where an answer goes: one message for an ask, a stream of them for a prompt."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Self

from natterjack import codec, subjects
from natterjack.bus import FAR, NO_RESPONDERS, Bus, Message, error_of, of_envelope, status_of
from natterjack.errors import DisconnectedError, PayloadError, QueryError, QueryTimeoutError
from natterjack.messages import Envelope
from natterjack.peers import wire

log = logging.getLogger("natterjack.peers")

KEEP_ALIVE: Final = 30.0
"""Seconds between two messages that tell an asker that the work goes on (protocol section 6.4)."""
CLEANING: Final = 2.0
"""Seconds that an answer which was cancelled has for cleaning up; its asker's deadline may be this very moment."""
LOOK: Final = 1.0
"""Seconds between two chunks by which the server is asked whether the asker is still there."""
ABSENT: Final = 60.0
"""Seconds without a word of an asker in another account, after which it counts as gone."""
FLOW_CHUNKS: Final = 128
FLOW_BYTES: Final = 256 * 1024
FLOW_AHEAD: Final = 2
"""How many times so many chunks, or bytes, an agent may be ahead of its reader."""
_RUN: Final = b"{run}"


class Reply:
    """An answer in one message.

    Args:
        bus: The agent's connection.
        agent: Its name.
        run: Id of the run that answers.
        subject: The asker's reply subject.
    """

    def __init__(self, bus: Bus, agent: str, run: str, subject: str) -> None:
        self._bus, self._agent, self.run, self._subject = bus, agent, run, subject

    async def finish(self, answer: str) -> None:
        """Send the answer, or what of it was not sent yet."""
        headers = _headers(self._agent).replace(_RUN, self.run.encode())
        self._bus.send(self._subject, answer.encode(), headers)
        await self._bus.breathe()

    async def fail(self, code: int, text: str) -> None:
        """Send an error instead."""
        headers = {codec.ERROR: _one_line(text), codec.ERROR_CODE: str(code)}
        try:
            await self._bus.publish(self._subject, headers=headers)
        except DisconnectedError as error:
            log.debug("%s: cannot tell an asker about %d: %s", self._agent, code, error)


class ReplyStream(Reply):
    """An answer in chunks, as they come.

    A stream has a subject of its own. Some messages carry it as reply subject, so that the server itself says when
    the asker is gone; not each, because between accounts the server keeps a record of every one. There it says
    nothing, but an asker of ours answers them. The first message tells the subject to askers of ours, who say on it
    how far they have read.

    Attributes:
        paced: Whether the asker is one of ours, that tells how far it has read.
        cancel: Stops the work, for an asker that is gone.
    """

    cancel: Callable[[], None]

    def __init__(self, bus: Bus, agent: str, run: str, subject: str) -> None:
        super().__init__(bus, agent, run, subject)
        self.paced = False
        self._is_far = subject.startswith(FAR)
        self._token = secrets.token_hex(16)
        self._address = subjects.answer(agent, self._token)
        self._look, self._heard, self._unanswered = 0.0, time.monotonic(), 0
        self._ahead = asyncio.Semaphore(FLOW_AHEAD)
        self._chunks = self._bytes = 0
        self._began = False

    async def __aenter__(self) -> Self:
        self._subscription = await self._bus.listen(self._address, self._hear, confirmed=False)
        about = Envelope(self._agent, request=self._token, run=self.run)
        await self._send(wire.ACK, {codec.HEADER: codec.pack(about)})
        self._keeper = asyncio.create_task(self._keep_alive())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._keeper.cancel()
        await self._subscription.unsubscribe()

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE)
            await self._send(wire.ACK)

    def _hear(self, message: Message) -> None:
        self._heard, self._unanswered = time.monotonic(), 0
        if status_of(message) == NO_RESPONDERS:
            self.cancel()
        elif message.data == wire.READ:
            self._ahead.release()

    async def _send(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        now, reply = time.monotonic(), ""
        if now >= self._look:
            self._look, reply = now + LOOK, self._address
            if self.paced and self._is_far and self._unanswered > 1 and now - self._heard > ABSENT:
                self.cancel()
            self._unanswered += 1
        await self._bus.publish(self._subject, data, headers=headers, reply=reply)

    async def send(self, text: str) -> None:
        """Send a chunk, once the asker has read enough of those before; one too large for a message in parts."""
        size = self._bus.max_payload // 8  # a character takes at most six bytes of JSON
        for start in range(0, len(text), size):
            data = wire.write_response(text[start : start + size])
            self._began = True
            await self._send(data)
            self._chunks, self._bytes = self._chunks + 1, self._bytes + len(data)
            if self._chunks >= FLOW_CHUNKS or self._bytes >= FLOW_BYTES:
                await self._keep_pace()

    async def _keep_pace(self) -> None:
        self._chunks = self._bytes = 0
        if self.paced:
            await self._send(wire.FLOW)
            await self._ahead.acquire()
        else:
            await asyncio.sleep(0)  # a generator that never waits must not keep all else from running

    async def finish(self, answer: str) -> None:
        """Send what was not sent yet, and the end."""
        if not self._began:
            await self.send(answer)
        self._keeper.cancel()  # nothing may come after the end
        await self._bus.publish(self._subject, wire.TERMINATOR)

    async def fail(self, code: int, text: str) -> None:
        """Send an error, and the end."""
        await super().fail(code, text)
        try:
            await self._bus.publish(self._subject, wire.TERMINATOR)
        except DisconnectedError as error:
            log.debug("%s: cannot end an answer: %s", self._agent, error)

    async def query(self, prompt: str, timeout: float) -> str:
        """Ask the asker, and return what it says.

        Raises:
            QueryError: It answers no questions, or is gone.
            QueryTimeoutError: It does not answer within `timeout` seconds.
        """
        identity = secrets.token_hex(16)
        subject = subjects.answer(self._agent, identity)
        answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def receive(message: Message) -> None:
            if not answered.done() and (message.data or message.headers):  # else it only says that it is there
                answered.set_result(message)

        chunk = wire.write_query(wire.QueryChunk(identity, subject, prompt))
        subscription = await self._bus.listen(subject, receive, confirmed=False)
        try:
            await self._bus.publish(self._subject, chunk, reply=subject)
            async with asyncio.timeout(timeout):
                return _read_answer(await answered, prompt)
        except TimeoutError as error:
            msg = f"the asker did not answer {prompt!r} within {timeout:g} s"
            raise QueryTimeoutError(msg) from error
        finally:
            await subscription.unsubscribe()


@lru_cache
def _headers(agent: str) -> bytes:
    """Return the headers of an answer in one message; its run, which alone changes, takes the place of `_RUN`."""
    return of_envelope(Envelope(agent, run=_RUN.decode()))


def _read_answer(message: Message, prompt: str) -> str:
    problem = (wire.DRAINING, "it is gone") if status_of(message) == NO_RESPONDERS else error_of(message)
    if problem is None:
        try:
            return wire.read_prompt(message.data).text
        except PayloadError as error:
            problem = (400, str(error))
    msg = f"the asker does not answer {prompt!r}: {problem[1]}"
    raise QueryError(msg)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:1000].encode(errors="replace").decode()
