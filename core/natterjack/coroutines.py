"""Coroutines that need no task of their own until they wait for something."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Sequence
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Call = Callable[..., Awaitable[R]]

TURN: Final = 0.01
"""Seconds for which what waits for nothing may follow on one another before others have a turn."""


class Begun(Generic[T]):
    """A coroutine that is begun at once, by the task that is running; if it waits for something, await this.

    Args:
        coroutine: What to run.
        context: What it has for context variables; by default those of the running task.

    Attributes:
        ended: Whether it has; `result` is then what it returned.
    """

    __slots__ = ("_context", "_coroutine", "_waits_for", "ended", "result")
    result: T

    def __init__(self, coroutine: Coroutine[Any, Any, T], context: Context | None = None) -> None:
        self._coroutine, self._context = coroutine, context
        self._waits_for: Any = None
        self.ended = False

    def begin(self) -> bool:
        """Run it up to where it first waits, and return whether it has ended before that."""
        self._go(self._coroutine.send, None)
        return self.ended

    def _go(self, on: Callable[[Any], Any], value: Any) -> None:
        try:
            self._waits_for = on(value) if self._context is None else self._context.run(on, value)
        except StopIteration as end:
            self.ended, self.result = True, end.value

    def __await__(self) -> Generator[Any, Any, T]:
        while not self.ended:
            try:
                sent = yield self._waits_for
            except BaseException as error:
                self._go(self._coroutine.throw, error)
            else:
                self._go(self._coroutine.send, sent)
        return self.result


class WorkQueue(Generic[T]):
    """Works on items in the order they come: no task for each, but for each that has to wait for something.

    Args:
        work: What is done with an item; items that wait are worked on at once.

    Attributes:
        tasks: What is under way.
    """

    _waiting: deque[T] | None = None  # made when it is first used: it weighs more than all the rest

    def __init__(self, work: Callable[[T], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self.tasks: set[asyncio.Task[None]] = set()
        self._taker: asyncio.Task[None] | None = None  # the task that is about to begin with what waits

    def put(self, item: T) -> None:
        """Add an item; its work begins with the next turn of the event loop."""
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(item)
        if self._taker is None:
            self._taker = self.spawn(self._take())

    @property
    def waiting(self) -> Collection[T]:
        """The items that nobody has begun with."""
        return self._waiting or ()

    def remove(self, item: T) -> None:
        """Forget one of the items that wait."""
        if self._waiting is not None:
            self._waiting.remove(item)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do some other work in a task of its own."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def _take(self) -> None:
        """Work on items one after another; with the first that waits, the others become another task's."""
        self._taker, until = None, time.monotonic() + TURN
        task = asyncio.current_task()
        waiting = self._waiting
        while waiting:
            working = Begun(self._work(waiting.popleft()), copy_context())
            try:
                working.begin()
            finally:
                if waiting and not (working.ended and time.monotonic() < until and not is_cancelled(task)):
                    self._taker = self.spawn(self._take())
            if self._taker or not working.ended:
                await working
                return


def is_cancelled(task: asyncio.Task[Any] | None) -> bool:
    """Tell whether somebody has cancelled a task."""
    return task is not None and task.cancelling() > 0


async def first_of(*work: Awaitable[Any]) -> Any:
    """Return what the first of several coroutines returns, or raise what it raises; the others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return next(task for task in tasks if task in done).result()


def through(around: Sequence[Call[R]], call: Call[R], *context: object) -> Call[R]:
    """Return a call with steps around it, the first outermost; each gets arguments, context, and the call inside."""
    for step in reversed(around):
        call = partial(_take, step, context, call)
    return call


def _take(step: Call[R], context: tuple[object, ...], call: Call[R], *args: Any) -> Awaitable[R]:
    return step(*args, *context, call)


def entered(enter: Callable[[], None]) -> Context:
    """Return a copy of the context variables, after what `enter` does to them."""
    variables = copy_context()
    variables.run(enter)
    return variables
