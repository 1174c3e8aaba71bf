"""Agents whose part is written by the test."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from natterjack.components import Agent
from natterjack.messages import Event
from natterjack.runs import RunContext
from natterjack.testing.waiting import until


class ScriptedAgent(Agent):
    """Does what the test wrote down, and remembers what it was given.

    Example::

        agent = ScriptedAgent(results=[ValueError("not now"), "done"], answers=lambda question: question.upper())
        runtime.add_process(AgentProcess("worker", agent=agent, triggers=[EventTrigger("work.due")]))
        …
        first, again = await agent.handled(2)

    A script is a value for every call, or a list with an item for each call. An item that is an exception is raised,
    one that is a function is called with the event or question and may be async.

    Args:
        results: The script of `handle`.
        answers: The script of `answer`.

    Attributes:
        events: What `handle` was given.
        questions: What `answer` was given.
        contexts: The context of each call, in their order.
    """

    def __init__(self, results: Any = None, answers: Any = "") -> None:
        super().__init__()
        self._results, self._answers = results, answers
        self.events: list[Event] = []
        self.questions: list[str] = []
        self.contexts: list[RunContext] = []

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        """Note the event, and do what the script says."""
        self.events.append(event)
        self.contexts.append(ctx)
        return await _play(self._results, len(self.events), event)

    def answer(self, question: str, ctx: RunContext) -> Awaitable[Any] | AsyncIterator[Any]:
        """Note the question, and do what the script says."""
        self.questions.append(question)
        self.contexts.append(ctx)
        return _play(self._answers, len(self.questions), question)

    async def handled(self, count: int = 1, timeout: float = 10.0) -> Sequence[Event]:
        """Return the events once there are so many.

        Raises:
            AssertionError: There were fewer after `timeout` seconds.
        """
        await until(lambda: len(self.events) >= count, timeout, f"{len(self.events)} of {count} events came")
        return self.events


class CountingAgent(Agent):
    """Handles events by a function, which may use all of its run, and counts what that says it did.

    Args:
        work: The handler.

    Attributes:
        did: How often what was done; `handled` counts the calls of the handler.
    """

    def __init__(self, work: Callable[[Event, RunContext], Awaitable[Any]]) -> None:
        super().__init__()
        self._work = work
        self.did = Counter[str]()

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        """Count, and call the function."""
        self.did["handled"] += 1
        return await self._work(event, ctx)

    def do(self, what: str) -> str:
        """Count something, and return it: a step for tests."""
        self.did[what] += 1
        return what


async def _play(script: Any, call: int, given: Event | str) -> Any:
    """Do what a script says for a call, 1 first."""
    if isinstance(script, list):
        if call > len(script):
            msg = f"the script has {len(script)} items, and this is call {call}: {given!r}"
            raise AssertionError(msg)
        script = script[call - 1]
    if isinstance(script, Exception):
        raise script
    if not callable(script):
        return script
    made = script(given)
    return await made if inspect.isawaitable(made) else made
