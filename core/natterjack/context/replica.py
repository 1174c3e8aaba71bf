"""The replica: a local copy of the context bucket, fed by the broker.

The feed `feed.context.>` brings every write with its sequence. Since the bucket's stream holds nothing else, the
sequences are gapless, and a gap says that the feed lost something; a lost tail shows when the stream's last sequence
is looked at after each reconnect and every few seconds. What is missing is then read with direct gets.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from natterjack import subjects
from natterjack.bus import Bus, Message, Subscription
from natterjack.context.state import STREAM, Revision, State, read_message
from natterjack.errors import BrokerError, NatterjackError, NotProvisionedError, RequestTimeoutError

log = logging.getLogger("natterjack.context")

CHECK_EVERY: Final = 5.0
"""Seconds between two looks at the stream's last sequence."""
FEED_GRACE: Final = 0.1
"""Seconds to wait for the feed before a revision is read through."""

_ALL: Final = subjects.key(subjects.CONTEXT_BUCKET, ">")
_TIMEOUT: Final = 5.0
_PAGE: Final = 1000
_PAGE_BYTES: Final = 4 << 20
_LAG_PAUSE: Final = 0.02
_RETRY_PAUSE: Final = 0.2


async def read_history(bus: Bus, key: str, revision: int) -> list[Revision]:
    """Return what the bucket still has of a key, oldest first, once that goes up to `revision`.

    Raises:
        RequestTimeoutError: No server that answers has that revision.
    """
    wanted = {"seq": 1, "next_by_subj": subjects.key(subjects.CONTEXT_BUCKET, key), "batch": _PAGE}
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        messages, _ = await bus.batch(STREAM, wanted, timeout=_TIMEOUT)
        found = [read_message(message)[1].past(_time(message)) for message in messages]
        if (found[-1].revision if found else 0) >= revision:
            return found
        await asyncio.sleep(_LAG_PAUSE)  # the server that answered lags behind
    raise RequestTimeoutError(subjects.key(subjects.CONTEXT_BUCKET, key), _TIMEOUT)


def _time(message: Message) -> datetime:
    return datetime.fromisoformat((message.headers or {})["Nats-Time-Stamp"])


class Replica:
    """Keeps a state equal to the bucket.

    Attributes:
        covered: The state has all that was written up to this revision.
    """

    def __init__(self, state: State, bus: Bus) -> None:
        self.covered = 0
        self._state, self._bus = state, bus
        self._created = ""
        self._run = (0, 0)  # first and last of the gapless sequences that the feed brought last
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._wake = asyncio.Event()
        self._repairing = asyncio.Lock()
        self._subscription: Subscription | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe, and return once the state has what the bucket has.

        Raises:
            NotProvisionedError: There is no bucket.
            RefusedError: The broker does not allow to read it.
        """
        self._subscription = await self._bus.subscribe(subjects.feed_context(), self._fed, on_lost=self._wake.set)
        try:
            await self.repair()
        except BaseException:
            await self.close()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="natterjack context replica")

    async def close(self) -> None:
        """Stop; the state stays as it is."""
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))

    # Following the feed

    async def _fed(self, message: Message) -> None:
        headers = message.headers or {}
        if headers.get("Nats-Stream") != STREAM:
            log.debug("ignored a message on %s that no server sent", message.subject)
            return
        self._state.apply(*read_message(message))
        self._follow(int(headers["Nats-Sequence"]))

    def _follow(self, sequence: int) -> None:
        first, last = self._run
        if sequence <= last:
            return
        self._run = (first if sequence == last + 1 else sequence, sequence)
        if self._run[0] > self.covered + 1:
            self._wake.set()
        else:
            self._cover(sequence)

    def _cover(self, sequence: int) -> None:
        """Note that all up to a sequence is known, and with it what the feed brought right after it."""
        first, last = self._run
        self.covered = max(self.covered, sequence, last if first <= sequence + 1 else 0)
        if self._waiters:
            for revision, reached in self._waiters:
                if revision <= self.covered and not reached.done():
                    reached.set_result(None)
            self._waiters = [waiter for waiter in self._waiters if not waiter[1].done()]

    async def reach(self, revision: int) -> None:
        """Return once the state has all up to a revision, trying for as long as the server is away.

        A revision that the bucket does not have is not waited for: no sender can hold a run up with one.
        """
        if revision <= self.covered:
            return
        waiter = (revision, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await asyncio.wait(waiter[1:], timeout=FEED_GRACE)
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        while revision > self.covered:
            try:
                return await self.repair()
            except NotProvisionedError:
                raise
            except BrokerError as error:
                log.debug("revision %d cannot be read through, trying again: %s", revision, error)
                await asyncio.sleep(_RETRY_PAUSE)

    # Making up for what the feed lost

    async def _keep(self) -> None:
        delay = CHECK_EVERY
        async with self._bus.reconnects(self._wake.set):
            while not self._bus.closed.is_set():
                with suppress(TimeoutError):  # then it is time to look
                    async with asyncio.timeout(delay * random.uniform(0.8, 1.2)):  # noqa: S311 - spreads load
                        await self._wake.wait()
                self._wake.clear()
                try:
                    await self.repair()
                    delay = CHECK_EVERY
                except NatterjackError as error:
                    log.debug("the context cannot be compared with the bucket, trying again: %s", error)
                    delay = _RETRY_PAUSE if delay == CHECK_EVERY else min(2 * delay, 0.9 * CHECK_EVERY)

    async def last(self) -> int:
        """Return the bucket's last sequence; its leader answers, so that is never stale."""
        return int((await self._info())["state"]["last_seq"])

    async def _info(self) -> dict[str, Any]:
        return await self._bus.api(f"STREAM.INFO.{STREAM}", timeout=_TIMEOUT)

    async def repair(self) -> None:
        """Return once the state has all that the bucket had at the call; many calls at once read once."""
        info = await self._info()
        async with self._repairing:
            if info["created"] != self._created:
                self._begin(info["created"])
            if self.covered < info["state"]["last_seq"]:
                await self._catch_up(info["state"]["last_seq"])

    def _begin(self, created: str) -> None:
        if self._created:
            log.warning("the context's bucket was made anew; what was in the old one is gone")
            self._state.clear()
            self.covered, self._run = 0, (0, 0)
        self._created = created

    async def _catch_up(self, last: int) -> None:
        """Read on from what is covered, page by page in the order of writing [R8].

        A message that its successors push out of the history while pages are read is no loss, because one of them
        stands further on, as long as reading goes to the end that any of the answering servers knew.
        """
        at = self.covered or await self._snapshot()
        deadline = time.monotonic() + _TIMEOUT
        while at < last:
            wanted = {"seq": at + 1, "next_by_subj": _ALL, "batch": _PAGE, "max_bytes": _PAGE_BYTES}
            messages, end = await self._bus.batch(STREAM, wanted, timeout=_TIMEOUT)
            if not messages and time.monotonic() > deadline:
                log.warning("the bucket's messages %d to %d are gone; somebody must have purged them", at + 1, last)
                break
            if not messages:  # the server that answered lags behind the leader
                await asyncio.sleep(_LAG_PAUSE)
                continue
            at = self._apply_all(messages)
            last = max(last, at + int(end.get("Nats-Num-Pending", 0)))
        self._cover(max(at, last))

    async def _snapshot(self) -> int:
        """Take the newest of each key in one answer; return up to where that goes, 0 if there are too many."""
        wanted = {"multi_last": [_ALL], "max_bytes": _PAGE_BYTES}
        messages, end = await self._bus.batch(STREAM, wanted, timeout=_TIMEOUT)
        self._apply_all(messages)
        return int(end.get("Nats-UpTo-Sequence", 0)) if end.get("Nats-Num-Pending") == "0" else 0

    def _apply_all(self, messages: list[Message]) -> int:
        """Apply messages and return the highest sequence of them."""
        highest = 0
        for message in messages:
            key, version = read_message(message)
            self._state.apply(key, version)
            highest = max(highest, version.revision)
        return highest
