"""Events that a stream's limits removed before a trigger's agent had handled them [R9]: found, and told for good.

A stream keeps events for a time. Whoever is away for longer, or too slow, never gets what went meanwhile, and the
server tells nobody. So an agent looks when it starts, and every minute: what is gone, and stands above what its
trigger's consumer has acknowledged, may have been for it. How much of it the server does not know any more: it is "up
to" so many where the trigger handles some types only.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

from natterjack import subjects
from natterjack.bus import Bus
from natterjack.components import Journal, Trigger
from natterjack.dead import DeadLetter, bury
from natterjack.errors import FencedError, NatterjackError, RefusedError
from natterjack.journal import StreamJournal
from natterjack.messages import run_id
from natterjack.runjournal import RunJournal
from natterjack.specs import ConsumerSpec

log = logging.getLogger("natterjack.expiry")

EVERY: Final = 60.0
"""Seconds between two looks."""
_SETTLED: Final = "settled"


class Gone(NamedTuple):
    """A range of stream sequences that were removed before a consumer had them acknowledged.

    Attributes:
        first: The lowest.
        last: The highest.
        exact: Whether the consumer would have got each of them, and nobody works on any.
    """

    first: int
    last: int
    exact: bool

    @property
    def size(self) -> int:
        """How many, at most."""
        return self.last - self.first + 1

    def told(self, stream: str) -> str:
        """Return it as a sentence."""
        number = f"{self.size:,}" if self.exact else f"up to {self.size:,}"
        which = f"events {self.first} to {self.last} of {stream}"
        return f"{which} expired unhandled: the stream's limits removed them first, {number} for this trigger"


def gone(info: dict[str, Any], stream: dict[str, Any], settled: int = 0) -> Gone | None:
    """Return what expired before a consumer had it acknowledged.

    Args:
        info: What the server tells of the consumer.
        stream: What it tells of its stream.
        settled: Up to where all is known to be handled, or told.
    """
    above, last = max(settled, info["ack_floor"]["stream_seq"]), stream["state"]["first_seq"] - 1
    exact = info["config"].get("filter_subject", ">").endswith(".*.>") and not info["num_ack_pending"]
    return Gone(above + 1, last, exact) if last > above else None


class Expiry:
    """Looks after the consumers of one agent's triggers.

    Args:
        bus: The agent's connection.
        triggers: Its triggers.
        journal: Where it notes up to where all is settled, so that nothing is told twice.
        sinks: Further journals.
    """

    def __init__(
        self, bus: Bus, triggers: Iterable[Trigger], journal: StreamJournal, sinks: Sequence[Journal] = ()
    ) -> None:
        pairs = [(trigger, spec) for trigger in triggers for spec in trigger.consumers(bus.principal)]
        self._bus, self._pairs = bus, pairs
        self._looks = [Look(bus, trigger.label, spec, journal, sinks) for trigger, spec in pairs if _expires(spec)]

    async def check(self) -> None:
        """Look once, before the agent begins.

        Raises:
            NotProvisionedError: A consumer does not exist.
        """
        for _, spec in self._pairs:
            if not _expires(spec):
                await self._bus.api(f"CONSUMER.INFO.{spec.stream}.{spec.name}")
        for look in self._looks:
            with suppress(FencedError):  # a replica that starts, too, was first
                await look.check()

    async def run(self) -> None:
        """Look every minute or so, until cancelled."""
        while True:
            await asyncio.sleep(EVERY * random.uniform(0.75, 1.25))  # noqa: S311 - spreads the agents of a process
            for look in self._looks:
                try:
                    await look.check()
                except NatterjackError as error:
                    log.info("%s: whether events expired is looked for later: %s", self._bus.principal, error)


def _expires(spec: ConsumerSpec) -> bool:
    return subjects.is_log(spec.stream)


async def expired(bus: Bus, agent: str, label: str, spec: ConsumerSpec, info: dict[str, Any]) -> Gone | None:
    """Return what expired before an agent had it, and what it has not told of; for who looks from outside."""
    noted = _journal(agent, label, spec, StreamJournal().attach(bus))
    await noted.load()
    return gone(info, await bus.api(f"STREAM.INFO.{spec.stream}"), _note(noted))


def _journal(
    agent: str, label: str, spec: ConsumerSpec, journal: StreamJournal, sinks: Sequence[Journal] = ()
) -> RunJournal:
    """Return where it is noted up to where a trigger's events are settled: replicas cannot both write one entry."""
    return RunJournal(agent, run_id(spec.stream, "\nexpired", agent, label), journal, sinks)


def _note(noted: RunJournal) -> int:
    return max((int(entry.data["last"]) for entry in noted.entries(kind=_SETTLED)), default=0)


class Look:
    """Looks after one consumer.

    Args:
        bus: The agent's connection.
        label: The trigger's.
        spec: The consumer.
        journal: For notes.
        sinks: Further journals.
    """

    def __init__(
        self, bus: Bus, label: str, spec: ConsumerSpec, journal: StreamJournal, sinks: Sequence[Journal]
    ) -> None:
        self._bus, self._label, self._spec, self._settled = bus, label, spec, 0
        self._journal = partial(_journal, bus.principal, label, spec, journal, sinks)
        self._noted: RunJournal | None = None  # read when it matters, which is seldom

    async def check(self) -> None:
        """Look once."""
        try:
            stream = await self._bus.api(f"STREAM.INFO.{self._spec.stream}")
        except RefusedError as error:
            log.warning("%s cannot tell whether events expired: %s", self._bus.principal, error)
            return
        # Asked after the stream, so that what it says of what waits holds for all that the stream had then.
        info = await self._bus.api(f"CONSUMER.INFO.{self._spec.stream}.{self._spec.name}")
        last = stream["state"]["last_seq"]
        if self._settled > last:  # the stream was made anew
            self._settled, self._noted = 0, None
        noted = None
        if gone(info, stream) is not None:
            noted = self._noted = self._noted or await self._read(last)
        if noted is not None and (found := gone(info, stream, self._settled)) is not None:
            await self._tell(noted, found)
        if info["num_pending"] == 0:  # none waits, so none up to there can be lost any more
            self._settled = max(self._settled, last)
            if noted is not None and gone(info, stream, _note(noted)) is not None:
                await self._keep(noted, {"last": last})  # else the next start would take it for lost

    async def _read(self, last: int) -> RunJournal:
        noted = self._journal()
        await noted.load()
        if _note(noted) <= last:  # else it is of a stream before this one
            self._settled = max(self._settled, _note(noted))
        return noted

    async def _tell(self, noted: RunJournal, found: Gone) -> None:
        agent, spec, cause = self._bus.principal, self._spec, found.told(self._spec.stream)
        await self._keep(noted, {"first": found.first, "last": found.last})
        self._settled = found.last
        log.error("%s: %s: %s", agent, self._label, cause)
        await bury(
            self._bus,
            DeadLetter(agent, self._label, cause, 0, spec.stream, spec.filter, found.last, "", "", lost=found.size),
            b"",
        )

    async def _keep(self, noted: RunJournal, range: dict[str, int]) -> None:
        try:
            await noted.record(_SETTLED, range)
        except FencedError:  # another replica was first: read what it wrote, the next time
            self._noted = None
            raise
