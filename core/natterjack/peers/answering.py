"""Being asked: bounded concurrency, deadlines, cancellation, draining."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from natterjack import codec, subjects
from natterjack.bus import Bus, Message, Subscription
from natterjack.clock import Alarm
from natterjack.coroutines import WorkQueue
from natterjack.errors import (
    ConfigError,
    FencedError,
    LoopError,
    NatterjackError,
    PayloadError,
    QueryError,
    RefusedError,
)
from natterjack.messages import Attachment, Envelope, run_id
from natterjack.peers.replies import CLEANING, Reply, ReplyStream
from natterjack.peers.wire import (
    ASK_TIMEOUT,
    CANCELLED,
    DRAINING,
    EXPIRED,
    LATE,
    LONGEST,
    MAX_DEPTH,
    Prompt,
    loop_message,
    may_reply,
    random_ids,
    read_prompt,
)
from natterjack.service import QUEUE, Endpoint

log = logging.getLogger("natterjack.peers")

BACKLOG: Final = 4
"""Asks that may wait, as a multiple of those that run."""
CANCEL_WAIT: Final = 2.0
PROMPT_TIMEOUT: Final = 600.0
"""Seconds for a prompt that names no deadline: as long as the protocol's own client waits."""


@dataclass(slots=True, eq=False)
class Question:
    """A question that is not answered yet; moments are of the event loop's clock.

    Attributes:
        text: What is asked.
        attachments: Files that came with it.
        envelope: What else came with it.
        reply: Where the answer goes.
        stream: The same, if that takes chunks at once, and questions to the asker; None: the answer is one message.
        endpoint: Where it came in.
        arrived: When it came in.
        due: When it must be answered.
        task: What works on it, once that has begun.
        has_slot: Whether it is among those that are answered now.
        stopped: Whether its task was cancelled.
        expired: Whether that was for its time.
    """

    text: str
    attachments: Sequence[Attachment]
    envelope: Envelope
    reply: Reply
    stream: ReplyStream | None
    endpoint: Endpoint
    arrived: float
    due: float
    task: asyncio.Task[Any] | None = None
    has_slot: bool = False
    stopped: bool = False
    expired: bool = False

    @property
    def run(self) -> str:
        """Id of the run that answers."""
        return self.reply.run

    @property
    def timeout(self) -> float:
        """Seconds left."""
        return self.due - asyncio.get_running_loop().time()


AnswerFunction = Callable[[Question], Awaitable[str]]


class AskServer:
    """Serves `agents.ask.<agent>` and the prompt endpoint: bounded concurrency, deadlines, cancellation, draining.

    Args:
        bus: The agent's connection.
        agent: Its name.
        answer: Does the work.
        concurrency: Asks that run at once; a few times as many may wait, more are told 429.
        ask: The endpoint of plain asks; counts what happens.
        prompt: The endpoint of streamed asks.
        cancel: Called with the id of what is cancelled and is no ask.
    """

    def __init__(
        self,
        bus: Bus,
        agent: str,
        answer: AnswerFunction,
        *,
        concurrency: int,
        ask: Endpoint,
        prompt: Endpoint,
        cancel: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._cancel = cancel
        self._bus, self._agent, self._answer, self._ask, self._prompt = bus, agent, answer, ask, prompt
        self._limit = concurrency * (1 + BACKLOG)
        self._slots = asyncio.Semaphore(concurrency)
        self._work = WorkQueue(self._take)
        self._questions: set[Question] = set()
        self._requests: dict[str, Question] = {}  # those that can be cancelled
        self._runs = random_ids(12)
        self._alarm = Alarm(self._expire)
        self._subscriptions: list[Subscription] = []
        self._draining = False

    @property
    def load(self) -> tuple[int, int]:
        """How many questions are answered now, and how many wait for that."""
        answering = sum(question.has_slot for question in self._questions)
        return answering, len(self._questions) - answering

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
        for question in [question for question in self._questions if not question.has_slot]:
            self._end(question, DRAINING, "draining")
        if self._work.tasks:
            await asyncio.wait(self._work.tasks, timeout=timeout)
        await cancel_all(self._work.tasks, f"answers of {self._agent!r}")
        self._alarm.stop()
        for subscription in cancels:
            await subscription.unsubscribe()

    async def _on_cancel(self, message: Message) -> None:
        what = message.subject.rpartition(".")[2]
        question = self._requests.get(what)
        if question is not None:
            self._end(question, CANCELLED, "cancelled")
        elif self._cancel is not None:
            await self._cancel(what)

    def _expire(self) -> None:
        """End those whose time is over, and come back for the next."""
        now = asyncio.get_running_loop().time()
        for question in [question for question in self._questions if not question.expired]:
            if question.due > now:
                self._alarm.by(question.due)
            else:
                question.expired, question.stopped = True, False
                self._end(question, EXPIRED, LATE)

    def _end(self, question: Question, code: int, text: str) -> None:
        """Cancel what works on a question; what nobody has begun with is told why."""
        if question.task is not None:
            if not question.stopped:  # what cleans up is not stopped, too, unless it takes long
                question.task.cancel()
                question.stopped, question.due = True, asyncio.get_running_loop().time() + CLEANING
                self._alarm.by(question.due)
            return
        self._work.remove(question)
        self._forget(question)
        self._refuse(question.reply, question.endpoint, code, text)

    def _forget(self, question: Question) -> None:
        self._questions.discard(question)
        if question.envelope.request:
            self._requests.pop(question.envelope.request, None)

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
        reply = kind(self._bus, self._agent, next(self._runs), message.reply)
        try:
            envelope = self._bus.envelope_of(message)
            prompt = read(message.data)
        except PayloadError as error:
            self._refuse(reply, endpoint, 400, str(error))
            return
        if self._draining:
            self._refuse(reply, endpoint, DRAINING, "draining")
        elif envelope.depth > MAX_DEPTH:
            self._refuse(reply, endpoint, 400, loop_message(envelope))
        elif len(self._questions) >= self._limit:
            self._refuse(reply, endpoint, 429, f"at its limit of {self._limit} asks; try later or start a replica")
        else:
            self._accept(prompt, envelope, reply, endpoint)

    def _refuse(self, reply: Reply, endpoint: Endpoint, code: int, text: str) -> None:
        self._work.spawn(_fail(reply, endpoint, code, text))

    def _accept(self, prompt: Prompt, envelope: Envelope, reply: Reply, endpoint: Endpoint) -> None:
        now = asyncio.get_running_loop().time()
        patience = envelope.timeout or (ASK_TIMEOUT if endpoint is self._ask else PROMPT_TIMEOUT)
        due = now + min(patience, LONGEST)
        stream = reply if isinstance(reply, ReplyStream) else None
        if envelope.key:
            reply.run = run_id("asks", envelope.key, self._agent, envelope.source)
        question = Question(prompt.text, prompt.attachments, envelope, reply, stream, endpoint, now, due)
        if stream is not None:
            stream.paced = bool(envelope.request)
            stream.cancel = partial(self._end, question, CANCELLED, "cancelled")
        self._questions.add(question)
        if envelope.request:
            self._requests[envelope.request] = question
        self._alarm.by(due)
        self._work.put(question)

    async def _take(self, question: Question) -> None:
        """Work on a question in the task that runs; whatever comes of it, the asker hears."""
        question.task = asyncio.current_task()
        try:
            if question.stream is None:
                await self._work_on(question)
            else:
                async with question.stream:
                    await self._work_on(question)
        except asyncio.CancelledError:
            if question.expired and question.task is not None and question.task.uncancel() == 0:
                await _fail(question.reply, question.endpoint, EXPIRED, LATE)
                return
            code, text = (DRAINING, "draining") if self._draining else (CANCELLED, "cancelled")
            await _fail(question.reply, question.endpoint, code, text)
            raise
        except FencedError as error:  # an ask that was repeated: its answer is to be had soon
            log.info("%s", error)
            await _fail(question.reply, question.endpoint, DRAINING, "another replica answers it")
        except (Exception, SystemExit) as error:
            if question.expired and isinstance(error, TimeoutError):
                code, text = EXPIRED, LATE
            else:
                code, text = _safe(error)
                log.exception("%s: a question failed with %d: %s", self._agent, code, text)
            await _fail(question.reply, question.endpoint, code, text)
        finally:
            self._forget(question)
            question.endpoint.processing_time += int((asyncio.get_running_loop().time() - question.arrived) * 1e9)

    async def _work_on(self, question: Question) -> None:
        """Answer a question, once there is a slot."""
        await self._slots.acquire()
        question.has_slot = True
        try:
            await question.reply.finish(await self._answer(question))
        finally:
            self._slots.release()


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


async def end_all(tasks: Set[asyncio.Task[None]], timeout: float, what: str) -> None:
    """Cancel tasks and return once they have ended; after `timeout` seconds they are cancelled once more."""
    for task in tasks:
        task.cancel()
    if tasks:
        _, tasks = await asyncio.wait(tasks, timeout=timeout)
    await cancel_all(tasks, what)


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
