"""What journals tell of runs: each in one line, and one of them as a timeline that goes on in other agents."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from natterjack import codec, subjects
from natterjack.bus import Bus, Message
from natterjack.cli.exits import CommandError, ExitCode
from natterjack.client import TeamClient
from natterjack.components import Entry
from natterjack.dead import dead_letters
from natterjack.errors import PayloadError
from natterjack.events import read_stored
from natterjack.journal import BEGUN, ENDINGS, PROGRESS, SLEEP, STEP, WAITING

SHORT: Final = 12
"""Characters of a run's id that tables show; any unique beginning is enough to name it."""
_LONGEST: Final = timedelta(minutes=10)
"""How long before its end a run without steps may have begun: the usual limit of a handler."""
_SENDING: Final = ("emit", "publish")


@dataclass(slots=True)
class RunSummary:
    """What the journal tells of one run.

    Attributes:
        agent: Whose.
        run: Its id.
        began: Time of its first entry, Unix seconds; of a run without steps, that is its end.
        last: Time of its last entry.
        state: `running`, `parked` (it sleeps or waits, without a process), `retrying`, `done`, `dead`, `failed` (an
            answer), `cancelled`.
        event: Type of the event that it handles; `ask` for an answer.
        event_id: Id of that event.
        parent: The run that emitted the event, or asks.
        steps: How many it has finished.
        entries: How many entries it has.
        spent: What it cost, as it said by `ctx.spent`.
    """

    agent: str
    run: str
    began: float
    last: float = 0.0
    state: str = "running"
    event: str = ""
    event_id: str = ""
    parent: str = ""
    steps: int = 0
    entries: int = 0
    spent: Counter[str] = field(default_factory=Counter)
    _asked: bool = field(default=False, repr=False)
    _pauses: bool = field(default=False, repr=False)

    def add(self, entry: Entry) -> None:
        """Take in the next entry."""
        data = entry.data if isinstance(entry.data, Mapping) else {}
        self.entries, self.last = self.entries + 1, entry.time
        self.steps += entry.kind == STEP
        for note in notes_of(entry):
            self.spent.update(note.get("usage", {}))
        if entry.kind == BEGUN:
            self._begin(data)
        elif entry.kind == "done" and not self._asked:
            self.event, self.event_id = data.get("type", self.event), data.get("event", self.event_id)
        self.state = self._state(entry.kind)

    def _begin(self, data: Mapping[str, Any]) -> None:
        self._asked, self.parent = "question" in data, data.get("parent", "")
        self.event = "ask" if self._asked else ""
        if "subject" in data:
            self.event = subjects.split_stored(data["subject"])[1]
            self.event_id = codec.id_in(data.get("headers", {})) or str(data.get("sequence", ""))

    def _state(self, kind: str) -> str:
        if kind in ENDINGS:
            return kind
        if kind in PROGRESS:
            self._pauses = kind in (SLEEP, WAITING)
        if kind == "failed":
            return "failed" if self._asked else "retrying"
        return "parked" if self._pauses and kind in (SLEEP, WAITING, "interrupted") else "running"

    @property
    def ended(self) -> bool:
        """Whether it does nothing any more."""
        return self.state in (*ENDINGS, "failed")

    def plain(self) -> dict[str, Any]:
        """Return it as JSON data."""
        shown = ("agent", "run", "state", "event", "event_id", "parent", "steps", "entries", "spent")
        times = {"began": moment(self.began), "last": moment(self.last)}
        return {**{name: getattr(self, name) for name in shown}, **times}


def summary_of(entries: Iterable[Entry]) -> RunSummary:
    """Return what the entries of one run tell; there is at least one."""
    found: RunSummary | None = None
    for entry in entries:
        found = found or RunSummary(entry.agent, entry.run, entry.time)
        found.add(entry)
    if found is None:
        msg = "a run without entries"
        raise ValueError(msg)
    return found


async def summaries(entries: AsyncIterator[Entry]) -> list[RunSummary]:
    """Return what entries tell of all their runs, in the order of their last entries."""
    runs: dict[tuple[str, str], RunSummary] = {}
    async for entry in entries:
        key = entry.agent, entry.run
        if key not in runs:
            runs[key] = RunSummary(*key, entry.time)
        runs[key].add(entry)
    return sorted(runs.values(), key=lambda run: run.last)


def moment(time: float) -> datetime:
    """Return Unix seconds as a datetime."""
    return datetime.fromtimestamp(time, UTC)


async def find_run(bus: Bus, id: str) -> tuple[str, str]:
    """Return agent and id of the run whose id begins so.

    Raises:
        CommandError: There is none, or there are several.
    """
    subjects.check_type(id, "run id")
    found = await _runs(bus, id, "*") or {each for each in await _runs(bus, "*", "1") if each[1].startswith(id)}
    if not found:
        msg = f"the journals have no run {id!r}; `natterjack runs list` shows them"
        raise CommandError(msg, ExitCode.UNKNOWN)
    if len(found) > 1:
        some = ", ".join(f"{run} of {agent}" for agent, run in sorted(found)[:5])
        msg = f"{id!r} begins the ids of {len(found)} runs ({some}); write more of it"
        raise CommandError(msg, ExitCode.USAGE)
    return found.pop()


async def _runs(bus: Bus, run: str, index: str) -> set[tuple[str, str]]:
    """Return agent and id of each run that has such an entry."""
    found = (each.split(".") for each in await bus.subjects_in(subjects.JOURNAL, subjects.journal("*", run, index)))
    return {(agent, id) for _, agent, id, _ in found}


@dataclass(slots=True)
class Timeline:
    """One run, entry by entry.

    Attributes:
        summary: The run in one line.
        entries: Its entries, large ones whole.
        sent: What it emitted outside of what its entries tell, as notes: a run without steps tells nothing of it.
        led_to: The runs that handle what it emitted, by the event's id; and those that answer it.
    """

    summary: RunSummary
    entries: list[Entry]
    sent: list[dict[str, Any]] = field(default_factory=list)
    led_to: dict[str, list[RunSummary]] = field(default_factory=dict)

    def notes(self, entry: Entry) -> list[dict[str, Any]]:
        """Return what the run did before, or in, what an entry tells."""
        return [*notes_of(entry), *(self.sent if entry is self.entries[-1] else ())]

    def runs(self, note: Mapping[str, Any]) -> list[RunSummary]:
        """Return the runs to which something led that it did."""
        return self.led_to.get(note.get("id") or note.get("run") or "", [])

    def plain(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {**self.summary.plain(), "timeline": [self._plain(entry) for entry in self.entries]}

    def _plain(self, entry: Entry) -> dict[str, Any]:
        did = [{**note, "led_to": [run.plain() for run in self.runs(note)]} for note in self.notes(entry)]
        return {"index": entry.index, "time": moment(entry.time), "kind": entry.kind, "data": entry.data, "did": did}


def notes_of(entry: Entry) -> list[dict[str, Any]]:
    """Return what a run did, as one of its entries tells."""
    data = entry.data if isinstance(entry.data, Mapping) else {}
    return [*data.get("before", ()), *data.get("did", ())]


async def read_timeline(client: TeamClient, agent: str, run: str) -> Timeline:
    """Return one run, with what it led to."""
    entries = await client.journal.read(agent, run)
    if not entries:
        msg = f"the first entries of run {run} of {agent} are not kept any more; `natterjack journal tail` has the rest"
        raise CommandError(msg, ExitCode.UNKNOWN)
    timeline = Timeline(summary_of(entries), entries)
    if not any(entry.kind == BEGUN for entry in entries):
        timeline.sent = await _sent_by(client.bus, timeline.summary)
    for note in (note for entry in entries for note in timeline.notes(entry)):
        if note["verb"] in _SENDING and "id" not in note:
            note["id"] = await _event_id(client.bus, note)
    await _follow(client, timeline)
    return timeline


async def _sent_by(bus: Bus, run: RunSummary) -> list[dict[str, Any]]:
    """Return notes of the events that say that a run emitted them."""
    found = []
    async for message in bus.read(subjects.EVENTS, subjects.stored_events(), since=moment(run.began) - _LONGEST):
        if _emitter(message) == run.run:
            event = read_stored(message)
            found.append({"verb": "emit", "what": event.type, "sequence": event.sequence, "id": event.id})
    return found


def _emitter(message: Message) -> str:
    try:
        return codec.unpack((message.headers or {}).get(codec.HEADER)).run
    except PayloadError:  # anybody may have sent it
        return ""


async def _event_id(bus: Bus, note: Mapping[str, Any]) -> str:
    stream = subjects.EVENTS if note["verb"] == "emit" else subjects.MESSAGES
    message = await bus.at(stream, note["sequence"])
    return read_stored(message).id if message is not None else str(note["sequence"])


async def _follow(client: TeamClient, timeline: Timeline) -> None:
    """Find the runs that handle what a run emitted, and those that answer it."""
    notes = [note for entry in timeline.entries for note in timeline.notes(entry)]
    sent = {note["id"] for note in notes if "id" in note}
    asked = {note["run"] for note in notes if note.get("run")}
    if not sent and not asked:
        return
    began = moment(timeline.summary.began) - _LONGEST
    dead = {letter.run: letter.event for letter in await dead_letters(client.bus)}
    for run in await summaries(client.journal.entries(since=began)):
        event = run.event_id or dead.get(run.run, "")
        key = run.run if run.run in asked else event
        if key in sent or key in asked:
            timeline.led_to.setdefault(key, []).append(run)
