"""What every fault is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from random import Random
from typing import ClassVar

from ..world import World


class Fault(ABC):
    """One thing that goes wrong. It draws all that is random about it when it is made, so that a seed repeats it.

    Args:
        random: Where it draws from.

    Attributes:
        touches: What no other fault may touch meanwhile.
        common: How often it is drawn, beside others; what takes long is rare.
        lasts: Seconds until it is healed.
        said: What it does, in words.
    """

    touches: ClassVar[tuple[str, ...]] = ()
    common: ClassVar[int] = 5

    def __init__(self, random: Random) -> None:
        self.lasts = 0.0
        self.said = type(self).__name__

    @abstractmethod
    async def inject(self, world: World) -> None:
        """Make it happen."""

    async def heal(self, world: World) -> None:  # noqa: B027 - most faults pass by themselves
        """Make an end of it."""

    def __str__(self) -> str:
        return self.said
