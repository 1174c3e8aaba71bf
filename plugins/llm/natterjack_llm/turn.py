"""One turn of a model, from a prompt to its output: each request and each call of a tool is a step of the run.

The steps are called in the handler's own task, one after another as the model asks for them, whatever tasks the library
around the model has: so their positions in the journal are `1`, `2`, … on each attempt, and with each of its versions.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from natterjack import AgentSpec, Answer, Answers, Conversations, Quota, SharedContext, ToolInfo, Verb

T = TypeVar("T")


class TurnContext(Protocol):
    """What a turn uses of a run."""

    agent: str
    run_id: str

    @property
    def spec(self) -> AgentSpec:
        """The agent, as its team describes it."""

    def heard(self, verb: Verb, /) -> Sequence[str]:
        """Return patterns of the events that somebody waits for; with `publish`, of the topics that somebody reads."""

    @property
    def conversations(self) -> Conversations:
        """The agent's conversations."""

    @property
    def tools(self) -> TurnTools:
        """Its tools."""

    @property
    def shared(self) -> SharedContext:
        """The shared context."""

    def step(self, name: str, fn: Callable[[], Awaitable[T]], /) -> Coroutine[Any, Any, T]:
        """Do something once."""

    def spent(self, **usage: float) -> None:
        """Say what something cost."""

    def quota(self, *, team: bool = False) -> Quota:
        """Return what counts the uses of the agent's replicas, or of the whole team."""

    async def ask_human(self, question: str, *, choices: Sequence[str] = ()) -> str:
        """Ask a human."""

    async def ask_peer(self, name: str, question: str, /) -> Answer:
        """Ask an agent."""

    async def broadcast(self, names: Sequence[str], question: str, /) -> Answers:
        """Ask several."""

    async def emit(self, type: str, data: Any = None) -> int:
        """Emit an event."""

    async def publish(self, topic: str, data: Any = None) -> int:
        """Publish a message."""


class TurnTools(Protocol):
    """What a turn uses of a run's tools."""

    async def list(self) -> Sequence[ToolInfo]:
        """Return those that the agent may call."""

    async def call_with(self, tool: str, arguments: Mapping[str, Any], /, *, approval: str | None) -> Any:
        """Call one."""

    async def approve(self, question: str, /) -> str:
        """Have a human allow a call."""


class _Place(NamedTuple):
    """A call that waits for its turn: `take` is called in the handler's task."""

    take: Callable[[], Awaitable[Any]]
    taken: asyncio.Future[Any]


class Turn:
    """What goes on between a run and a model.

    Args:
        ctx: The run.
        streams: Whether somebody reads what the model says as it comes.

    Attributes:
        ctx: The run.
        streams: Whether somebody reads what the model says as it comes.
        result: What came of it.
    """

    result: Any

    def __init__(self, ctx: TurnContext, *, streams: bool = False) -> None:
        self.ctx, self.streams, self.result = ctx, streams, None
        self._queue: asyncio.Queue[_Place | str | None] = asyncio.Queue()

    def say(self, text: str) -> None:
        """Pass on what the model says."""
        if text:
            self._queue.put_nowait(text)

    async def step(self, name: str, fn: Callable[[], Awaitable[T]]) -> T:
        """Do something once, as a step of the run; what it returns is JSON."""
        step: Coroutine[Any, Any, T] = await self._in_handler(lambda: _held(self.ctx.step(name, fn)))
        return await step

    async def ask_human(self, question: str, choices: tuple[str, ...] = ()) -> str:
        """Ask a human; the run leaves its process until there is an answer."""
        answer: str = await self._in_handler(lambda: self.ctx.ask_human(question, choices=choices))
        return answer

    async def approve(self, question: str) -> str:
        """Have a human allow a call of a tool, in the same way."""
        approval: str = await self._in_handler(lambda: self.ctx.tools.approve(question))
        return approval

    async def _in_handler(self, take: Callable[[], Awaitable[Any]]) -> Any:
        place = _Place(take, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(place)
        try:
            return await place.taken
        except asyncio.CancelledError:
            if place.taken.done() and not place.taken.cancelled() and place.taken.exception() is None:
                close = getattr(place.taken.result(), "close", None)
                if close is not None:  # a step that is not begun
                    close()
            raise

    async def run(self, work: Coroutine[Any, Any, Any]) -> AsyncGenerator[str, None]:
        """Do the work in a task beside the handler, which makes its calls; yield what is said, then set `result`."""
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._queue.put_nowait(None))
        try:
            while (item := await self._queue.get()) is not None:
                if isinstance(item, str):
                    yield item
                else:
                    await _take(item)
            self.result = await task
        finally:
            task.cancel()
            await asyncio.wait([task])


async def _held(step: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    return step


async def _take(place: _Place) -> None:
    if place.taken.cancelled():
        return
    try:
        result = await place.take()
    except Exception as error:
        if not place.taken.done():
            place.taken.set_exception(error)
    else:
        if not place.taken.done():
            place.taken.set_result(result)
