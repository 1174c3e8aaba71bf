"""What provisioning creates for a trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from natterjack import subjects
from natterjack.rights import Right


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable consumer that provisioning creates for a trigger.

    Attributes:
        stream: Stream it reads.
        name: Its durable name, unique in the stream.
        filter: Subject pattern of stored messages.
        first: What it delivers of what is stored when its team is first provisioned: all of it, the newest of each
            subject, or nothing. A trigger that is added to a team later begins with what comes then.
        ordered: Whether an agent's `ordered_by` holds for what it delivers.
    """

    stream: str
    name: str
    filter: str
    first: Literal["all", "last_per_subject", "new"] = "all"
    ordered: bool = True

    @property
    def right(self) -> Right:
        """The right to pull from it."""
        return Right("consume", f"{self.stream}/{self.name}")


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """A schedule that provisioning writes for a trigger. The broker fires by its own clock, whoever is there (ADR-51).

    A trigger without it has it removed. One that stays as it is keeps its rhythm, however often it is provisioned.

    Attributes:
        agent: Whom it wakes.
        name: The trigger's label.
        when: `@at <RFC 3339>`, `@every <n>s` with whole seconds, or six fields of cron in numbers, seconds first.
        zone: Time zone of the fields, e.g. `Europe/Amsterdam`; UTC by default.
    """

    agent: str
    name: str
    when: str
    zone: str = ""

    @property
    def consumer(self) -> ConsumerSpec:
        """The durable consumer of its firings, of which each goes to one replica of the agent."""
        filter = subjects.fired(self.agent, self.name)
        return ConsumerSpec(subjects.SCHEDULES, subjects.durable(self.agent, self.name), filter, ordered=False)

    @property
    def right(self) -> Right:
        """The right to look at it and at its newest firing; nobody but provisioning may write it [R13]."""
        return Right("watch", f"{self.agent}.{self.name}")
