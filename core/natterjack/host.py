"""The host of one agent in one process: its connection, triggers, asks, and an orderly end."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, aclosing, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final
from weakref import WeakValueDictionary

from natterjack import codec, subjects
from natterjack.admission import Admission
from natterjack.branches import tasks_numbered
from natterjack.builtin import own_triggers
from natterjack.builtin.waking import WaitTrigger
from natterjack.bus import Bus
from natterjack.clock import Clock
from natterjack.components import Agent, Journal, PeerScheme, Trigger
from natterjack.context import AgentContext
from natterjack.coroutines import through
from natterjack.delivery import CAUSALITY_WAIT, Delivery
from natterjack.durable import answered_before, cancel_if_told, end_answer
from natterjack.errors import NatterjackError, StartError, described
from natterjack.events import EventBus, authored, bounded
from natterjack.expiry import Expiry
from natterjack.facilities import Facilities
from natterjack.guards import Guards
from natterjack.journal import StreamJournal
from natterjack.listener import Listener, keep, type_of
from natterjack.messages import Answer, Envelope, Firing, PlainMessage, Schedule, run_id
from natterjack.peers import ASK_TIMEOUT, AnswerStream, AskServer, Peers, Question, cancel_all, end_all
from natterjack.plugins import Plugins
from natterjack.relay import Relay
from natterjack.routing import Routing
from natterjack.runs import RunContext
from natterjack.schedules import schedule
from natterjack.service import Endpoint, Service
from natterjack.slots import Slots
from natterjack.specs import ConsumerSpec, ScheduleSpec
from natterjack.team import Team
from natterjack.team.model import APPROVAL_REQUESTED
from natterjack.tools import Tools
from natterjack.toolserver import ToolSource
from natterjack.waits import Waits
from natterjack.wakes import Wakes
from natterjack.watch import Watch

log = logging.getLogger("natterjack.host")

READY_WAIT: Final = 5.0
"""Seconds for which an agent's start waits until its triggers can be reached."""
CLOSE_WAIT: Final = 2.0
"""Seconds that a journal or address scheme may take to close."""


@dataclass(frozen=True, slots=True)
class Place:
    """What the agents of one process share.

    Attributes:
        team: Their team.
        plugins: What is installed.
        guards: Asked before one emits, publishes or asks.
        context: The process's replica of the shared context, attached.
        buckets: The same of the buckets beside it.
        clock: The time for their triggers.
    """

    team: Team
    plugins: Plugins
    guards: Guards
    context: AgentContext
    buckets: Mapping[str, AgentContext] = field(default_factory=dict)
    clock: Clock | None = None


class AgentHost:
    """Runs one agent on one connection.

    Args:
        name: The agent's name.
        agent: Does the work.
        triggers: What wakes it, beside the inbox.
        sinks: Journals beside the stream.
        place: Where it runs; its team has the agent's limits and routing.
        bus: Its own connection.
        closing: Buckets that end with it.
        servers: Tool servers beside the team's, by the names it calls them.
    """

    def __init__(
        self,
        name: str,
        agent: Agent,
        triggers: Sequence[Trigger],
        sinks: Sequence[Journal],
        place: Place,
        bus: Bus,
        *,
        closing: Sequence[AgentContext] = (),
        servers: Mapping[str, ToolSource] | None = None,
    ) -> None:
        team, plugins, context, guards = place.team, place.plugins, place.context, place.guards
        spec = team.agents[name]
        guards.tell(name, bus.audit.refused)
        self.name, self.spec, self.bus, self.clock, self.guards = name, spec, bus, place.clock or Clock(), guards
        self._agent, self._triggers, self._closing = agent, [*own_triggers(spec.waits), *triggers], closing
        self._schemes = {scheme: kind() for scheme, kind in plugins.peers.items()}
        middleware = [kind() for _, kind in sorted(plugins.middleware.items())]
        awaited = [APPROVAL_REQUESTED, *team.heard("emit")]
        events = EventBus(bus, guards, lambda: context.revision, awaited, spec.delays)
        peers = Peers(bus, guards, spec.cross_agents, self._schemes)
        self._facilities = Facilities(
            name,
            bus,
            events,
            peers,
            context,
            StreamJournal().attach(bus),
            sinks,
            middleware,
            spec,
            place.buckets,
            agent.version,
            self.clock,
            Waits(bus, spec.waits),
            Tools.of(name, team, plugins, bus, guards, servers or {}),
            team.heard("publish"),
        )
        self._slots, self._numbering = Slots(spec.concurrency), ExitStack()
        self._routing = Routing(spec.result_event, spec.result_events) if spec.result_types else None
        self._deliveries: list[Delivery] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._expiry: asyncio.Task[None] | None = None
        description = (inspect.getdoc(agent) or "").partition("\n")[0]
        ask = Endpoint("ask", subjects.ask(name))
        taken = {"max_payload": f"{bus.max_payload}B", "attachments_ok": "true"}
        prompt = Endpoint("prompt", subjects.prompt(team.name, name), taken)
        endpoints = [ask, prompt, Endpoint("status", subjects.status(team.name, name))]
        self._service = Service(bus, team.name, name, description, endpoints=endpoints)
        self._asks = AskServer(
            bus, name, self._answer, concurrency=spec.concurrency, ask=ask, prompt=prompt, cancel=self._cancel_run
        )
        self._answering = through([each.answer for each in middleware], self._call_answer)
        self._streams = all(each.keeps_chunks for each in middleware)
        self._service.load = self._load
        self._started = self._stopped = False

    @cached_property  # few need it
    def _repeated(self) -> WeakValueDictionary[str, asyncio.Lock]:
        """By run, what lets one work on an ask that is repeated."""
        return WeakValueDictionary()

    def _load(self) -> dict[str, int]:
        answering, waiting = self._asks.load
        slots = self.spec.concurrency
        return {"slots": slots, "busy": self._slots.busy, "answering": answering, "waiting": waiting}

    async def start(self) -> None:
        """Prepare the agent, then let asks and events in. Returns once all of it is really listening.

        Raises:
            StartError: The agent or one of its triggers cannot start; nothing is left running.
        """
        try:
            self._numbering.enter_context(tasks_numbered())
            for sink in self._facilities.sinks:
                await sink.open()
            await self._facilities.tools.start()
            await self._agent.start()
            self._started = True
            await self._asks.start()
            await self._service.start()
            expiry = Expiry(self.bus, self._triggers, self._facilities.journal, self._facilities.sinks)
            await expiry.check()
            self._expiry = asyncio.create_task(expiry.run())
            context = {trigger: _TriggerContext(self, trigger) for trigger in self._triggers}
            self._tasks = [asyncio.create_task(self._run(trigger, ctx)) for trigger, ctx in context.items()]
            for task, (trigger, ctx) in zip(self._tasks, context.items(), strict=True):
                if trigger.tells_ready or any(right.verb == "listen" for right in trigger.needs(self.name)):
                    await ctx.until_ready(task)
        except Exception as error:
            await self.stop(0)
            msg = f"agent {self.name!r} cannot start: {described(error)}"
            raise StartError(msg) from error
        except BaseException:
            await self.stop(0)
            raise

    async def _run(self, trigger: Trigger, ctx: _TriggerContext) -> None:
        try:
            await trigger.run(ctx)
        except Exception as error:
            msg = f"its trigger {trigger.label!r} failed: {described(error)}"
            traceback = None if isinstance(error, NatterjackError) else error
            log.exception("agent %r: %s", self.name, msg, exc_info=traceback)  # now: nobody may ask before the end
            raise StartError(msg) from error
        msg = f"its trigger {trigger.label!r} ended by itself; `run` must go on until cancelled"
        log.error("agent %r: %s", self.name, msg)
        raise StartError(msg)

    async def failed(self) -> NatterjackError:
        """Return, once it happens, why the agent cannot go on: a trigger failed, or its connection is gone."""
        closed = asyncio.create_task(self.bus.closed.wait())
        try:
            await asyncio.wait([closed, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                return StartError(f"agent {self.name!r} cannot go on: {described(error)}")
        return StartError(f"agent {self.name!r} cannot go on: {self.bus.reason}")

    async def stop(self, timeout: float) -> None:
        """Take nothing new, finish what runs within `timeout` seconds, give the rest back, and disconnect."""
        if self._stopped:
            return
        self._stopped = True
        due = time.monotonic() + timeout
        draining = {task for task, each in zip(self._tasks, self._triggers, strict=False) if each.drains}
        tasks = {*self._tasks, *([self._expiry] if self._expiry else [])}
        await cancel_all(tasks - draining, f"triggers of {self.name!r}")
        await self._service.stop()
        left = max(0.0, due - time.monotonic())
        ending = [self._asks.drain(left), *(delivery.drain(left) for delivery in self._deliveries)]
        await asyncio.gather(*ending, end_all(draining, left, f"triggers of {self.name!r}"))
        await asyncio.gather(*(task for task in tasks if task.done()), return_exceptions=True)
        try:
            if self._started:
                self._started = False
                await self._stop_agent(max(due - time.monotonic(), 1.0))
        finally:
            closing: list[Journal | PeerScheme] = [*self._facilities.sinks, *self._schemes.values()]
            for component in closing:
                await self._close(component)
            await self._facilities.tools.close()
            for bucket in self._closing:
                await bucket.close()
            await self.bus.close()
            self._numbering.close()

    async def _close(self, component: Journal | PeerScheme) -> None:
        try:
            async with asyncio.timeout(CLOSE_WAIT):
                await component.close()
        except Exception:  # a stranger's component must not keep the rest from ending
            log.exception("agent %r: %s %r did not close", self.name, type(component).__name__, component.name)

    async def _stop_agent(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._agent.stop()
        except TimeoutError:
            log.exception("agent %r: its `stop` did not end within %g s", self.name, timeout)

    # The work

    def consume(self, trigger: Trigger, spec: ConsumerSpec) -> Coroutine[Any, Any, None]:
        """Return what handles what a durable delivers, until cancelled; a coroutine around that would weigh more."""
        if isinstance(trigger, WaitTrigger):
            return Watch(self._facilities, spec).run()
        handler = through([middleware.handle for middleware in self._facilities.middleware], self._agent.handle)
        filters = type(trigger).accepts is not Trigger.accepts
        accepts = partial(trigger.accepts, agent=self.name) if filters else None
        delivery = (Wakes if spec.stream == subjects.WAKES else Delivery)(
            self._facilities, self.spec, spec, trigger.label, handler, self._slots, accepts, self._routing
        )
        self._deliveries.append(delivery)
        return delivery.run()

    async def fire(
        self, trigger: Trigger, kind: str | None, data: Any, id: str | None, *, lasting: bool = False
    ) -> int:
        """Put an event into this agent's own inbox."""
        # Ids are stream-wide [R6].
        own = None if id is None else bounded(f"{subjects.durable(self.name, trigger.label)}:{id}")
        if lasting and own is not None:
            run = run_id(subjects.INBOX, authored(own, self.bus.author), self.name, "inbox")
            if await self._facilities.journal.has(self.name, run):
                return 0
        if isinstance(data, PlainMessage):
            return await keep(self.bus, data, subjects.check_type(kind or type_of(data, trigger.name)), own)
        what = f"{self.name}.{kind or trigger.name}"
        return (await self._facilities.events.send("inject", what, data, Envelope(), own)).sequence

    async def _cancel_run(self, run: str) -> None:
        for delivery in self._deliveries:
            if (ctx := delivery.running.get(run)) is not None:
                await cancel_if_told(ctx, self._facilities)

    async def _answer(self, question: Question) -> str:
        envelope = question.envelope
        ctx = RunContext(
            self._facilities,
            question.run,
            envelope,
            caller=envelope.source,
            cause=envelope.request or question.run,
            timeout=question.timeout,
            handles=question,
        )
        if envelope.revision:
            await self._facilities.context.reach(envelope.revision, CAUSALITY_WAIT)
        if not envelope.key:
            return await self._work_out(question, ctx)
        async with self._repeated.setdefault(ctx.run_id, asyncio.Lock()):  # one that its asker left may go on here
            answer = await answered_before(ctx)
            return await self._work_out(question, ctx) if answer is None else answer

    async def _work_out(self, question: Question, ctx: RunContext) -> str:
        ctx.enter()
        try:
            text = codec.text_of(await self._answering(question.text, ctx))
            await ctx.settle()
        except BaseException as error:
            await end_answer(ctx, error)
            raise
        await end_answer(ctx, text)
        return text

    async def _call_answer(self, question: str, ctx: RunContext) -> Any:
        result = self._agent.answer(question, ctx)
        if inspect.isawaitable(result):
            return await result
        chunks = []
        stream = ctx.stream if self._streams else None
        # Closed here: what is cancelled while a chunk is sent would clean up at some garbage collection.
        async with aclosing(result) if isinstance(result, AsyncGenerator) else nullcontext():
            async for chunk in result:
                chunks.append(codec.text_of(chunk))
                if stream is not None:
                    await stream.send(chunks[-1])
        return "".join(chunks)


class _TriggerContext:
    """What a running trigger may do; see `components.TriggerContext`."""

    def __init__(self, host: AgentHost, trigger: Trigger) -> None:
        self._host, self._trigger = host, trigger
        self.agent, self.clock = host.name, host.clock
        self.log = logging.getLogger(f"natterjack.trigger.{host.name}.{trigger.label}")

    @cached_property  # few need it, and an idle agent has three of these
    def _ready(self) -> asyncio.Event:
        return asyncio.Event()

    async def fire(
        self, data: Any = None, *, type: str | None = None, id: str | None = None, lasting: bool = False
    ) -> int:
        return await self._host.fire(self._trigger, type, data, id, lasting=lasting)

    @property
    def connected(self) -> bool:
        return self._host.bus.connected

    @cached_property  # few are doors
    def admission(self) -> Admission:
        return Admission(self._host.bus)

    @cached_property
    def _peers(self) -> Peers:
        return Peers(self._host.bus, self._host.guards)

    async def ask(self, question: str, *, caller: str, timeout: float = ASK_TIMEOUT) -> Answer:
        return await self._peers.ask(self.agent, question, timeout=timeout, envelope=Envelope(caller))

    def ask_stream(self, question: str, *, caller: str, timeout: float = ASK_TIMEOUT) -> AnswerStream:
        return self._peers.stream(self.agent, question, timeout=timeout, envelope=Envelope(caller))

    def consume(self, spec: ConsumerSpec) -> Coroutine[Any, Any, None]:
        return self._host.consume(self._trigger, spec)

    async def follow(self, spec: ScheduleSpec, callback: Callable[[Firing], Awaitable[object]]) -> None:
        await Relay(self._host.bus, spec, callback, self.log).run()

    async def schedule(self, spec: ScheduleSpec) -> Schedule | None:
        return await schedule(self._host.bus, spec.agent, spec.name)

    async def listen(self, pattern: str, callback: Callable[[PlainMessage], Awaitable[object]]) -> None:
        await Listener(self._host.bus, self._trigger, callback, self.log).run(pattern, self._ready)

    def ready(self) -> None:
        self._ready.set()

    async def until_ready(self, task: asyncio.Task[None]) -> None:
        """Return once it can be reached, or takes its time: what is sent before is lost. Raise what it failed with."""
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait([ready, task], timeout=READY_WAIT, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done() and task.done():
            ready.cancel()
            await task
        ready.cancel()
