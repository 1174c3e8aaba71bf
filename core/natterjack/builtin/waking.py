"""The triggers by which runs that waited go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from natterjack import subjects
from natterjack.builtin.triggers import InboxTrigger
from natterjack.components import StreamTrigger, Trigger
from natterjack.rights import Right
from natterjack.specs import ConsumerSpec


class WakeTrigger(StreamTrigger):
    """Wakes runs that wait, when their time has come.

    Every agent has it; it is not written anywhere.
    """

    name: ClassVar[str] = "wake"

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on WAKES."""
        durable = subjects.durable(agent, self.label)
        return [ConsumerSpec(subjects.WAKES, durable, subjects.wake(agent, "*"), ordered=False)]

    def needs(self, agent: str) -> list[Right]:
        """Its consumer, and to leave tickets there."""
        return [*super().needs(agent), Right("park", agent)]


class WaitTrigger(StreamTrigger):
    """Wakes runs that wait for an event (`ctx.wait_for`), when one comes.

    An agent has one for each pattern of its `waits`.
    """

    name: ClassVar[str] = "wait"

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = pattern

    @property
    def label(self) -> str:
        """`wait-<pattern>`."""
        return subjects.label(self.name, self._pattern)

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on EVENTS."""
        durable, stored = subjects.durable(agent, self.label), subjects.stored_events(self._pattern)
        return [ConsumerSpec(subjects.EVENTS, durable, stored, first="new", ordered=False)]

    def needs(self, agent: str) -> list[Right]:
        """Its consumer, and to read and hear these events."""
        return [*super().needs(agent), Right("replay", self._pattern), Right("hear", self._pattern)]


def own_triggers(waits: Sequence[str] = ()) -> list[Trigger]:
    """Return the triggers that an agent has without naming them."""
    return [InboxTrigger(), WakeTrigger(), *(WaitTrigger(pattern) for pattern in waits)]
