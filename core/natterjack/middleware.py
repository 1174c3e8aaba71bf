"""Middleware: what a plugin puts around the work of every agent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from natterjack.components import Component
from natterjack.messages import Event

if TYPE_CHECKING:
    from natterjack.runs import RunContext


class Middleware(Component):
    """Stands around an agent's work. Override what it cares for, and await `call` to go on.

    Attributes:
        streams: Whether its `answer` leaves the answer as it is, so that chunks may go out as they come. Else the
            asker gets them in one piece, once `answer` has returned what it makes of them.
    """

    streams: ClassVar[bool] = False

    @property
    def keeps_chunks(self) -> bool:
        """Whether an answer may go out in chunks; who may change it must see it whole."""
        return self.streams or type(self).answer is Middleware.answer

    async def handle(self, event: Event, ctx: RunContext, call: Callable[[Event, RunContext], Awaitable[Any]]) -> Any:
        """Stand around one handling of an event."""
        return await call(event, ctx)

    async def answer(self, question: str, ctx: RunContext, call: Callable[[str, RunContext], Awaitable[Any]]) -> Any:
        """Stand around one answer."""
        return await call(question, ctx)

    async def emit(
        self, event_type: str, data: Any, ctx: RunContext, call: Callable[[str, Any], Awaitable[int]]
    ) -> int:
        """Stand around one emit of a run."""
        del ctx
        return await call(event_type, data)

    async def call_tool(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        ctx: RunContext,
        call: Callable[[str, Mapping[str, Any]], Awaitable[Any]],
    ) -> Any:
        """Stand around one call of a tool by a run; `tool` is its address, `server.tool`."""
        del ctx
        return await call(tool, arguments)
