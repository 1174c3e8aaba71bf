"""Faults: what goes wrong. Each draws all that is random about it when it is made, so that a seed repeats it.

A new one is a class with `inject`, and `heal` if it does not pass by itself; add it to a list at the end.
"""

from __future__ import annotations

import asyncio
import signal
from abc import ABC, abstractmethod
from random import Random
from typing import ClassVar

from .supervised import LABELS, LEASE
from .world import World, send


class Fault(ABC):
    """One thing that goes wrong.

    Args:
        random: Where it draws from.

    Attributes:
        touches: What no other fault may touch meanwhile.
        lasts: Seconds until it is healed.
        said: What it does, in words.
    """

    touches: ClassVar[tuple[str, ...]] = ()

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


# Agents


class Kill(Fault):
    """kill -9 of an agent's process, at whatever it is."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._who = random.choice(LABELS)
        self.said = f"kill -9 {self._who}"

    async def inject(self, world: World) -> None:
        world.signal(self._who, signal.SIGKILL)


class Die(Fault):
    """An agent's process dies at a chosen place of a run: in a step, while journaling, emitting, or acking."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        place = random.choice(["weigh", "journal", "emit", "ack"])
        self._order = {"at": place, "turns": random.choice([0, 1, 2, 5, random.randrange(10, 300)])}
        self.said = f"die {self._order['turns']} turns behind {place!r}"

    async def inject(self, world: World) -> None:
        await world.emit(die=self._order)


class Freeze(Fault):
    """SIGSTOP of a replica past its lease, then SIGCONT: others have taken its work over."""

    touches = ("signals",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._who = random.choice(LABELS)
        self.lasts = LEASE * random.uniform(0.5, 2.0)
        self.said = f"SIGSTOP {self._who} for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        self._process = world.signal(self._who, signal.SIGSTOP)

    async def heal(self, world: World) -> None:
        if self._process is not None:
            send(self._process, signal.SIGCONT)


# The broker


class KillBroker(Fault):
    """kill -9 of the server, which comes back with its store."""

    touches = ("broker",)

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.lasts = random.uniform(0.0, 1.5)
        self.said = f"kill -9 of the broker, away for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        await asyncio.to_thread(world.broker.kill)

    async def heal(self, world: World) -> None:
        await asyncio.to_thread(world.broker.start)


class StopBroker(KillBroker):
    """The server is stopped in order, and started again."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.said = f"restart of the broker, away for {self.lasts:.1f} s"

    async def inject(self, world: World) -> None:
        await asyncio.to_thread(world.broker.stop)


OF_AGENTS: list[type[Fault]] = [Kill, Die, Freeze]
OF_THE_BROKER: list[type[Fault]] = [KillBroker, StopBroker]
EVERYWHERE = [*OF_AGENTS, *OF_THE_BROKER]
