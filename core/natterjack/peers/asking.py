"""Asking peers: with a deadline, and cancelled with who asks; for one reply, or for a stream of chunks."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Final

from natterjack import addresses, codec, subjects
from natterjack.bus import Bus, Message, answered, envelope_of, error_of, of_envelope
from natterjack.components import PeerScheme
from natterjack.errors import (
    BrokerError,
    ConfigError,
    DisconnectedError,
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
from natterjack.peers.conversation import AnswerStream, Conversation, OnQuery
from natterjack.peers.wire import ASK_TIMEOUT, DRAINING, random_ids, write_prompt
from natterjack.service import prompt_subject

log = logging.getLogger("natterjack.peers")

_MOMENT: Final = 0.3
"""Seconds to ask again where nobody is there, but somebody may be in a moment."""


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
        self._team = ""
        self._ids = random_ids()  # to cancel by, so that nobody may guess them [R15]

    async def ask(
        self, name: str, question: str, *, timeout: float = ASK_TIMEOUT, envelope: Envelope | None = None
    ) -> Answer:
        """Ask one agent and return its answer.

        Args:
            name: The agent.
            question: Text.
            timeout: Seconds; the peer knows it, and stops working when it is over.
            envelope: Causation to carry along; and for whom it is asked, if not for the principal itself.

        Raises:
            PeerUnavailableError: Nobody serves that name.
            PeerTimeoutError: No answer in time.
            PeerBusyError: It is at its limit.
            PeerRefusedError: A guard or the broker refuses.
            PeerError: It failed.
        """
        address, scheme = self._resolve(name)
        payload = _encode(question)
        if addresses.is_foreign(address):
            chunks = self.stream(name, question, timeout=timeout, envelope=envelope)
            return Answer("".join([chunk async for chunk in chunks]), agent=name)
        envelope = envelope or Envelope()
        self._check(name, address, envelope)
        if scheme:
            return await scheme.ask(address, question, timeout)
        return await self._ask(name, address, payload, timeout, envelope)

    def _check(self, name: str, address: str, envelope: Envelope) -> None:
        try:
            asker = envelope.source or self._bus.principal
            self._guards.check(asker, "ask", name if "://" in address else address)
        except RefusedError as error:
            raise PeerRefusedError(name, 403, str(error)) from error
        if envelope.conversation and "://" in address and not addresses.is_foreign(address):
            msg = f"{name!r} lives at {address!r}, where a conversation_id is not passed on; ask it without"
            raise ConfigError(msg)

    def _resolve(self, name: str) -> tuple[str, PeerScheme | None]:
        """Return where a name lives, and the plugin that asks there if it is no agent of this server."""
        address = self._addresses.get(name, name)
        scheme, has_scheme, _ = address.partition("://")
        if not has_scheme:
            return subjects.check_name(address), None
        if addresses.is_foreign(address):
            addresses.split_foreign(address)
            return address, None
        if scheme not in self._schemes:
            hint = nearest(scheme, self._schemes)
            msg = f"no plugin resolves {address!r}.{hint} Try `natterjack install natterjack-{scheme}`."
            raise ConfigError(msg)
        return address, self._schemes[scheme]

    # Streamed

    def stream(
        self,
        name: str,
        question: str,
        *,
        timeout: float = ASK_TIMEOUT,
        envelope: Envelope | None = None,
        on_query: OnQuery | None = None,
    ) -> AnswerStream:
        """Ask one agent, and return its answer as chunks that come while it works.

        Args:
            name: The agent.
            question: Text.
            timeout: Seconds for the whole answer.
            envelope: Causation to carry along.
            on_query: Answers what the agent asks back; without it the agent is told at once that nobody will.

        Raises:
            InvalidNameError: The name is malformed.
            ConfigError: No plugin resolves its address.
            PayloadError: The question cannot be sent.
            PeerRefusedError: A guard refuses. All else is raised where the next chunk would come, as by `ask`.
        """
        address, scheme = self._resolve(name)
        _encode(question)
        envelope = envelope or Envelope()
        self._check(name, address, envelope)
        if scheme:
            return AnswerStream(scheme.stream(address, question, timeout, on_query))
        agent = "" if addresses.is_foreign(address) else address
        talk = Conversation(self._bus, name, agent, time.monotonic() + timeout, on_query)
        return AnswerStream(self._stream(talk, name, address, question, envelope), talk)

    async def _stream(
        self, talk: Conversation, name: str, address: str, question: str, envelope: Envelope
    ) -> AsyncGenerator[str, None]:
        own = not addresses.is_foreign(address)
        try:
            async with aclosing(self._retry(talk, address, question, envelope)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except (BrokerError, RefusedError) as error:
            if not (own and isinstance(error, NoRespondersError)):
                raise fault(name, error) from error
            self._team = ""  # it may have got another name; or the agent takes plain asks only
            yield await self._ask(name, address, question.encode(), talk.left, envelope)
        finally:
            if own and not talk.ended:
                await self._cancel(address, talk.request)

    async def _retry(
        self, talk: Conversation, address: str, question: str, envelope: Envelope
    ) -> AsyncGenerator[str, None]:
        """Talk to a replica, and to another one if it is draining and nothing has come yet."""
        subject, payload, pause = await self._subject(address, talk.left), write_prompt(question), 0.01
        while True:
            sent = self._stamped(envelope, talk.left, talk.request)
            try:
                async with aclosing(talk.chunks(subject, payload, sent)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except PeerUnavailableError:
                if talk.begun or not talk.draining or talk.left < pause:
                    raise
            else:
                return
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreads those who ask again
            pause = min(0.25, pause * 2)

    async def _subject(self, address: str, timeout: float) -> str:
        """Return where an agent takes prompts."""
        if addresses.is_foreign(address):
            return await prompt_subject(self._bus, address, timeout=timeout)
        self._team = self._team or await self._find_team()
        return subjects.prompt(self._team, address)

    async def _find_team(self) -> str:
        subject = subjects.key(subjects.TEAM_BUCKET, subjects.TEAM_KEY)
        stored = await self._bus.last(subjects.bucket_stream(subjects.TEAM_BUCKET), subject)
        if stored is None:
            raise NoRespondersError(subject)
        return subjects.check_name(codec.decode(stored.data)["name"], "team name")

    # One reply

    async def _ask(self, name: str, agent: str, question: bytes, timeout: float, envelope: Envelope) -> Answer:
        subject, request = subjects.ask(agent), next(self._ids)
        deadline, pause = time.monotonic() + timeout, 0.01
        try:
            while True:
                sent = self._stamped(envelope, deadline - time.monotonic(), request)
                reply = await self._reply(subject, question, sent)
                problem = error_of(reply)
                if problem is None:
                    return _read_answer(name, reply)
                code, text = problem
                if code != DRAINING or time.monotonic() + pause > deadline:
                    raise peer_error(name, code, text)
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - spreads those who ask again
                pause = min(0.25, pause * 2)
        except (BrokerError, RefusedError) as error:
            if isinstance(error, RequestTimeoutError):
                await self._cancel(agent, request)
            raise fault(name, error) from error
        except asyncio.CancelledError:
            await self._cancel(agent, request)
            raise

    async def _reply(self, subject: str, question: bytes, sent: Envelope) -> Message:
        """Ask. Across accounts an answer comes by a way that ends with the connection: then it cannot come any more."""

        async def ask() -> Message:
            reply = await self._bus.ask(
                subject,
                question,
                timeout=sent.timeout,
                headers=of_envelope(sent),
                fails_on_disconnect=self._bus.server.attests,
            )
            return answered(subject, reply)

        try:
            return await self._bus.patiently(ask, within=min(_MOMENT, sent.timeout))
        except NoRespondersError:
            if not self._bus.server.attests or sent.timeout < _MOMENT:
                raise
        # Waits while the broker reads its accounts anew: then the peer may be there after all.
        small = subjects.key(subjects.TEAM_BUCKET, subjects.REFUSED_KEY)
        await self._bus.last(subjects.bucket_stream(subjects.TEAM_BUCKET), small)
        return await self._bus.patiently(ask, within=_MOMENT / 4)

    def _stamped(self, envelope: Envelope, left: float, request: str) -> Envelope:
        """Return an envelope as it is sent: by whom, with the seconds left, and how to cancel."""
        source, cause, depth, _, revision, _, run, key, _, talk = envelope
        source, left = source or self._bus.principal, max(left, 0.001)
        return Envelope(source, cause, depth, left, revision, request, run, key, conversation=talk)

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


def fault(name: str, error: NatterjackError) -> PeerError:
    """Return what an error of the broker means for who asks a peer."""
    if isinstance(error, NoRespondersError):
        return PeerUnavailableError(name, 503, "nobody serves that name; is it running?")
    if isinstance(error, RequestTimeoutError):
        return PeerTimeoutError(name, 408, "no answer within the deadline")
    if isinstance(error, RefusedError):
        return PeerRefusedError(name, 403, str(error))
    if isinstance(error, DisconnectedError):
        return PeerUnavailableError(name, 503, str(error))
    return PeerError(name, 500, str(error))


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
        run = envelope_of(reply).run
    except PayloadError as error:
        raise PeerError(name, 500, f"its answer cannot be read: {error}") from error
    return Answer(text, agent=name, run_id=run)
