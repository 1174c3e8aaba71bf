"""A coroutine that needs no task of its own until it waits for something."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Steps(Generic[T]):
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
        self._step(self._coroutine.send, None)
        return self.ended

    def _step(self, step: Callable[[Any], Any], value: Any) -> None:
        try:
            self._waits_for = step(value) if self._context is None else self._context.run(step, value)
        except StopIteration as end:
            self.ended, self.result = True, end.value

    def __await__(self) -> Generator[Any, Any, T]:
        while not self.ended:
            try:
                sent = yield self._waits_for
            except BaseException as error:
                self._step(self._coroutine.throw, error)
            else:
                self._step(self._coroutine.send, sent)
        return self.result
