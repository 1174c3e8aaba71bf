"""Branches: the tasks of a handler, each of which counts its own calls.

Which of two tasks gets on first differs from attempt to attempt, so their calls are numbered apart. A task is known by
the name of its coroutine, and by how many of that name the same task started before: that is so in each attempt,
whatever the tasks do, and also if a library starts some of its own between them. What a call of the run starts, e.g. a
step, is not counted: a later attempt does not make that call again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Protocol, cast
from weakref import WeakKeyDictionary

from natterjack.context import CAUSE

Task = asyncio.Task[Any]


class Branch:
    """One task of a handler.

    The calls of the handler's own are `1`, `2`, …; those of the first task that it starts with a coroutine `search` are
    `search#1.1`, `search#1.2`, …

    Args:
        run: Whose handler.
        prefix: Of the positions of its calls.

    Attributes:
        run: Whose handler.
        prefix: Of the positions of its calls.
        calls: How many it has made.
    """

    __slots__ = ("_started", "calls", "prefix", "run")

    def __init__(self, run: object, prefix: str = "") -> None:
        self.run, self.prefix, self.calls = run, prefix, 0
        self._started = Counter[str]()

    def start(self, name: str) -> Branch:
        """Return the branch of a task that this one starts."""
        self._started[name] += 1
        return Branch(self.run, f"{self.prefix}{name}#{self._started[name]}.")

    @property
    def position(self) -> str:
        """Of its last call; `0` before the first."""
        return f"{self.prefix}{self.calls}"


class Branching(Protocol):
    """A run, as its tasks know it."""

    task: Task | None
    """In which its handler runs."""
    trunk: Branch | None
    """The branch of that task, made when there is a second one."""


_BRANCHES: WeakKeyDictionary[Task, Branch] = WeakKeyDictionary()
_CALLING: Final[ContextVar[Branching | None]] = ContextVar("natterjack_calling", default=None)


@contextmanager
def calling(run: Branching) -> Iterator[None]:
    """Count no tasks that are started within the context, because a later attempt may not come here."""
    token = _CALLING.set(run)
    try:
        yield
    finally:
        _CALLING.reset(token)


def branch_here(run: Branching) -> Branch | None:
    """Return the branch of a run in which this is called; None if its handler did not start the task."""
    task = asyncio.current_task()
    if task is run.task:
        run.trunk = run.trunk or Branch(run)
        return run.trunk
    branch = None if task is None else _BRANCHES.get(task)
    return branch if branch is not None and branch.run is run else None


def position_here(run: Branching) -> str | None:
    """Return the position of the last call where this is called; None if the handler did not start the task."""
    if run.trunk is None and asyncio.current_task() is run.task:  # most runs have no more
        return "0"
    branch = branch_here(run)
    return None if branch is None else branch.position


class _Numbering:
    """A task factory that numbers the tasks of handlers; the tasks come from the one that was there before."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.before: Any = loop.get_task_factory()
        self.users = 0
        self._make: Any = self.before or _plain

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> Task:
        task: Task = self._make(loop, coroutine, **options)
        run = cast("Branching | None", CAUSE.get())
        if run is not None and _CALLING.get() is not run and (parent := branch_here(run)) is not None:
            _BRANCHES[task] = parent.start(getattr(coroutine, "__name__", type(coroutine).__name__))
        return task


def _plain(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any) -> Task:
    return asyncio.Task(coroutine, loop=loop, **options)


@contextmanager
def tasks_numbered() -> Iterator[None]:
    """Number the tasks that handlers start in this event loop, within the context."""
    loop = asyncio.get_running_loop()
    factory: Any = loop.get_task_factory()
    if not isinstance(factory, _Numbering):
        factory = _Numbering(loop)
        loop.set_task_factory(factory)
    factory.users += 1
    try:
        yield
    finally:
        factory.users -= 1
        here: Any = loop.get_task_factory()
        if not factory.users and here is factory:
            loop.set_task_factory(factory.before)
