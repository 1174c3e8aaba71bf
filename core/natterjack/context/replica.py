"""The replica: a local copy of a context's bucket, fed by the broker.

The feed `feed.context.>` brings every write with its sequence. Since the bucket's stream holds nothing else, the
sequences are gapless, and a gap says that the feed lost something; a lost tail shows when the stream's last sequence
is looked at after each reconnect and every few seconds. What is missing is then read with direct gets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from typing import Any, Final

from natterjack import subjects
from natterjack.bus import Bus, Message
from natterjack.context.follower import RETRY_PAUSE, TIMEOUT, Follower
from natterjack.context.state import Reassembly, Revision, State, Version, read_message
from natterjack.errors import BrokerError, NotProvisionedError, RequestTimeoutError

log = logging.getLogger("natterjack.context")

FEED_GRACE: Final = 0.1
"""Seconds to wait for the feed before a revision is read through."""

_PAGE: Final = 1000
_PAGE_BYTES: Final = 4 << 20
_AT_ONCE: Final = 4
_LAG_PAUSE: Final = 0.02


async def read_history(bus: Bus, bucket: str, key: str, revision: int) -> list[Revision]:
    """Return what a bucket still has of a key, oldest first, once that goes up to `revision`.

    Raises:
        RequestTimeoutError: No server that answers has that revision.
    """
    subject = subjects.key(bucket, key)
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        wanted = {"seq": 1, "next_by_subj": subject, "batch": _PAGE}
        messages, _ = await bus.batch(subjects.bucket_stream(bucket), wanted, timeout=TIMEOUT)
        found = [read_message(message)[1].past(_time(message)) for message in messages]
        if (found[-1].revision if found else 0) >= revision:
            return found
        await asyncio.sleep(_LAG_PAUSE)  # the server that answered lags behind
    raise RequestTimeoutError(subject, TIMEOUT)


def _time(message: Message) -> datetime:
    return datetime.fromisoformat((message.headers or {})["Nats-Time-Stamp"])


class Replica(Follower):
    """Keeps a state equal to a bucket."""

    def __init__(self, state: State, bus: Bus, bucket: str = subjects.CONTEXT_BUCKET) -> None:
        super().__init__(state, bus, bucket, [">"])
        self._created = ""
        self._all = subjects.key(bucket, ">")
        self._feed = Reassembly(complete=False)
        self._run = (0, 0)  # first and last of the gapless sequences that the feed brought last
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._repairing = asyncio.Lock()

    # Following the feed

    def fed(self, message: Message) -> None:
        """Apply a message of the feed; those of a transaction all at once."""
        whole = self._feed.take(message)
        self._apply(whole)
        for _, version in whole:
            self._follow(version.revision)

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
                await asyncio.sleep(RETRY_PAUSE)

    # Making up for what the feed lost

    async def refresh(self) -> None:
        """Return once the state has all that the bucket had at the call, from the feed if it comes soon."""
        await self.reach(await self.last())

    async def last(self) -> int:
        """Return the bucket's last sequence; its leader answers, so that is never stale."""
        return int((await self._info())["state"]["last_seq"])

    async def _info(self) -> dict[str, Any]:
        return await self._bus.api(f"STREAM.INFO.{self._stream}", timeout=TIMEOUT)

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
        deadline, pages = time.monotonic() + TIMEOUT, Reassembly(complete=True)
        while at < last:
            wanted = {"seq": at + 1, "next_by_subj": self._all, "batch": _PAGE, "max_bytes": _PAGE_BYTES}
            messages, end = await self._bus.batch(self._stream, wanted, timeout=TIMEOUT)
            if not messages and time.monotonic() > deadline:
                log.warning("the bucket's messages %d to %d are gone; somebody must have purged them", at + 1, last)
                break
            if not messages:  # the server that answered lags behind the leader
                await asyncio.sleep(_LAG_PAUSE)
                continue
            at, deadline = int((messages[-1].headers or {})["Nats-Sequence"]), time.monotonic() + TIMEOUT
            for message in messages:
                self._apply(pages.take(message))
            last = max(last, at + int(end.get("Nats-Num-Pending", 0)))
        self._apply(pages.rest())
        self._cover(max(at, last))

    async def _snapshot(self) -> int:
        """Take the newest of each key; return up to where that goes.

        One answer has 1,024 keys at most. Of more, the names are asked for first, and then the newest of these; a
        key that is written meanwhile for the first time has a later sequence, and comes by the feed, too. So it
        costs as much as there are keys, however much history they have.
        """
        if up_to := await self._newest([self._all]):
            return up_to
        names = await self._bus.subjects_in(self._stream, self._all, timeout=TIMEOUT)
        pages = [names[start : start + _PAGE] for start in range(0, len(names), _PAGE)]
        ends: list[int] = []
        while pages:
            at_once, pages = pages[:_AT_ONCE], pages[_AT_ONCE:]
            ends += await asyncio.gather(*map(self._newest, at_once))
        return min(ends, default=0)

    async def _newest(self, wanted: list[str]) -> int:
        """Take the newest of some subjects; return up to where that goes, 0 if the answer does not say."""
        body = {"multi_last": wanted, "max_bytes": _PAGE_BYTES}
        messages, end = await self._bus.batch(self._stream, body, timeout=TIMEOUT)
        self._apply([read_message(message) for message in messages])
        up_to = int(end.get("Nats-UpTo-Sequence", 0))
        if end.get("Nats-Num-Pending", "0") == "0" or not up_to:
            return up_to
        taken = {(message.headers or {})["Nats-Subject"] for message in messages}
        missing = [subject for subject in wanted if subject not in taken]
        return 0 if missing == [self._all] else min(up_to, await self._newest(missing))

    def _apply(self, versions: list[tuple[str, Version]]) -> None:
        for key, version in dict(sorted(versions, key=_in_order)).items():  # of each key the newest alone
            self._state.apply(key, version)


def _in_order(found: tuple[str, Version]) -> int:
    """The feed may repeat an earlier message behind a later one."""
    return found[1].revision
