"""The audit: what was accepted, what the streams say came of it, and where the two differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from natterjack import EventTrigger
from natterjack.bus import Bus, Message
from natterjack.codec import id_in
from natterjack.dead import HEADER
from natterjack.events import authored
from natterjack.journal import stored_entry
from natterjack.messages import run_id
from natterjack.subjects import bucket_stream, context_bucket, key, split_stored, stored_events

from .workload import EFFECTS, digest, wisdom

STEPS = ("1", "2", "3")
SLOW_STEPS = ("1", "4")  # between them it sleeps and waits
CONTEXT = context_bucket()


def run_of(agent: str, event: str, id: str, author: str) -> str:
    """Return the run in which an agent handles the event of an id, or else of a sequence: `"\\n42"`."""
    return run_id("EVENTS", authored(id, author), agent, EventTrigger(event).label)


@dataclass
class Run:
    """What the journal has of one run: its steps' results by position, and how it ended."""

    steps: dict[str, Any] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    result: Any = None


class Audit:
    """Compares what was accepted with what came of it; reads each stored message once.

    Args:
        bus: A connection of its own, which no fault touches but those of the server.
        effects: The file of what was done outside.

    Attributes:
        accepted: Numbers of the events `work.due` that the server acknowledged.
        slow: The same of `work.slow`, and whether the bell rang in time.
        may_end: How runs of the victim may end, `done` or `dead`.
        must_end: Those of them whose event was accepted.
        problems: What was done twice, as text.
    """

    def __init__(self, bus: Bus, folder: Path) -> None:
        self._bus, self._effects = bus, folder / EFFECTS
        self.accepted: set[int] = set()
        self.slow: dict[int, bool] = {}
        self.may_end: dict[str, str] = {}
        self.must_end: set[str] = set()
        self.problems: list[str] = []
        self.runs: dict[tuple[str, str], Run] = {}
        self._read = Counter[str]()
        self._told: dict[int, int] = {}
        self._ids: dict[int, tuple[str, str]] = {}
        self._bucket: dict[str, Any] = {}
        self._dead: dict[str, str] = {}
        self._checked: set[int] = set()

    async def check(self) -> list[str]:
        """Read what is new, and return all that is wrong, or not there yet."""
        await self._read_on("JOURNAL", "journal.>", self._entry)
        await self._read_on("EVENTS", stored_events("work.told"), self._telling)
        await self._read_on("DEAD", "dead.>", self._letter)
        await self._read_on(bucket_stream(CONTEXT), key(CONTEXT, ">"), self._write)
        done_outside, missing = self._outside(), self._check_odd()
        for numbers, check in ((self.accepted, self._check_number), (self.slow.keys(), self._check_slow)):
            for number in sorted(numbers - self._checked):
                wrong = check(number, done_outside)
                missing += wrong
                if not wrong:
                    self._checked.add(number)
        return self.problems + missing

    @property
    def digest(self) -> str:
        """Of the bucket, as it was last read."""
        return digest(self._bucket)

    def same(self, state: Mapping[str, Any]) -> bool:
        """Tell whether a replica is equal to the bucket."""
        return digest(state) == self.digest

    @property
    def repeated(self) -> int:
        """How often something was done outside that had been done before: external effects are at least once."""
        return sum(count - 1 for count in self._outside().values())

    # Reading

    async def _read_on(self, stream: str, pattern: str, take: Any) -> None:
        async for message in self._bus.read(stream, pattern, start=self._read[stream] + 1):
            self._read[stream] = int((message.headers or {})["Nats-Sequence"])
            take(message)

    def _entry(self, message: Message) -> None:
        entry = stored_entry(message)
        if not isinstance(entry.data, dict):
            return  # garbage
        run = self._run(entry.agent, entry.run)
        if entry.kind == "step":
            position = entry.data["position"]
            if position in run.steps:
                self.problems.append(f"step {position} of run {entry.run} of {entry.agent} is journaled twice")
            run.steps[position] = entry.data["result"]
        elif entry.kind in ("done", "dead"):
            run.ended.append(entry.kind)
            run.result = entry.data.get("result")
            if len(run.ended) > 1:
                self.problems.append(f"run {entry.run} of {entry.agent} ended twice: {run.ended}")

    def _telling(self, message: Message) -> None:
        number = orjson.loads(message.data)["n"]
        if number in self._told:
            self.problems.append(f"{number} was told twice")
        headers = message.headers or {}
        self._told[number] = int(headers["Nats-Sequence"])
        self._ids[number] = id_in(headers), split_stored(headers["Nats-Subject"])[0]

    def _letter(self, message: Message) -> None:
        letter = orjson.loads((message.headers or {})[HEADER])
        self._dead[letter["run"]] = letter["cause"]

    def _write(self, message: Message) -> None:
        name = (message.headers or {})["Nats-Subject"].removeprefix(key(CONTEXT, ""))
        self._bucket[name] = orjson.loads(message.data)

    def _outside(self) -> Counter[tuple[str, ...]]:
        lines = self._effects.read_text().splitlines() if self._effects.exists() else []
        return Counter(tuple(line.split()[:2]) for line in lines)

    def _run(self, agent: str, run: str) -> Run:
        return self.runs.setdefault((agent, run), Run())

    # Comparing

    def _check_number(self, number: int, outside: Counter[tuple[str, ...]]) -> list[str]:
        run = self._run("ledger", run_of("ledger", "work.due", event_id(number), self._bus.author))
        noted = self._run("clerk", run_of("clerk", "work.told", *self._ids.get(number, ("", ""))))
        weight, said, told = (run.steps.get(position) for position in STEPS)
        compared = {
            "its end": (run.ended, ["done"]),
            "its steps": (sorted(run.steps), sorted(STEPS)),
            "its result": (run.result, {"n": number, "weight": weight, "said": said, "told": told}),
            "what the oracle said": (said, wisdom(number)),
            "what it told": (self._told.get(number), told),
            "its weight in the context": (self._bucket.get(f"weight.{number}"), weight),
            "the clerk's note in the context": (self._bucket.get(f"noted.{number}"), True),
            "the end of the clerk's run": ((noted.ended, noted.result), (["done"], number)),
            "somebody weighed it": (outside["weigh", str(number)] > 0, True),
            "somebody noted it": (outside["note", str(number)] > 0, True),
        }
        return _different(f"event {number}", compared)

    def _check_slow(self, number: int, outside: Counter[tuple[str, ...]]) -> list[str]:
        run = self._run("ledger", run_of("ledger", "work.slow", event_id(number, "work.slow"), self._bus.author))
        first, last = (run.steps.get(position) for position in SLOW_STEPS)
        rang = self.slow[number] or (run.result or {}).get("rang")
        compared = {
            "its end": (run.ended, ["done"]),
            "its steps": (sorted(run.steps), sorted(SLOW_STEPS)),
            "its result": (run.result, {"n": number, "first": first, "rang": rang, "last": last}),
            "somebody began": (outside["begin", str(number)] > 0, True),
            "somebody ended": (outside["end", str(number)] > 0, True),
        }
        return _different(f"slow event {number}", compared)

    def _check_odd(self) -> list[str]:
        ends = {run: self._run("victim", run).ended for run in self.may_end}
        compared = {run: (ends[run], [end]) for run, end in self.may_end.items() if ends[run] or run in self.must_end}
        buried = {run for run, ended in ends.items() if "dead" in ended}
        return _different("odd event", compared) + _different("dead letters", {"of": (set(self._dead), buried)})


def _different(about: str, compared: Mapping[str, tuple[object, object]]) -> list[str]:
    pairs = compared.items()
    return [f"{about}: {what}: {found!r}, and not {wanted!r}" for what, (found, wanted) in pairs if found != wanted]


def event_id(number: int, event: str = "work.due") -> str:
    """Return the id under which an event with a number is emitted."""
    return f"{event}-{number}"
