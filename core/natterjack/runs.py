"""Runs: one handling of one event or question, and what a handler can do meanwhile."""

from __future__ import annotations

import logging
import time
from asyncio import Task, Timeout, current_task
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from natterjack.approvals import ask_human
from natterjack.branches import Branch, position_here
from natterjack.calls import Note, asked
from natterjack.context import CAUSE, SharedContext
from natterjack.conversations import Conversations, named
from natterjack.coroutines import through
from natterjack.durable import Durable
from natterjack.errors import LoopError, QueryError
from natterjack.events import Since
from natterjack.facilities import Facilities
from natterjack.messages import Answer, Answers, Attachment, Envelope, Event
from natterjack.origins import Origin
from natterjack.peers import ASK_TIMEOUT, MAX_DEPTH, AnswerStream, OnQuery, Question, ReplyStream
from natterjack.quota import Quota
from natterjack.rights import Verb
from natterjack.runjournal import RunJournal
from natterjack.runtools import RunTools

if TYPE_CHECKING:
    from natterjack.team import AgentSpec

MAX_FANOUT: Final = 1000
"""Events and messages one run may send: more is a loop, or a stream that should be one message."""


class RunContext:
    """What a handler can do, and what it knows about its run.

    Attributes:
        run_id: Id of this run; the same on every replica and attempt.
        agent: This agent's name.
        caller: Who emitted the event or asks; in open mode its own claim.
        deadline: When the work must be done, Unix seconds.
        cause: Id of the event or request that is handled.
    """

    # For the kernel; here, so that what few runs use costs the others nothing.
    lasting: Durable | None = None
    limit: Timeout | None = None
    cancelled: bool = False
    task: Task[Any] | None = None
    trunk: Branch | None = None
    _did: list[Note] | None = None

    def __init__(
        self,
        facilities: Facilities,
        run_id: str,
        envelope: Envelope,
        *,
        caller: str,
        cause: str,
        timeout: float,
        handles: Question | Origin | None = None,
        journal: RunJournal | None = None,
    ) -> None:
        self._facilities, self._envelope, self.cause = facilities, envelope, cause
        self.run_id, self.agent, self.caller = run_id, facilities.agent, caller
        self.deadline = time.time() + timeout
        self._views: dict[str, SharedContext] = {}  # by bucket; "" is the main context
        self.handles, self._journal, self._sent = handles, journal, 0

    @property
    def stream(self) -> ReplyStream | None:
        """What takes chunks of an answer, if somebody reads them as they come."""
        return self.handles.stream if isinstance(self.handles, Question) else None

    @property
    def attachments(self) -> Sequence[Attachment]:
        """Files that came with the question."""
        return self.handles.attachments if isinstance(self.handles, Question) else ()

    @property
    def spec(self) -> AgentSpec:
        """This agent, as its team describes it."""
        return self._facilities.spec

    def heard(self, verb: Verb = "emit") -> Sequence[str]:
        """Return patterns of the events that somebody in the team waits for; with `publish`, of the topics it reads."""
        return self._facilities.topics if verb == "publish" else self._facilities.events.awaited or ()

    @property
    def tools(self) -> RunTools:
        """The tools of the servers that this agent has."""
        return RunTools(self, self._facilities.tools)

    @property
    def shared(self) -> SharedContext:
        """The shared context, with this agent as writer."""
        if "" not in self._views:
            self._views[""] = self._facilities.shared()
        return self._views[""]

    @property
    def journal(self) -> RunJournal:
        """This run's journal."""
        if self._journal is None:
            self._journal = RunJournal(self.agent, self.run_id, self._facilities.journal, self._facilities.sinks)
        return self._journal

    @property
    def unsettled(self) -> bool:
        """Whether something that was written to the context may not be durable yet, or a step is under way."""
        return self.lasting is not None or any(view.unsettled for view in self._views.values())

    @property
    def journaled(self) -> bool:
        """Whether the journal was used, or goes to further places."""
        return self._journal is not None or bool(self._facilities.sinks)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that names agent and run."""
        return logging.LoggerAdapter(logging.getLogger(f"natterjack.agent.{self.agent}"), {"run": self.run_id})

    def bucket(self, name: str) -> SharedContext:
        """Return a bucket beside the main context, with this agent as writer.

        An event never comes before the main context's writes that it follows from; of a bucket's writes that is not
        so: `await bucket.refresh()` where it matters.

        Raises:
            RefusedError: The agent may neither read nor write there.
            ConfigError: The team has no such bucket.
        """
        if name not in self._views:
            self._views[name] = self._facilities.bucket(name)
        return self._views[name]

    def quota(self, *, team: bool = False) -> Quota:
        """Return what counts the uses of this agent's replicas together, or those of the whole team."""
        return self._facilities.quotas[team]

    @property
    def conversations(self) -> Conversations:
        """What this agent keeps of its conversations, and to which of them the question belongs."""
        return Conversations(self._facilities.bus, self.agent, self._envelope.conversation)

    # What a later attempt does not do again

    @property
    def version(self) -> int:
        """Number of the calls that its handler makes: `version` of the agent's class when the run began."""
        return self._facilities.version if self.lasting is None else self.lasting.calls.version

    def step(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Do something once: its result is journaled, and a later attempt of this run gets that and does not do it.

        A handler that has steps must call them in the same order each time it is repeated. Several may be under way
        at once (`asyncio.gather(ctx.step(…), ctx.step(…))`), and those of a task that the handler starts are counted
        apart. What a step itself does outside, it does at least once: its process may die before it is journaled.

        Example::

            pages = await ctx.step("search", search, event.data["topic"])

        Args:
            name: What it is called in the journal.
            fn: Does it; a function, or an `async def`. One that blocks: `ctx.step("x", asyncio.to_thread, fn, …)`.
            args: Its arguments.
            kwargs: Its keyword arguments.

        Returns:
            What `fn` returned, as JSON gives it back.

        Raises:
            NondeterminismError: The run has journaled another call at this place; it becomes a dead letter.
            PayloadError: The result is no JSON, or has more than 64 MiB.
            FencedError: Another replica took this run over; let it pass.
            ConfigError: It is called inside another step. What `fn` raises is raised, and fails the attempt.
        """
        return self.durable.calls.step(name, fn, args, kwargs)

    def sleep(self, seconds: float) -> Coroutine[Any, Any, None]:
        """Go on after a time, for which no process is needed: it may be days, and each process may end meanwhile.

        A second or less is waited out. For longer the handler is cancelled here (its `finally` blocks run), and
        repeated from its beginning when the time is over: what it does outside of steps is then done again. In an
        answer, for which somebody waits, it just sleeps.

        Args:
            seconds: How long; at most until 28 days after the run began.

        Raises:
            NondeterminismError: The run has journaled another call at this place; it becomes a dead letter.
            ConfigError: The time is negative or too long, or this is called inside a step.
        """
        return self.durable.pauses.sleep(seconds)

    def wait_for(
        self, type: str, *, where: str | None = None, timeout: float | None = None, after: int | None = None
    ) -> Coroutine[Any, Any, Event]:
        """Wait for an event, for which no process is needed, as for `sleep`.

        Its type must be among the agent's `waits`. By default it is the first one since the event that this run
        handles, or (if the run began otherwise) since the first that it emitted; and behind the last that it waited for
        by this `type`. So nothing is missed that comes while the run does something else.

        Example::

            await ctx.emit("payment.due", {"order": order})
            paid = await ctx.wait_for("payment.received", where=f'data.order == "{order}"', timeout=86_400)

        Args:
            type: Its type, or a pattern of types.
            where: Condition on it, as for a trigger.
            timeout: Seconds; by default, and at most, until 28 days after the run began.
            after: Sequence (as `emit` returns it) behind which the event stands.

        Raises:
            WaitTimeoutError: There was none in time.
            ConfigError: The agent has not declared the type, or the condition or the timeout is wrong.
            NondeterminismError: The run has journaled another call at this place; it becomes a dead letter.
        """
        return self.durable.pauses.wait_for(type, where, timeout, after)

    async def ask_human(self, question: str, *, choices: Sequence[str] = (), timeout: float | None = None) -> str:
        """Ask a human and return the answer, however long that takes: no process is needed meanwhile.

        Where somebody waits for this agent's answer and answers queries (`on_query`), it is asked. Otherwise the event
        `approval.requested` says what is wanted, for `natterjack approvals` or anything else that emits
        `approval.answered`. The agent's `waits` must have `approval.answered`; the right to ask comes with it.

        Args:
            question: The question.
            choices: What may be answered; any text by default. Another answer is ignored.
            timeout: Seconds; see `wait_for`.

        Raises:
            ApprovalDeniedError: The human said no.
            WaitTimeoutError: Nobody answered in time.
            ConfigError: The agent's `waits` lack `approval.answered`, or this is called inside a step.
        """
        return await ask_human(self, question, choices, timeout)

    def spent(self, **usage: float) -> None:
        """Say what something cost, e.g. `ctx.spent(tokens=1204, usd=0.0031)`; the timeline of a run with steps has it.

        Args:
            usage: How much of what; called inside a step, it is that step's.
        """
        self._note({"verb": "spent", "what": ", ".join(usage), "usage": usage})

    @property
    def durable(self) -> Durable:
        """What makes this run durable; made when it is first used."""
        if self.lasting is None:
            self.lasting = Durable(self, self._facilities, self._envelope, self._did or [])
        return self.lasting

    async def settle(self) -> None:
        """Return once all that this run wrote to the context is durable, or raise the first unheard failure."""
        for view in self._views.values():
            await view.settle()

    async def emit(
        self, type: str, data: Any = None, *, id: str | None = None, delay: float | timedelta | None = None
    ) -> int:
        """Store an event, caused by what this run handles; see `EventBus.emit`.

        Raises:
            LoopError: Too many events led to one another, or this run sent too many.
        """
        around = [middleware.emit for middleware in self._facilities.middleware]
        return await through(around, partial(self._send, "emit", id=id, delay=delay), self)(type, data)

    async def publish(self, topic: str, data: Any = None, *, id: str | None = None) -> int:
        """Store a message for a topic; see `EventBus.publish`.

        Raises:
            LoopError: Too many events led to one another, or this run sent too many.
        """
        return await self._send("publish", topic, data, id)

    def replay(self, pattern: str = ">", *, since: Since | None = None) -> AsyncIterator[Event]:
        """Yield stored events, oldest first; see `EventBus.replay`."""
        return self._facilities.events.replay(pattern, since=since)

    async def _send(
        self, verb: Verb, kind: str, data: Any, id: str | None, delay: float | timedelta | None = None
    ) -> int:
        repeats = False
        if self.lasting is not None:
            calls = self.lasting.calls
            repeats = id is None and calls.begun
            id = id or calls.identity(verb, kind)
            if (known := calls.sent(id)) is not None:
                return known
        self._sent += 1
        if self._sent > MAX_FANOUT:
            msg = f"one run of {self.agent!r} may send {MAX_FANOUT} events; send one with a list instead"
            raise LoopError(msg)
        events, envelope = self._facilities.events, self._next(kind)
        sequence = (await events.send(verb, kind, data, envelope, id, delay=delay, repeats=repeats)).sequence
        note: Note = {"verb": verb, "what": kind, "sequence": sequence, **({"delayed": True} if delay else {})}
        if id is not None:
            note["id"] = id
        elif (position := position_here(self)) is not None:
            note["position"] = position
        self._note(note)
        return sequence

    def _note(self, note: Note) -> None:
        """Keep what this run did, in case it is journaled."""
        if self.lasting is not None:
            self.lasting.calls.note(note)
        elif self._did is None:
            self._did = [note]
        elif len(self._did) < MAX_FANOUT:
            self._did.append(note)

    async def ask_peer(
        self, name: str, question: str, *, timeout: float = ASK_TIMEOUT, conversation_id: str | None = None
    ) -> Answer:
        """Ask another agent; see `TeamClient.ask_peer`. The run's own deadline bounds `timeout` (seconds).

        Raises:
            LoopError: Too many asks led to one another.
        """
        left, began = min(timeout, self.deadline - time.time()), time.perf_counter()
        envelope = self._asks(name, question)._replace(conversation=named(conversation_id))
        answer = await self._facilities.peers.ask(name, question, timeout=left, envelope=envelope)
        self._note(asked(name, answer, began))
        return answer

    def ask_stream(
        self, name: str, question: str, *, timeout: float = ASK_TIMEOUT, on_query: OnQuery | None = None
    ) -> AnswerStream:
        """Ask another agent for its answer in chunks; see `TeamClient.ask_stream`. The run's deadline bounds `timeout`.

        Raises:
            LoopError: Too many asks led to one another.
        """
        left = min(timeout, self.deadline - time.time())
        self._note({"verb": "ask", "what": name})
        envelope = self._asks(name, question)
        return self._facilities.peers.stream(name, question, timeout=left, envelope=envelope, on_query=on_query)

    async def query(self, prompt: str, *, timeout: float = ASK_TIMEOUT) -> str:
        """Ask back: put a question to whoever waits for this answer, and return the text that comes.

        Args:
            prompt: The question.
            timeout: Seconds; the run's own deadline bounds them.

        Raises:
            QueryError: Nobody can answer: this is no streamed ask, or the asker has no `on_query`, or it is gone.
            QueryTimeoutError: It did not answer in time.
        """
        if self.stream is None:
            msg = f"nobody can answer {prompt!r}: this agent asks back, so ask it with `ask_stream(…, on_query=…)`"
            raise QueryError(msg)
        return await self.stream.query(prompt, min(timeout, self.deadline - time.time()))

    async def broadcast(self, names: Iterable[str], question: str, *, timeout: float = ASK_TIMEOUT) -> Answers:
        """Ask several agents at once; see `TeamClient.broadcast`. The run's own deadline bounds `timeout` (seconds).

        Raises:
            LoopError: Too many asks led to one another.
        """
        left, began = min(timeout, self.deadline - time.time()), time.perf_counter()
        envelope = self._asks("broadcast", question)
        answers = await self._facilities.peers.broadcast(names, question, timeout=left, envelope=envelope)
        for name, answer in answers.items():
            self._note(asked(name, answer, began))
        return answers

    def enter(self) -> None:
        """Say that what the running task does from now on follows from this run."""
        self.task = current_task()
        CAUSE.set(self)

    @property
    def effect(self) -> Envelope:
        """The envelope of something that this run causes."""
        return Envelope(cause=self.cause, depth=self._envelope.depth + 1)

    def _asks(self, what: str, question: str) -> Envelope:
        """Return the envelope of an ask; that of a durable run has a key, by which a peer knows it when repeated."""
        key = "" if self.lasting is None else self.lasting.calls.identity("ask", f"{what} {question}")
        return self._next(what)._replace(key=key)

    def _next(self, what: str) -> Envelope:
        effect = self.effect
        if effect.depth > MAX_DEPTH:
            raise LoopError.of(what, effect.depth, MAX_DEPTH)
        return effect._replace(revision=self._facilities.context.revision, run=self.run_id)
