"""A subscription of the bus, and the attempt at one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import nats.errors
from nats.aio.subscription import Subscription as RawSubscription

from natterjack.errors import DisconnectedError, RefusedError

if TYPE_CHECKING:
    from natterjack.bus.connection import Bus

log = logging.getLogger("natterjack.bus")


@dataclass(slots=True)
class Subscription:
    """Interest in a subject; `drain` lets what has arrived be handled first, `unsubscribe` does not."""

    raw: RawSubscription
    bus: Bus

    async def unsubscribe(self) -> None:
        """Stop, dropping what was not handled yet."""
        self.bus._on_slow.pop(self.raw._id, None)
        try:
            await self.raw.unsubscribe()
        except (nats.errors.ConnectionClosedError, nats.errors.BadSubscriptionError, OSError) as error:
            log.debug("unsubscribed from %s, which had ended: %s", self.raw.subject, error)

    async def drain(self) -> None:
        """Stop, after what has arrived was handled."""
        if not self.bus.connected:  # nothing more can arrive, and nobody confirms
            await self.unsubscribe()
            return
        self.bus._on_slow.pop(self.raw._id, None)
        try:
            # nats-py's drain pings before its UNSUB is written: what the server sends in between would be lost.
            await self.raw._conn._send_unsubscribe(self.raw._id)
            await self.bus.flush()
            await self.raw.drain()  # type: ignore[no-untyped-call]
        except (nats.errors.Error, DisconnectedError, OSError) as error:
            log.debug("drained %s, which had ended: %s", self.raw.subject, error)


@dataclass(slots=True, eq=False)
class Attempt:
    """A subscription that the server may still refuse; there may be several to one subject."""

    subject: str
    refusal: str = ""

    def raise_refused(self) -> None:
        """Raise if it was."""
        if self.refusal:
            raise RefusedError(self.refusal)
