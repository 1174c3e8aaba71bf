"""The built-in trigger for plain subjects: what any program publishes where nothing is stored."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, ClassVar

from pydantic import AfterValidator

from natterjack.builtin.triggers import FilteredTrigger
from natterjack.codec import decode
from natterjack.components import TriggerContext
from natterjack.listener import check_plain, type_of
from natterjack.messages import Event, PlainMessage
from natterjack.rights import Right

Plain = Annotated[str, AfterValidator(check_plain)]


class SubjectTrigger(FilteredTrigger):
    """Fires for each message that any program publishes on a plain subject: sensors, other services, `nats pub`.

    Each goes to the agent's inbox at once, as it is, and is then as safe as any event; of the agent's replicas one
    takes it. The event's type is the subject, or `subject` where that is none (then it is in the header
    `Natterjack-Subject`); its data is the JSON value or the text. What is neither, or is too large, becomes a dead
    letter. While the inbox is full, messages wait.

    A plain message is stored nowhere until then: what is published while no replica listens is lost. Where that matters
    publish an event.

    Example::

        SubjectTrigger("sensors.*.temperature", where="data > 30.0")

    In a team file: `on = [{ subject = "sensors.*.temperature" }]`.
    """

    name: ClassVar[str] = "subject"

    class Config(FilteredTrigger.Config):
        """Settings of a subject trigger."""

        subject: Plain

    _follows: ClassVar[str] = "subject"
    _check = staticmethod(check_plain)

    def __init__(self, subject: str | Config, *, where: str | None = None) -> None:
        super().__init__(subject, where=where)

    def needs(self, agent: str) -> list[Right]:
        """To listen."""
        return [*super().needs(agent), Right("listen", self._followed)]

    async def run(self, ctx: TriggerContext) -> None:
        """Put what comes into the inbox."""

        async def take(message: PlainMessage) -> None:
            if self._condition is None or self.accepts(self._event(message), ctx.agent):
                await ctx.fire(message)

        await ctx.listen(self._followed, take)

    def _event(self, message: PlainMessage) -> Event:
        kind, data = type_of(message, self.name), decode(message.data)
        return Event("", kind, data, "", datetime.now(UTC), headers=message.headers)
