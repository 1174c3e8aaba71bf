"""How late this process itself is: it shares its cores with the team, and its event loop with the faults."""

from __future__ import annotations

import asyncio
import time
from typing import Self

from .workload import clock

BEAT = 0.05


class Pulse:
    """Beats in the event loop, and adds up by how much each beat came late.

    A timeout of somebody in this loop cannot end sooner than the loop comes round: what a loaded machine takes of it is
    not the team's doing.
    """

    def __init__(self) -> None:
        self._late, self._due = 0.0, time.monotonic()

    async def __aenter__(self) -> Self:
        self._due = time.monotonic() + BEAT
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def late(self) -> float:
        """Seconds in all, with those of the beat that is due now."""
        return self._late + max(0.0, time.monotonic() - self._due)

    async def _beat(self) -> None:
        while True:
            await clock.sleep(BEAT)
            self._late, self._due = self.late, time.monotonic() + BEAT
