"""The partial replica: what an agent keeps that may read some keys only [R11]."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from natterjack import subjects
from natterjack.bus import Bus, Message
from natterjack.context.follower import CHECK_EVERY, RETRY_PAUSE, TIMEOUT, Follower
from natterjack.context.state import State, read_message
from natterjack.errors import BrokerError, NoRespondersError, NotProvisionedError, RefusedError

log = logging.getLogger("natterjack.context")

_AT_ONCE: Final = 256
_KEYS_PER_SECOND: Final = 1000


class PartialReplica(Follower):
    """Keeps a state equal to the part of a bucket that some patterns name.

    Its rights are the live copies of these keys (`feed.context.<pattern>`), and the newest value of one key at a
    time (`$JS.API.DIRECT.GET.KV_context.$KV.context.<pattern>`, whose answer is bounded by its subject). It has no
    right to the get that takes its wishes from the payload (`DIRECT.GET.KV_context`: by sequence, `next_by_subj`,
    `multi_last`), because permissions cannot bound that one.

    Which keys a pattern with a wildcard stands for, it asks `STREAM.INFO.KV_context`, once it starts and with every
    look: that call cannot be bounded either, and tells the *names* of all keys to whoever may make it. So it is
    granted with wildcards only; a reader of literal keys learns no name. And whoever may write a key can ask for the
    revision of any other, since a write may be guarded by that of another key. Values it never gets. Where names and
    revisions are confidential, too, use a bucket of its own.

    What is written to one key says nothing about the others, so it cannot tell whether the feed lost something: it
    reads its keys again after each reconnect, every few seconds (longer with more than 5,000 keys), and before an
    event or question that follows from a later revision than it knows of. The keys of a transaction reach it one
    after the other.
    """

    def __init__(self, state: State, bus: Bus, bucket: str, patterns: Sequence[str]) -> None:
        super().__init__(state, bus, bucket, patterns)
        self._literal = [subjects.key(bucket, pattern) for pattern in patterns if not subjects.is_wild(pattern)]
        self._wild = [subjects.key(bucket, pattern) for pattern in patterns if subjects.is_wild(pattern)]
        self._wanted = 0
        self._reading = asyncio.Lock()

    def fed(self, message: Message) -> None:
        """Apply a message of the feed."""
        self._state.apply(*read_message(message))

    @property
    def check_every(self) -> float:
        """Seconds between two looks; a look costs one request for each key."""
        return max(CHECK_EVERY, len(self._state.versions) / _KEYS_PER_SECOND)

    async def repair(self) -> None:
        """Return once the state has the newest of all its keys."""
        async with self._reading:
            await self._read_all()

    async def _read_all(self) -> None:
        # What is covered holds until the next look only: a revision that somebody made up must not last.
        wanted, self._wanted = self._wanted, 0
        keys = dict.fromkeys(self._literal)
        for pattern in self._wild:
            keys |= dict.fromkeys(await self._bus.subjects_in(self._stream, pattern, timeout=TIMEOUT))
        names = list(keys)
        for start in range(0, len(names), _AT_ONCE):
            await asyncio.gather(*map(self._read, names[start : start + _AT_ONCE]))
        self.covered = wanted

    async def _read(self, subject: str) -> None:
        try:
            found = await self._bus.last(self._stream, subject)
        except NoRespondersError as error:
            raise NotProvisionedError(self._stream) from error
        if found is not None:
            self._state.apply(*read_message(found))

    async def reach(self, revision: int) -> None:
        """Return once the state has what was written to its keys up to a revision; many calls at once read once."""
        while revision > self.covered:
            self._wanted = max(self._wanted, revision)
            try:
                async with self._reading:
                    if revision > self.covered:
                        await self._read_all()
            except (NotProvisionedError, RefusedError):
                raise
            except BrokerError as error:
                log.debug("revision %d cannot be read through, trying again: %s", revision, error)
                await asyncio.sleep(RETRY_PAUSE)
