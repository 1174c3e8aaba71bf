"""Asking peers, and being asked: one request, one reply, with deadlines, cancellation and limits."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from dataclasses import replace
from typing import Final

from natterjack import codec, subjects
from natterjack.bus import Bus, Message, Subscription, error_of
from natterjack.components import PeerScheme
from natterjack.errors import (
    ConfigError,
    DisconnectedError,
    LoopError,
    NatterjackError,
    NoRespondersError,
    PayloadError,
    PeerError,
    PeerRefusedError,
    PeerTimeoutError,
    PeerUnavailableError,
    RefusedError,
    RequestTimeoutError,
    nearest,
    peer_error,
)
from natterjack.guards import Guards
from natterjack.messages import Answer, Answers, Envelope
from natterjack.service import QUEUE, Endpoint

log = logging.getLogger("natterjack.peers")

MAX_DEPTH: Final = 16
"""How many events and asks may lead to one another before it is called a loop."""
ASK_TIMEOUT: Final = 60.0
DRAINING: Final = 503
"""Code of an agent that is about to stop: another replica may answer."""
CANCELLED: Final = 499
BACKLOG: Final = 4
"""Asks that may wait, as a multiple of those that run."""
CANCEL_WAIT: Final = 2.0
LONGEST: Final = 86_400.0
"""Seconds one ask may take, whatever its header says."""


class Peers:
    """Asks peers as one principal.

    Args:
        bus: Its connection.
        guards: Asked before anything is sent.
        addresses: Where a name lives, if not at the agent of that name: another name, or `<scheme>://…`.
        schemes: What resolves addresses with a scheme.
    """

    def __init__(
        self,
        bus: Bus,
        guards: Guards,
        addresses: Mapping[str, str] | None = None,
        schemes: Mapping[str, PeerScheme] | None = None,
    ) -> None:
        self._bus, self._guards = bus, guards
        self._addresses, self._schemes = addresses or {}, schemes or {}

    async def ask(
        self, name: str, question: str, *, timeout: float = ASK_TIMEOUT, envelope: Envelope | None = None
    ) -> Answer:
        """Ask one agent and return its answer.

        Args:
            name: The agent.
            question: Text.
            timeout: Seconds; the peer knows it, and stops working when it is over.
            envelope: Causation to carry along.

        Raises:
            PeerUnavailableError: Nobody serves that name.
            PeerTimeoutError: No answer in time.
            PeerBusyError: It is at its limit.
            PeerRefusedError: A guard or the broker refuses.
            PeerError: It failed.
        """
        address, scheme = self._resolve(name)
        payload = _encode(question)
        try:
            self._guards.check(self._bus.principal, "ask", name if scheme else address)
        except RefusedError as error:
            raise PeerRefusedError(name, 403, str(error)) from error
        if scheme:
            return await scheme.ask(address, question, timeout)
        return await self._ask(name, address, payload, timeout, envelope or Envelope())

    def _resolve(self, name: str) -> tuple[str, PeerScheme | None]:
        """Return where a name lives, and what asks there if it is no agent of this team."""
        address = self._addresses.get(name, name)
        scheme, has_scheme, _ = address.partition("://")
        if not has_scheme:
            return subjects.check_name(address), None
        if scheme not in self._schemes:
            hint = nearest(scheme, self._schemes)
            msg = f"no plugin resolves {address!r}.{hint} Try `pip install natterjack-{scheme}`."
            raise ConfigError(msg)
        return address, self._schemes[scheme]

    async def _ask(self, name: str, agent: str, question: bytes, timeout: float, envelope: Envelope) -> Answer:
        request = secrets.token_hex(16)
        deadline, pause = time.monotonic() + timeout, 0.01
        try:
            while True:
                left = deadline - time.monotonic()
                told = round(max(left, 0.001), 3)
                sent = replace(envelope, source=self._bus.principal, timeout=told, request=request)
                reply = await self._send(name, agent, question, left, sent)
                problem = error_of(reply)
                if problem is None:
                    return _read_answer(name, reply)
                code, text = problem
                if code != DRAINING or time.monotonic() + pause > deadline:
                    raise peer_error(name, code, text)
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreads those who ask again
                pause = min(0.25, pause * 2)
        except (asyncio.CancelledError, PeerTimeoutError) as error:
            if not isinstance(error, PeerUnavailableError):
                await self._cancel(agent, request)
            raise

    async def _send(self, name: str, agent: str, question: bytes, timeout: float, envelope: Envelope) -> Message:
        headers = {codec.HEADER: codec.pack(envelope)}
        try:
            return await self._bus.request(subjects.ask(agent), question, timeout=max(timeout, 0.001), headers=headers)
        except NoRespondersError as error:
            raise PeerUnavailableError(name, 503, "nobody serves that name; is it running?") from error
        except RequestTimeoutError as error:
            raise PeerTimeoutError(name, 408, "no answer within the deadline") from error
        except RefusedError as error:
            raise PeerRefusedError(name, 403, str(error)) from error
        except DisconnectedError as error:
            raise PeerUnavailableError(name, 503, str(error)) from error

    async def _cancel(self, agent: str, request: str) -> None:
        try:
            await self._bus.publish(subjects.cancel(agent, request))
        except DisconnectedError as error:
            log.debug("cannot cancel %s at %s: %s", request, agent, error)

    async def broadcast(
        self, names: Iterable[str], question: str, *, timeout: float = ASK_TIMEOUT, envelope: Envelope | None = None
    ) -> Answers:
        """Ask several agents at once; never raises for a peer's fault.

        Returns:
            The answers that came, by name, with `.failures` for the others.

        Raises:
            InvalidNameError: A name is malformed; nobody was asked.
            ConfigError: No plugin resolves an address; nobody was asked.
            PayloadError: The question cannot be sent.
        """
        asked = list(dict.fromkeys([names] if isinstance(names, str) else names))
        for name in asked:
            self._resolve(name)
        self._bus.check_size(_encode(question), None)
        results = await asyncio.gather(*(self._try(name, question, timeout, envelope) for name in asked))
        answers = {name: result for name, result in zip(asked, results, strict=True) if isinstance(result, Answer)}
        failures = {name: result for name, result in zip(asked, results, strict=True) if isinstance(result, PeerError)}
        return Answers(answers, failures)

    async def _try(self, name: str, question: str, timeout: float, envelope: Envelope | None) -> Answer | PeerError:
        try:
            return await self.ask(name, question, timeout=timeout, envelope=envelope)
        except PeerError as error:
            return error
        except Exception as error:  # a scheme is a stranger's code; the others' answers must not be lost for it
            log.exception("asking %s failed", name)
            return PeerError(name, 500, f"it could not be asked: {type(error).__name__}: {error}")


def _encode(question: str) -> bytes:
    if not isinstance(question, str):
        msg = f"a question is text, not {type(question).__name__}; send JSON as text if it must be data"
        raise PayloadError(msg)
    try:
        return question.encode()
    except UnicodeEncodeError as error:
        msg = f"the question is no valid text: {error}"
        raise PayloadError(msg) from error


def _read_answer(name: str, reply: Message) -> Answer:
    try:
        text = codec.decode_text(reply.data)
        run = codec.unpack((reply.headers or {}).get(codec.HEADER)).run
    except PayloadError as error:
        raise PeerError(name, 500, f"its answer cannot be read: {error}") from error
    return Answer(text, agent=name, run_id=run)


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


def loop_message(envelope: Envelope) -> str:
    """Return what to say about an envelope that is too deep."""
    return (
        f"{envelope.depth} events and asks led to one another, more than {MAX_DEPTH}: this looks like a loop; "
        f"the last cause was {envelope.cause!r}"
    )


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
