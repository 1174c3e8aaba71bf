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
from natterjack.dead import HEADER
from natterjack.journal import stored_entry
from natterjack.messages import run_id
from natterjack.subjects import bucket_stream, context_bucket, key, stored_events

from .workload import EFFECTS, digest, wisdom

STEPS = {"1": "weigh", "2": "consult", "3": "tell"}
CONTEXT = context_bucket()


def run_of(agent: str, event: str, id: str) -> str:
    """Return the run in which an agent handles the event of an id, or else of a sequence: `"\\n42"`."""
    return run_id("EVENTS", id, agent, EventTrigger(event).label)


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
        may_end: How runs of the victim may end, `done` or `dead`.
        must_end: Those of them whose event was accepted.
        problems: What is wrong, as text.
    """

    def __init__(self, bus: Bus, folder: Path) -> None:
        self._bus, self._effects = bus, folder / EFFECTS
        self.accepted: set[int] = set()
        self.may_end: dict[str, str] = {}
        self.must_end: set[str] = set()
        self.problems: list[str] = []
        self.runs: dict[tuple[str, str], Run] = {}
        self._read = Counter[str]()
        self._told: dict[int, int] = {}
        self._ids: dict[int, str] = {}
        self._bucket: dict[str, Any] = {}
        self._dead: dict[str, str] = {}
        self._checked: set[int] = set()

    async def check(self) -> list[str]:
        """Read what is new, and return all that is wrong."""
        await self._read_on("JOURNAL", "journal.>", self._entry)
        await self._read_on("EVENTS", stored_events("work.told"), self._telling)
        await self._read_on("DEAD", "dead.>", self._letter)
        await self._read_on(bucket_stream(CONTEXT), key(CONTEXT, ">"), self._write)
        done_outside = self._outside()
        for number in sorted(self.accepted - self._checked):
            self._check_number(number, done_outside)
            self._checked.add(number)
        for run, end in self.may_end.items():
            if (ended := self._run("victim", run).ended) or run in self.must_end:
                self._expect(f"odd event of run {run}", ended, [end])
        buried = {run for run, end in self.may_end.items() if "dead" in self._run("victim", run).ended}
        self._expect("runs with dead letters", set(self._dead), buried)
        return self.problems

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
        self._ids[number] = headers["Nats-Msg-Id"]

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

    def _check_number(self, number: int, outside: Counter[tuple[str, ...]]) -> None:
        run = self._run("ledger", run_of("ledger", "work.due", event_id(number)))
        about = f"event {number}"
        self._expect(f"{about}: end", run.ended, ["done"])
        self._expect(f"{about}: steps", sorted(run.steps), sorted(STEPS))
        weight, said, told = (run.steps.get(position) for position in STEPS)
        self._expect(f"{about}: result", run.result, {"n": number, "weight": weight, "said": said, "told": told})
        self._expect(f"{about}: answer", said, wisdom(number))
        self._expect(f"{about}: told", self._told.get(number), told)
        self._expect(f"{about}: context", self._bucket.get(f"weight.{number}"), weight)
        self._expect(f"{about}: noted", self._bucket.get(f"noted.{number}"), True)
        noted = self._run("clerk", run_of("clerk", "work.told", self._ids.get(number, "")))
        self._expect(f"{about}: end of its noting", (noted.ended, noted.result), (["done"], number))
        for what in ("weigh", "note"):
            if not outside[what, str(number)]:
                self.problems.append(f"{about}: nobody did {what!r}")

    def _expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.problems.append(f"{what}: {found!r}, and not {wanted!r}")


def event_id(number: int) -> str:
    """Return the id under which a number is emitted."""
    return f"due-{number}"
