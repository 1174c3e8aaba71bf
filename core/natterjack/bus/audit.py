"""Audit: who was refused what, and who changed what others may, where nobody can change it afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from typing import TYPE_CHECKING, Final

from natterjack import codec, subjects
from natterjack.errors import NatterjackError, NotProvisionedError

if TYPE_CHECKING:
    from natterjack.bus.streams import Streams

log = logging.getLogger("natterjack.bus")

MOST_WAITING: Final = 1_000
"""Different records that wait to be stored; of more, how many there were is all that is kept."""
_BUDGET: Final = 10.0
_LONGEST: Final = 1_000
"""Characters of a text that may be of any length."""


class Audit:
    """Writes down for one connection, in order and in the background; what is the same and waits becomes one record.

    A record is JSON on `audit.<principal>.<area>.<verb>`: its `writer`, its `number` there, the SHA-256 of the record
    before as `previous` (the writer's own name, in the first), how many `times` it happened, and the facts.

    Args:
        bus: The connection.
    """

    def __init__(self, bus: Streams) -> None:
        self._bus = bus
        self._begin()
        self._waiting: dict[tuple[str, str, bytes], int] = {}
        self._task: asyncio.Task[None] | None = None

    def _begin(self) -> None:
        self.writer = secrets.token_hex(8)
        self._number, self._previous = 0, self.writer

    def note(self, area: str, verb: str, **facts: object) -> None:
        """Write down something, soon.

        Args:
            area: What it is about: `guard`, `broker`, `tools` or `authority`.
            verb: What was done, or refused; one token.
            facts: The rest, as JSON can hold it; no secrets.
        """
        if self._bus.closed.is_set():
            log.warning("%s: after the end nothing is written down: %s %s %s", self._bus.principal, area, verb, facts)
            return
        record = area, verb, codec.encode(facts)
        if record not in self._waiting and len(self._waiting) >= MOST_WAITING:
            record = area, verb, codec.encode({"more": "than could be written down one by one"})
        self._waiting[record] = self._waiting.get(record, 0) + 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write())

    def refused(self, verb: str, what: str, reason: str, *, who: str = "") -> None:
        """Write down what a guard has refused; of a door, with whom."""
        caller = {"who": who[:_LONGEST]} if who else {}
        self.note("guard", "refuse", **caller, wanted=verb, what=what[:_LONGEST], reason=reason[:_LONGEST])

    def refused_by_broker(self, message: str) -> None:
        """Write down what the broker has refused, as far as this side hears of it."""
        if "'audit." not in message:  # which would go on for ever
            self.note("broker", "refuse", reason=message)

    async def settle(self, timeout: float = _BUDGET) -> None:
        """Return once all is stored, or after `timeout` seconds; what is not stored then, never is."""
        if self._task is None:
            return
        try:
            await asyncio.wait([self._task], timeout=timeout if self._bus.connected else 0)
        finally:
            if self._task.cancel():
                log.warning("%s: the end came before the audit had every record", self._bus.principal)

    async def _write(self) -> None:
        while self._waiting:
            (area, verb, facts), times = next(iter(self._waiting.items()))
            del self._waiting[area, verb, facts]
            about = {"writer": self.writer, "number": self._number + 1, "previous": self._previous, "times": times}
            data = codec.encode({**about, **codec.decode(facts)})
            try:
                await self._bus.store(subjects.audit(self._bus.principal, area, verb), data, budget=_BUDGET)
            except NotProvisionedError as error:  # before there is a team, nobody is refused anything
                log.debug("%s: there is no audit yet: %s", self._bus.principal, error)
                continue
            except NatterjackError as error:
                log.warning(
                    "%s: the audit lacks a record, which could not be written down: %s", self._bus.principal, error
                )
                self._begin()  # it may be stored all the same: another one of its number would look like a forgery
                continue
            self._number, self._previous = self._number + 1, hashlib.sha256(data).hexdigest()
