"""The inbox: what is addressed to one agent alone."""

from __future__ import annotations

from typing import ClassVar

from natterjack import subjects
from natterjack.components import ConsumerSpec, StreamTrigger
from natterjack.rights import Right


class InboxTrigger(StreamTrigger):
    """Fires for what is addressed to this agent alone: `inject_event`, other triggers, retried dead letters.

    Every agent has it; it is not written anywhere.
    """

    name: ClassVar[str] = "inbox"

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """One durable on INBOX."""
        return [ConsumerSpec(subjects.INBOX, subjects.durable(agent, self.label), subjects.stored_inbox(agent))]

    def needs(self, agent: str) -> list[Right]:
        """Its consumer, and to put something into it: that is how triggers fire."""
        return [*super().needs(agent), Right("inject", f"{agent}.>")]
