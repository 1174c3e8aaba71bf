"""Firings of a schedule, given to the trigger that has it: of all the agent's replicas, one gets each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from natterjack.bus import Bus, Consumer, Message, place_of
from natterjack.coroutines import WorkQueue
from natterjack.errors import BrokerError, described
from natterjack.messages import Firing
from natterjack.peers import cancel_all
from natterjack.schedules import read_firing
from natterjack.specs import ScheduleSpec

PAUSE: Final = 1.0
"""Seconds before a firing is given again that could not be taken; they double with each time, up to a minute."""
_AT_ONCE: Final = 16


class Relay:
    """Gives the firings of one schedule to a trigger's own function.

    Args:
        bus: The agent's connection.
        spec: The schedule.
        callback: Takes each firing; one that it fails with comes again.
        log: The trigger's logger.
    """

    def __init__(
        self, bus: Bus, spec: ScheduleSpec, callback: Callable[[Firing], Awaitable[object]], log: logging.Logger
    ) -> None:
        self._bus, self._spec, self._callback, self._log = bus, spec, callback, log
        self._newest = 0
        self._work = WorkQueue(self._give)
        self._consumer = Consumer(bus, spec.consumer, self._work.put, slots=_AT_ONCE)

    async def run(self) -> None:
        """Give firings until cancelled; those that are not taken by then go back at once, for another replica.

        Raises:
            NotProvisionedError: The schedule was never provisioned.
        """
        self._newest = await self._find_newest()
        try:
            await self._consumer.run()
        finally:
            await cancel_all(self._work.tasks, f"firings of {self._spec.name!r}")
            for message in self._work.waiting:
                self._consumer.nak(message)

    async def _find_newest(self) -> int:
        """Return the sequence of the newest firing there is."""
        consumer = self._spec.consumer
        while True:
            try:
                found = await self._bus.last(consumer.stream, consumer.filter)
            except BrokerError as error:
                if not error.retry or self._bus.closed.is_set():
                    raise
                self._log.debug("cannot look at %s, trying again: %s", consumer.filter, error)
                await asyncio.sleep(PAUSE)
            else:
                return 0 if found is None else int((found.headers or {})["Nats-Sequence"])

    async def _give(self, message: Message) -> None:
        place = place_of(message)
        when = datetime.fromtimestamp(place.time / 1e9, UTC)
        missed = place.delivered == 1 and place.sequence < self._newest  # else another replica has begun with it
        try:
            await self._callback(read_firing(message.headers or {}, when, place.sequence, missed=missed))
        except asyncio.CancelledError:
            self._consumer.nak(message)
            raise
        except Exception as error:  # a stranger's trigger may fail in any way
            self._log.warning("the firing of %s comes again: %s", when.isoformat(), described(error))
            self._consumer.nak(message, min(60.0, PAUSE * 2 ** min(place.delivered - 1, 16)))
        else:
            self._consumer.ack(message)
