"""What provisioning creates for a trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
