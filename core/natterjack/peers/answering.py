"""Being asked: bounded concurrency, deadlines, cancellation, draining."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

from natterjack import codec, subjects
from natterjack.bus import Bus, Message, Subscription
from natterjack.errors import ConfigError, LoopError, NatterjackError, PayloadError, QueryError, RefusedError
from natterjack.messages import Answer, Attachment, Envelope
from natterjack.peers.replies import Reply, ReplyStream
from natterjack.peers.wire import (
    ASK_TIMEOUT,
    CANCELLED,
    DRAINING,
    LONGEST,
    MAX_DEPTH,
    Prompt,
    loop_message,
    may_reply,
    read_prompt,
)
from natterjack.service import QUEUE, Endpoint

log = logging.getLogger("natterjack.peers")

BACKLOG: Final = 4
"""Asks that may wait, as a multiple of those that run."""
CANCEL_WAIT: Final = 2.0
PROMPT_TIMEOUT: Final = 600.0
"""Seconds for a prompt that names no deadline: as long as the protocol's own client waits."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question to answer.

    Attributes:
        text: What is asked.
        envelope: What came with it.
        run: Id of the run that answers.
        timeout: Seconds left.
        attachments: Files that came with it.
        stream: Takes chunks at once, and questions to the asker; None: the answer is one message.
    """

    text: str
    envelope: Envelope
    run: str
    timeout: float
    attachments: Sequence[Attachment] = ()
    stream: ReplyStream | None = None


AnswerFunction = Callable[[Question], Awaitable[Answer]]


class AskServer:
    """Serves `agents.ask.<agent>` and the prompt endpoint: bounded concurrency, deadlines, cancellation, draining.

    Args:
        bus: The agent's connection.
        agent: Its name.
        answer: Does the work.
        concurrency: Asks that run at once; a few times as many may wait, more are told 429.
        ask: The endpoint of plain asks; counts what happens.
        prompt: The endpoint of streamed asks.
    """

    def __init__(
        self, bus: Bus, agent: str, answer: AnswerFunction, *, concurrency: int, ask: Endpoint, prompt: Endpoint
    ) -> None:
        self._bus, self._agent, self._answer, self._ask, self._prompt = bus, agent, answer, ask, prompt
        self._limit = concurrency * (1 + BACKLOG)
        self._slots = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()  # those of the tasks that have no slot yet
        self._running: dict[str, Reply] = {}
        self._subscriptions: list[Subscription] = []
        self._draining = False

    @property
    def load(self) -> tuple[int, int]:
        """How many asks are answered now, and how many wait for that."""
        return len(self._tasks) - len(self._waiting), len(self._waiting)

    async def start(self) -> None:
        """Begin to serve; replicas of one name share the work."""
        self._subscriptions.append(await self._bus.subscribe(subjects.cancel(self._agent, "*"), self._on_cancel))
        for endpoint, receive in ((self._ask, self._on_ask), (self._prompt, self._on_prompt)):
            self._subscriptions.append(await self._bus.listen(endpoint.subject, receive, queue=QUEUE))

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
        reply = self._running.get(message.subject.rpartition(".")[2])
        if reply is not None:
            reply.cancel()

    def _on_ask(self, message: Message) -> None:
        self._receive(message, self._ask, Reply, _read_text)

    def _on_prompt(self, message: Message) -> None:
        self._receive(message, self._prompt, ReplyStream, read_prompt)

    def _receive(
        self, message: Message, endpoint: Endpoint, kind: type[Reply], read: Callable[[bytes], Prompt]
    ) -> None:
        if not may_reply(message.reply):
            log.warning("%s: a question without a usable reply subject (%r) is ignored", self._agent, message.reply)
            return
        endpoint.num_requests += 1
        reply = kind(self._bus, self._agent, secrets.token_hex(12), message.reply)
        try:
            envelope = codec.unpack((message.headers or {}).get(codec.HEADER))
            prompt = read(message.data)
        except PayloadError as error:
            self._spawn(_fail(reply, endpoint, 400, str(error)))
            return
        if self._draining:
            self._spawn(_fail(reply, endpoint, DRAINING, "draining"))
        elif envelope.depth > MAX_DEPTH:
            self._spawn(_fail(reply, endpoint, 400, loop_message(envelope)))
        elif len(self._tasks) >= self._limit:
            text = f"at its limit of {self._limit} asks; try later or start a replica"
            self._spawn(_fail(reply, endpoint, 429, text))
        else:
            self._begin(self._spawn(self._work(reply, endpoint, prompt, envelope)), reply, envelope.request)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _begin(self, task: asyncio.Task[None], reply: Reply, request: str) -> None:
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        if request:
            self._running[request] = reply
            task.add_done_callback(lambda _: self._running.pop(request, None))

    async def _work(self, reply: Reply, endpoint: Endpoint, prompt: Prompt, envelope: Envelope) -> None:
        arrived = time.monotonic()
        reply.paced = bool(envelope.request)
        patience = ASK_TIMEOUT if endpoint is self._ask else PROMPT_TIMEOUT
        reply.deadline = deadline = asyncio.timeout(min(envelope.timeout or patience, LONGEST))
        try:
            async with deadline, reply, self._slots:
                self._waiting.discard(asyncio.current_task())
                left = (deadline.when() or 0.0) - asyncio.get_running_loop().time()
                stream = reply if isinstance(reply, ReplyStream) else None
                question = Question(prompt.text, envelope, reply.run, left, prompt.attachments, stream)
                await reply.finish(await self._answer(question))
        except asyncio.CancelledError:
            code, text = (DRAINING, "draining") if self._draining else (CANCELLED, "cancelled")
            await _fail(reply, endpoint, code, text)
            raise
        except (Exception, SystemExit) as error:
            if deadline.expired() and isinstance(error, TimeoutError):
                code, text = 408, "no answer within the deadline"
            else:
                code, text = _safe(error)
                log.exception("%s: a question failed with %d: %s", self._agent, code, text)
            await _fail(reply, endpoint, code, text)
        finally:
            endpoint.processing_time += int((time.monotonic() - arrived) * 1e9)


async def _fail(reply: Reply, endpoint: Endpoint, code: int, text: str) -> None:
    endpoint.num_errors += 1
    endpoint.last_error = f"{code}:{text}"
    await reply.fail(code, text)


async def cancel_all(tasks: Set[asyncio.Task[None]], what: str) -> None:
    """Cancel tasks and return once they have ended; some that do not react are left, and told of."""
    for task in tasks:
        task.cancel()
    if tasks:
        _, deaf = await asyncio.wait(tasks, timeout=CANCEL_WAIT)
        if deaf:
            log.error("%d %s do not react to being cancelled", len(deaf), what)


def _read_text(data: bytes) -> Prompt:
    return Prompt(codec.decode_text(data))


def _safe(error: BaseException) -> tuple[int, str]:
    """Return code and text that an asker may see: our own words, never a stranger's internals."""
    if isinstance(error, RefusedError):
        return 403, str(error)
    if isinstance(error, ConfigError | LoopError | PayloadError | QueryError):
        return 400 if isinstance(error, LoopError | QueryError) else 500, str(error)
    if isinstance(error, NatterjackError):
        return 500, f"it failed ({type(error).__name__})"
    return 500, f"it failed with {type(error).__name__}; its log says more"
