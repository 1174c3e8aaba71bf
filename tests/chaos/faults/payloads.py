"""Faults in what is sent: what nobody can handle, too much at once, and garbage in the journal."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Final

import orjson

from natterjack import BrokerError
from natterjack.journal import StreamJournal
from natterjack.subjects import journal

from ..audit import event_id, run_of
from ..world import World
from .fault import Fault

_CLOUD: Final = {"specversion": "1.0", "id": "{id}", "source": "elsewhere", "type": "work.odd", "data": "a cloud"}
ODD: Final[dict[str, tuple[bytes, dict[str, str], str]]] = {
    "fails always": (b'"bad"', {}, "dead"),
    "is not UTF-8": (b"\xff\xfe\x00", {}, "dead"),
    "nests too deep": (b"[" * 100_000 + b"]" * 100_000, {}, "dead"),
    "is no JSON": (b'{"n": ', {}, "done"),
    "is empty": (b"", {}, "done"),
    "is a structured CloudEvent": (orjson.dumps(_CLOUD), {"Content-Type": "application/cloudevents+json"}, "done"),
    "is a CloudEvent in headers": (
        b"1",
        {"ce-specversion": "1.0", "ce-id": "{id}", "ce-source": "elsewhere", "ce-type": "work.odd"},
        "done",
    ),
    "has headers of nobody's": (b"{}", {"Natterjack": "\x7f;=;=%%%", "traceparent": "x"}, "done"),
}
"""Payload, headers, and how the run ends that gets it."""
DEADLY: Final = b'"deadly"'


class Odd(Fault):
    """Events that cannot be handled, or are not what they should be: dead letters, and nothing else suffers."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._which = random.sample(sorted(ODD), 3)
        self.said = "an event " + ", one ".join(self._which)

    async def inject(self, world: World) -> None:
        for which in self._which:
            data, headers, end = ODD[which]
            await world.emit_odd(data, headers, end)


class Deadly(Fault):
    """An event that kills whoever handles it, again and again; it is over when the event is a dead letter."""

    common = 1

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.said = "an event kills whoever handles it"

    async def inject(self, world: World) -> None:
        self._run = await world.emit_odd(DEADLY, {}, "dead")

    async def heal(self, world: World) -> None:
        if self._run:
            await world.stubborn(lambda: self._ended(world, self._run))

    async def _ended(self, world: World, run: str) -> None:
        entries = await StreamJournal().attach(world.bus).read("victim", run)
        if not entries or entries[-1].kind != "dead":
            msg = f"run {run} has not ended"
            raise BrokerError(msg)


class Flood(Fault):
    """Far more events and asks at once than usual."""

    common = 2

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._events, self._asks = random.randrange(100, 400), random.randrange(50, 200)
        self.said = f"{self._events} events and {self._asks} asks at once"

    async def inject(self, world: World) -> None:
        work = [world.emit() for _ in range(self._events)] + [world.ask() for _ in range(self._asks)]
        await asyncio.gather(*work)


class Garbage(Fault):
    """A stranger writes into the journal of a run, before it begins or while it goes on."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        data = [b"garbage", b"", b"\xff", b"{}", b"[]", b'{"kind": 1}', b'{"kind": "note", "data": 1, "time": "x"}']
        data += [b'{"kind": "begun", "data": {}, "time": 1}', b'{"kind": "step", "data": [], "time": 1}']
        self._data, self._index = random.choice(data), random.choice([1, 1, 2, 3, 4, 5])
        self._before = random.random() < 0.5
        when = "before" if self._before else "while"
        self.said = f"{self._data!r} as entry {self._index} of a run's journal, {when} it goes on"

    async def inject(self, world: World) -> None:
        number = world.next_number()
        subject = journal("ledger", run_of("ledger", "work.due", event_id(number), world.bus.author), self._index)
        if self._before:
            await self._write(world, subject)
        await world.emit(number)
        if not self._before:
            await self._write(world, subject)

    async def _write(self, world: World, subject: str) -> None:
        try:
            await world.bus.store(subject, self._data)
        except BrokerError:
            return  # the server is away: no garbage, then
