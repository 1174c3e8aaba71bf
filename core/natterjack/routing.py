"""Routing: which events carry what a handler returned.

What is to be emitted is decided once per run and journaled before anything of it is emitted, with deduplication
ids of random bits [R6]. A run that is delivered again then emits what was decided, and does not decide anew: its
handler might return something else the second time.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from natterjack import codec
from natterjack.expressions import RESULT_VARIABLES, Condition, about
from natterjack.messages import Event

if TYPE_CHECKING:
    from natterjack.runs import RunContext

log = logging.getLogger("natterjack.routing")

ROUTED: Final = "routed"
"""Kind of the journal entry that holds a result, and the ids of the events that carry it by their types."""


class Routing:
    """The result events of one agent.

    Args:
        always: Type of the event that carries every result, if there is one.
        conditions: Types of the others, each with its condition.

    Raises:
        ConfigError: A condition is none.
    """

    def __init__(self, always: str | None, conditions: Mapping[str, str]) -> None:
        self._always = [always] if always else []
        self._conditions = {type: Condition(text, RESULT_VARIABLES) for type, text in conditions.items()}

    async def emit(self, ctx: RunContext, event: Event, result: Any) -> Any:
        """Emit what carries the result of handling an event, and return that result as JSON gives it back.

        Raises:
            PayloadError: The result cannot be sent, or a condition cannot be decided for it.
        """
        value = codec.decode(codec.encode(result))
        types = self._types(event, value)
        if types:
            entry = {"result": value, "events": {type: secrets.token_urlsafe(16) for type in types}}
            await ctx.journal.record(ROUTED, entry)
            return await emit_decided(ctx, entry)
        log.info("%s: no condition of `result_events` holds for the result of run %s", ctx.agent, ctx.run_id)
        return value

    def _types(self, event: Event, value: Any) -> list[str]:
        if not self._conditions:
            return self._always
        values = {"result": value, **about(event)}
        return self._always + [type for type, condition in self._conditions.items() if condition.holds(**values)]


def decided(ctx: RunContext) -> Mapping[str, Any] | None:
    """Return what an earlier attempt of the run has decided to emit, if it came that far."""
    return next((entry.data for entry in ctx.journal.entries(kind=ROUTED)), None)


async def emit_decided(ctx: RunContext, decided: Mapping[str, Any]) -> Any:
    """Emit what was decided, where it is not stored yet, and return the result."""
    for type, identity in decided["events"].items():
        await ctx.emit(type, decided["result"], id=identity)
    return decided["result"]
