"""Being asked: bounded concurrency, deadlines, cancellation, draining."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Set
from typing import Final

from natterjack import codec, subjects
from natterjack.bus import Bus, Message, Subscription
from natterjack.errors import (
    ConfigError,
    DisconnectedError,
    LoopError,
    NatterjackError,
    PayloadError,
    RefusedError,
)
from natterjack.messages import Answer, Envelope
from natterjack.peers.wire import ASK_TIMEOUT, CANCELLED, DRAINING, LONGEST, MAX_DEPTH, loop_message
from natterjack.service import QUEUE, Endpoint

log = logging.getLogger("natterjack.peers")

BACKLOG: Final = 4
"""Asks that may wait, as a multiple of those that run."""
CANCEL_WAIT: Final = 2.0

AnswerFunction = Callable[[str, Envelope, float], Awaitable[Answer]]
"""Answers a question, given its envelope and the seconds left."""


class AskServer:
    """Serves `agents.ask.<agent>`: bounded concurrency, deadlines, cancellation, draining.

    Args:
        bus: The agent's connection.
        agent: Its name.
        answer: Does the work.
        concurrency: Asks that run at once; a few times as many may wait, more are told 429.
        endpoint: Counts what happens.
    """

    def __init__(self, bus: Bus, agent: str, answer: AnswerFunction, *, concurrency: int, endpoint: Endpoint) -> None:
        self._bus, self._agent, self._answer, self._endpoint = bus, agent, answer, endpoint
        self._limit = concurrency * (1 + BACKLOG)
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()  # those of the tasks that have no slot yet
        self._running: dict[str, asyncio.Task[None]] = {}
        self._subscriptions: list[Subscription] = []
        self._draining = False

    async def start(self) -> None:
        """Begin to serve; replicas of one name share the work."""
        self._subscriptions.append(await self._bus.subscribe(subjects.cancel(self._agent, "*"), self._on_cancel))
        self._subscriptions.append(await self._bus.subscribe(subjects.ask(self._agent), self._on_ask, queue=QUEUE))

    async def drain(self, timeout: float) -> None:
        """Finish what runs, answer what waits with 503, and stop within `timeout` seconds."""
        self._draining = True
        cancels, asks = self._subscriptions[:1], self._subscriptions[1:]
        self._subscriptions = []
        for subscription in asks:
            await subscription.drain()
        for task in list(self._waiting):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        await cancel_all(self._tasks, f"answers of {self._agent!r}")
        for subscription in cancels:
            await subscription.unsubscribe()

    async def _on_cancel(self, message: Message) -> None:
        task = self._running.get(message.subject.rpartition(".")[2])
        if task is not None:
            task.cancel()

    async def _on_ask(self, message: Message) -> None:
        if not message.reply.startswith(("_INBOX.", "_R_.")):
            log.warning("%s: a question without a usable reply subject (%r) is ignored", self._agent, message.reply)
            return
        self._endpoint.num_requests += 1
        try:
            envelope = codec.unpack((message.headers or {}).get(codec.HEADER))
            question = codec.decode_text(message.data)
        except PayloadError as error:
            await self._fail(message.reply, 400, str(error))
            return
        if self._draining:
            await self._fail(message.reply, DRAINING, "draining")
        elif envelope.depth > MAX_DEPTH:
            await self._fail(message.reply, 400, loop_message(envelope))
        elif len(self._tasks) >= self._limit:
            await self._fail(message.reply, 429, f"at its limit of {self._limit} asks; try later or start a replica")
        else:
            self._spawn(message.reply, question, envelope)

    def _spawn(self, reply: str, question: str, envelope: Envelope) -> None:
        task = asyncio.create_task(self._work(reply, question, envelope))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        if envelope.request:
            self._running[envelope.request] = task
            task.add_done_callback(lambda _: self._running.pop(envelope.request, None))

    async def _work(self, reply: str, question: str, envelope: Envelope) -> None:
        arrived = time.monotonic()
        deadline = asyncio.timeout(min(envelope.timeout or ASK_TIMEOUT, LONGEST))
        try:
            async with deadline, self._slots:
                self._waiting.discard(asyncio.current_task())
                left = (deadline.when() or 0.0) - asyncio.get_running_loop().time()
                await self._reply(reply, await self._answer(question, envelope, left))
        except asyncio.CancelledError:
            code, text = (DRAINING, "draining") if self._draining else (CANCELLED, "cancelled")
            await self._fail(reply, code, text)
            raise
        except (Exception, SystemExit) as error:
            if deadline.expired() and isinstance(error, TimeoutError):
                code, text = 408, "no answer within the deadline"
            else:
                code, text = _safe(error)
                log.exception("%s: a question failed with %d: %s", self._agent, code, text)
            await self._fail(reply, code, text)
        finally:
            self._endpoint.processing_time += int((time.monotonic() - arrived) * 1e9)

    async def _reply(self, reply: str, answer: Answer) -> None:
        headers = {codec.HEADER: codec.pack(Envelope(source=self._agent, run=answer.run_id))}
        await self._bus.publish(reply, answer.encode(), headers=headers)

    async def _fail(self, reply: str, code: int, text: str) -> None:
        self._endpoint.num_errors += 1
        self._endpoint.last_error = f"{code}:{text}"
        try:
            await self._bus.publish(reply, headers={codec.ERROR: _one_line(text), codec.ERROR_CODE: str(code)})
        except DisconnectedError as error:
            log.debug("%s: cannot tell an asker about %d: %s", self._agent, code, error)


async def cancel_all(tasks: Set[asyncio.Task[None]], what: str) -> None:
    """Cancel tasks and return once they have ended; some that do not react are left, and told of."""
    for task in tasks:
        task.cancel()
    if tasks:
        _, deaf = await asyncio.wait(tasks, timeout=CANCEL_WAIT)
        if deaf:
            log.error("%d %s do not react to being cancelled", len(deaf), what)


def _safe(error: BaseException) -> tuple[int, str]:
    """Return code and text that an asker may see: our own words, never a stranger's internals."""
    if isinstance(error, RefusedError):
        return 403, str(error)
    if isinstance(error, ConfigError | LoopError | PayloadError):
        return 400 if isinstance(error, LoopError) else 500, str(error)
    if isinstance(error, NatterjackError):
        return 500, f"it failed ({type(error).__name__})"
    return 500, f"it failed with {type(error).__name__}; its log says more"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:1000].encode(errors="replace").decode()
