"""Delivery: from a stored message to a finished run, with attempts, backoff and dead letters.

An attempt is a started handler that failed or died, never the server's delivery count: that one grows for messages
nobody has run yet [R2]. A first delivery writes nothing before its handler; a later one reads the run's journal, so
that a run which ended is not run again, and records its start, so that a handler which kills its process counts.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from natterjack import durable
from natterjack.bus import Consumer, Message, Place, place_of, stored
from natterjack.causes import cause_of, seen_once
from natterjack.components import Entry
from natterjack.coroutines import Begun, WorkQueue, entered, is_cancelled
from natterjack.dead import DeadLetter, bury
from natterjack.errors import BrokerError, DisconnectedError, FencedError, LoopError, NatterjackError, PayloadError
from natterjack.events import event_id, identity_of, payload_of, read_event
from natterjack.facilities import Facilities
from natterjack.messages import Envelope, Event, run_id
from natterjack.ordering import ELSEWHERE, GROUP, WINDOW, Lanes, key_of
from natterjack.origins import Origin
from natterjack.pauses import Left
from natterjack.peers import MAX_DEPTH, cancel_all, loop_message
from natterjack.routing import Routing, decided, emit_decided
from natterjack.runs import RunContext
from natterjack.slots import Slots
from natterjack.specs import ConsumerSpec

if TYPE_CHECKING:
    from natterjack.team import AgentSpec

log = logging.getLogger("natterjack.delivery")

MAX_BACKOFF: Final = 60.0
MAX_WAIT: Final = 3600.0
"""Seconds that a failure may ask to wait at most, by its `retry_after`."""
CAUSALITY_WAIT: Final = 1.0
"""Seconds an event waits for the context writes that came before it [R7]; then they are read through."""
COLLISION_PAUSE: Final = 1.0

Handler = Callable[[Event, RunContext], Awaitable[Any]]


class Delivery:
    """Handles what one durable consumer delivers, for one agent.

    Args:
        facilities: What the agent works with.
        spec: The agent's limits.
        consumer: Which durable consumer.
        label: Name of the trigger.
        handler: Does the work.
        slots: Bounds what the agent handles at once, over all its triggers.
        accepts: Which events to handle; None: all.
        routing: Which events carry the results; None: none.

    Attributes:
        running: What goes on, by its run's id.
    """

    def __init__(
        self,
        facilities: Facilities,
        spec: AgentSpec,
        consumer: ConsumerSpec,
        label: str,
        handler: Handler,
        slots: Slots,
        accepts: Callable[[Event], bool] | None,
        routing: Routing | None,
    ) -> None:
        self._facilities, self._spec, self._label, self._handler = facilities, spec, label, handler
        self._slots, self._accepts, self._routing = slots, accepts, routing
        self._work = WorkQueue(self._take)
        ordered_by = spec.ordered_by if consumer.ordered else None
        window, group = (max(WINDOW, spec.concurrency), GROUP) if ordered_by else (spec.concurrency, "")
        self._consumer = Consumer(facilities.bus, consumer, self._deliver, slots=window, group=group)
        self._lanes = self._make_lanes(ordered_by) if ordered_by else None
        self._again: dict[str, float] = {}
        self.running: dict[str, RunContext | None] = {}
        self._ends: dict[str, tuple[Message, asyncio.Future[Message]]] = {}  # runs whose last entry is on its way
        self._puller: asyncio.Task[Any] | None = None

    def run(self) -> Coroutine[Any, Any, None]:
        """Return what handles until cancelled; then `drain` finishes what is held."""
        self._puller = asyncio.current_task()
        return self._consumer.run()

    @property
    def _ending(self) -> bool:
        """Whether the agent ends; else whoever cancelled a handler was the handler, which is a failure like any."""
        return self._puller is None or self._puller.done() or self._puller.cancelling() > 0

    async def drain(self, timeout: float) -> None:
        """Finish the runs that are going on; those that need longer than `timeout` seconds are given back."""
        if self._lanes is not None:
            self._lanes.stop()
        deadline = time.monotonic() + timeout
        while (under_way := self._under_way()) and (left := deadline - time.monotonic()) > 0:
            await asyncio.wait(under_way, timeout=min(left, self._consumer.progress_every))
            self._consumer.tell_progress()
        await cancel_all(self._work.tasks, f"handlers of {self._facilities.agent!r}")
        for _, stored_end in self._ends.values():
            stored_end.cancel()
        for message in [*self._work.waiting, *(message for message, _ in self._ends.values())]:
            self._consumer.nak(message)

    def _under_way(self) -> list[asyncio.Future[Any]]:
        return [*self._work.tasks, *(stored_end for _, stored_end in self._ends.values())]

    # Taking messages

    def _deliver(self, message: Message) -> None:
        if self._lanes is not None:
            if not self._lanes.add(message):
                self._consumer.drop(message)
            return
        self._work.put(message)

    def _take(self, message: Message) -> Coroutine[Any, Any, None]:
        return self._decide(message, self._handle(message))

    def _make_lanes(self, path: str) -> Lanes:
        def key(message: Message) -> bytes | None:
            try:
                return key_of(read_event(message, place_of(message))[0], path)
            except NatterjackError:  # its handling will say why
                return None

        consumer = self._consumer
        return Lanes(key, self._handle_in_order, consumer.nak, consumer.outstanding, self._work.spawn)

    async def _handle_in_order(self, message: Message, again: bool) -> float | None:
        await self._decide(message, self._handle(message, again=again))
        return self._again.pop(message.reply, None)

    def _nak(self, message: Message, delay: float) -> None:
        """Have a message handled again after some seconds: by whom the server chooses, or here, to keep its order."""
        if self._lanes is not None and not self._ending:
            self._again[message.reply] = delay
            return
        if self._lanes is not None:
            self._lanes.stop()  # before it begins with the next of this key
        self._consumer.nak(message, delay)

    async def _decide(self, message: Message, work: Awaitable[None]) -> None:
        """Work on a message; whatever comes of it, the server hears."""
        try:
            await work
        except FencedError as error:
            log.info("%s", error)
            self._consumer.drop(message)
            if self._lanes is not None:
                self._again[message.reply] = ELSEWHERE
        except asyncio.CancelledError:
            self._consumer.nak(message)
            raise
        except Exception as error:  # e.g. the broker was away for long: the server delivers the message again
            text, traced = "%s: a message of %s is left for later: %s", not isinstance(error, BrokerError)
            log.error(text, self._facilities.agent, self._label, cause_of(error), exc_info=traced)  # noqa: TRY400
            self._nak(message, max(self._spec.retry_delay, getattr(error, "retry_after", 0.0)))

    async def _handle(self, message: Message, *, again: bool = False) -> None:
        place = place_of(message)
        if again:
            place = place._replace(delivered=place.delivered + 1)
        try:
            event, envelope = read_event(message, place)
            if envelope.depth > MAX_DEPTH:
                raise LoopError(loop_message(envelope))
            if self._accepts is not None and not self._accepts(event):
                self._consumer.ack(message)
                return
        except NatterjackError as error:
            await self._give_up_unread(message, place, str(error))
            return
        run = self._run_id(message, place)
        if run in self.running or run in self._ends:  # delivered again meanwhile, e.g. after a restart of the server
            self._nak(message, COLLISION_PAUSE)
            return
        self.running[run] = None
        try:
            await self._run(message, place, event, envelope, run)
        finally:
            del self.running[run]

    def _run_id(self, message: Message, place: Place) -> str:
        identity = identity_of(message, place.sequence)
        return run_id(place.stream, identity, self._facilities.agent, self._label)

    async def _run(self, message: Message, place: Place, event: Event, envelope: Envelope, run: str) -> None:
        ctx = RunContext(
            self._facilities,
            run,
            envelope,
            caller=event.source,
            cause=event.id,
            timeout=self._spec.timeout,
            handles=Origin(self._label, message, place),
        )
        if place.delivered > 1 and not await durable.goes_on_here(ctx, self._facilities):
            self._consumer.ack(message)
            return
        await self._go_on(message, place, ctx, event, envelope)

    async def _go_on(self, message: Message, place: Place, ctx: RunContext, event: Event, envelope: Envelope) -> None:
        """Begin with a run, or go on where its journal ends."""
        self.running[ctx.run_id], attempt = ctx, 1
        if place.delivered > 1:
            tries = ctx.journal.tries
            attempt = tries.total + 1
            if tries.in_vain >= self._spec.max_attempts:
                of = f"attempt {tries.in_vain}/{self._spec.max_attempts}"
                cause = f"the process died, or blocked its loop, while handling it, {of}"
                await self._give_up(message, place, ctx, cause, attempt - 1)
                return
        held = await self._slots.take(alone=place.delivered > 1 and ctx.journal.died)
        try:
            if place.delivered > 1:
                await ctx.journal.record("started", {"attempt": attempt})
                event = replace(event, attempt=attempt)
            try:
                result = await self._attempt(event, envelope, ctx)
            except KeyboardInterrupt:
                raise
            except Left as left:
                await self._leave(message, place, ctx, left, attempt)
                return
            except BaseException as error:  # SystemExit and a stray CancelledError are failures like any other
                if isinstance(error, asyncio.CancelledError) and self._ending:
                    await self._interrupted(place, ctx, attempt)
                    raise
                await self._failed(message, place, ctx, durable.gone_astray(ctx) or error, attempt)
                return
        finally:
            self._slots.give(held)
        self._consumer.release(message)
        await self._complete(message, ctx, result, event)

    async def _attempt(self, event: Event, envelope: Envelope, ctx: RunContext) -> Any:
        """Run the handler within its deadline, and everything that must be durable before the ack."""
        if self._routing is not None and (found := decided(ctx)) is not None:
            return await emit_decided(ctx, found)
        if envelope.revision:
            await self._facilities.context.reach(envelope.revision, CAUSALITY_WAIT)
        due = asyncio.get_running_loop().time() + self._spec.timeout
        ctx.deadline = time.time() + self._spec.timeout
        work = self._handler(event, ctx)
        begun = Begun(work if inspect.iscoroutine(work) else _awaited(work), entered(ctx.enter))
        if not begun.begin() or ctx.unsettled or is_cancelled(asyncio.current_task()):
            try:
                await self._finish(begun, ctx, asyncio.timeout_at(due))
            except Exception:
                if not durable.is_left(ctx):  # else it is how the handler ended when it was cancelled
                    raise
            if durable.is_left(ctx):
                await ctx.settle()
                raise Left(durable.ticket_of(ctx))
        return begun.result if self._routing is None else await self._routing.emit(ctx, event, begun.result)

    async def _finish(self, begun: Begun[Any], ctx: RunContext, limit: asyncio.Timeout) -> None:
        """Wait for a handler that waits for something, and for what it wrote, within its deadline."""
        try:
            async with limit:
                ctx.limit = limit
                durable.interrupt_if_left(ctx)
                try:
                    await begun
                except Exception:
                    await durable.finish(ctx)  # so that they need not be done again
                    raise
                if is_cancelled(asyncio.current_task()):
                    await asyncio.sleep(0)  # where a handler that cancelled its own task hears of it
                durable.check_same(ctx)
                await ctx.settle()
        except TimeoutError as error:
            if not limit.expired():
                raise
            msg = f"it did not end within {self._spec.timeout:g} s"
            raise TimeoutError(msg) from error.__cause__  # where the handler was
        finally:
            await durable.end(ctx)

    async def _complete(self, message: Message, ctx: RunContext, result: Any, event: Event) -> None:
        """Journal that the run has ended; the message is acked when that is stored."""
        about = {"type": event.type, "event": event.id, "attempt": event.attempt, **durable.unwritten(ctx)}
        ending = {"result": result, **about}
        if not ctx.journaled and self._lanes is None and self._posted(message, ctx, ending):
            return  # with lanes it is awaited: the next of a key begins when the last has ended
        try:
            await ctx.journal.record("done", ending)
        except PayloadError as error:
            log.warning("%s: the result of run %s is not journaled: %s", ctx.agent, ctx.run_id, error)
            await ctx.journal.record("done", ending | {"result": None, "omitted": str(error)})
        self._consumer.ack(message)

    def _posted(self, message: Message, ctx: RunContext, ending: dict[str, Any]) -> bool:
        """Send the last entry of a run that wrote no other, and do not wait until it is stored [R18]."""
        entry = Entry(ctx.agent, ctx.run_id, 1, "done", ending, time.time())
        try:
            answer = self._facilities.journal.post(entry)
        except (PayloadError, DisconnectedError) as error:  # e.g. too large for one message
            log.debug("%s: the end of run %s is awaited: %s", entry.agent, entry.run, error)
            return False
        self._ends[entry.run] = message, answer
        answer.add_done_callback(partial(self._end_answered, message, entry))
        return True

    def _end_answered(self, message: Message, entry: Entry, answer: asyncio.Future[Message]) -> None:
        """Ack a message whose run is journaled to its end, or else try again, as for every other entry."""
        if answer.cancelled():  # by `drain`, which gives the message back
            return
        try:
            stored("journal", answer.result())
        except NatterjackError as error:
            log.debug("%s: the end of run %s is written again: %s", entry.agent, entry.run, error)
            self.running[entry.run] = None
            self._work.spawn(self._decide(message, self._write_again(message, entry)))
        else:
            self._consumer.ack(message)
        del self._ends[entry.run]

    async def _write_again(self, message: Message, entry: Entry) -> None:
        try:
            await self._facilities.journal.write(entry)
        finally:
            del self.running[entry.run]
        self._consumer.ack(message)

    async def _leave(self, message: Message, place: Place, ctx: RunContext, left: Left, attempt: int) -> None:
        """Let a run that waits go on by a ticket; either way, be done with its message."""
        if left.ticket is not None:
            if place.delivered > 1 and ctx.journal.tries.under_way:
                await ctx.journal.record("interrupted", {"attempt": attempt})
            await self._facilities.waits.park(left.ticket)
        log.debug("%s: run %s left its handler: %s", ctx.agent, ctx.run_id, left.ticket or "it was cancelled")
        self._consumer.ack(message)

    async def _interrupted(self, place: Place, ctx: RunContext, attempt: int) -> None:
        """Take back that an attempt started: neither the agent's end nor the broker's is the handler's fault."""
        if place.delivered > 1 and self._facilities.bus.connected:
            await ctx.journal.record("interrupted", {"attempt": attempt})

    async def _failed(
        self, message: Message, place: Place, ctx: RunContext, error: BaseException, attempt: int
    ) -> None:
        limit, retry, cause = self._spec.max_attempts, getattr(error, "retry", True), cause_of(error)
        number = ctx.journal.tries.failing
        delay = min(MAX_BACKOFF, self._spec.retry_delay * 2 ** min(number - 1, 16))
        delay = max(delay, min(MAX_WAIT, getattr(error, "retry_after", 0.0)))
        if isinstance(error, FencedError):
            raise error
        if isinstance(error, BrokerError) and error.transient and retry:  # it is no attempt of the handler
            log.warning("%s: %s; run %s goes on in %.3g s", ctx.agent, cause, ctx.run_id, delay)
            await self._interrupted(place, ctx, attempt)
            self._nak(message, delay)
            return
        if number >= limit or not retry:
            text = "%s: attempt %d/%d failed for good: %s"
            log.error(text, ctx.agent, number, limit, cause, exc_info=seen_once(error, attempt))
            await self._give_up(message, place, ctx, cause, attempt)
            return
        text = "%s: attempt %d/%d failed, next in %g s: %s"
        log.error(text, ctx.agent, number, limit, round(delay, 3), cause, exc_info=seen_once(error, attempt))
        await ctx.journal.record("failed", {"attempt": attempt, "cause": cause, **durable.unwritten(ctx)})
        self._nak(message, delay)

    async def _give_up_unread(self, message: Message, place: Place, cause: str) -> None:
        """Dead-letter what no handler shall see; its run ends, too, for whoever waits for the result."""
        run, cause_id = self._run_id(message, place), event_id(message, place.sequence)
        ctx = RunContext(self._facilities, run, Envelope(), caller="", cause=cause_id, timeout=0.0)
        if place.delivered > 1:
            await ctx.journal.load()
        if not ctx.journal.ended:
            log.error("%s: %s %d is dead-lettered unread: %s", ctx.agent, place.stream, place.sequence, cause)
            await self._give_up(message, place, ctx, cause, 0)
        else:
            self._consumer.ack(message)

    async def _give_up(self, message: Message, place: Place, ctx: RunContext, cause: str, attempts: int) -> None:
        origin = (place.stream, message.subject, place.sequence)
        label = ctx.handles.trigger if isinstance(ctx.handles, Origin) else self._label
        letter = DeadLetter(ctx.agent, label, cause, attempts, *origin, ctx.cause, ctx.run_id)
        await bury(self._facilities.bus, letter, payload_of(message, place))
        await ctx.journal.record("dead", {"cause": cause, "attempts": attempts})
        self._consumer.ack(message)


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work
