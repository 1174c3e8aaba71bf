"""Following a bucket: its feed, and a look at the server whenever the feed may have lost something."""

from __future__ import annotations

import asyncio
import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from natterjack import subjects
from natterjack.bus import Bus, Message, Subscription
from natterjack.context.state import State
from natterjack.errors import NatterjackError

log = logging.getLogger("natterjack.context")

CHECK_EVERY: Final = 5.0
"""Seconds between two looks at what the server has."""
TIMEOUT: Final = 5.0
"""Seconds for one answer of the server."""
RETRY_PAUSE: Final = 0.2
"""Seconds before the server is asked again, after it could not answer."""


class Follower(ABC):
    """Feeds a state from a bucket.

    Args:
        state: What is fed.
        bus: The connection.
        bucket: The KV bucket.
        patterns: The keys that are followed.

    Attributes:
        covered: The state has all that was written up to this revision.
    """

    def __init__(self, state: State, bus: Bus, bucket: str, patterns: Sequence[str]) -> None:
        self.covered = 0
        self._state, self._bus, self._bucket, self._patterns = state, bus, bucket, patterns
        self._stream = subjects.bucket_stream(bucket)
        self._wake = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe, and return once the state has what the bucket has.

        Raises:
            NotProvisionedError: There is no bucket.
            RefusedError: The broker does not allow to read it.
        """
        try:
            for pattern in self._patterns:
                feed = subjects.feed_context(pattern, self._bucket)
                self._subscriptions.append(await self._bus.listen(feed, self._receive))
            await self.repair()
        except BaseException:
            await self.close()
            raise
        self._keeper = asyncio.create_task(self._keep(), name=f"natterjack follows {self._bucket}")

    async def close(self) -> None:
        """Stop; the state stays as it is."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))

    def _receive(self, message: Message) -> None:
        if (message.headers or {}).get("Nats-Stream") != self._stream:
            log.debug("ignored a message on %s that no server sent", message.subject)
            return
        self.fed(message)

    async def _keep(self) -> None:
        delay = self.check_every
        async with self._bus.reconnects(self._wake.set):
            while not self._bus.closed.is_set():
                with suppress(TimeoutError):  # then it is time to look
                    async with asyncio.timeout(delay * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads load
                        await self._wake.wait()
                self._wake.clear()
                try:
                    await self.repair()
                    delay = self.check_every
                except NatterjackError as error:
                    log.debug("the context cannot be compared with the bucket, trying again: %s", error)
                    delay = RETRY_PAUSE if delay >= CHECK_EVERY else min(2 * delay, 0.9 * CHECK_EVERY)

    @property
    def check_every(self) -> float:
        """Seconds between two looks."""
        return CHECK_EVERY

    @abstractmethod
    def fed(self, message: Message) -> None:
        """Take a message that the feed brings."""

    @abstractmethod
    async def repair(self) -> None:
        """Return once the state has all that the bucket had at the call; many calls at once read once."""

    async def refresh(self) -> None:
        """Return once the state has all that the bucket had at the call."""
        await self.repair()

    @abstractmethod
    async def reach(self, revision: int) -> None:
        """Return once the state has all up to a revision, trying for as long as the server is away."""
