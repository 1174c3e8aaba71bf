"""The calls of a durable run: what came of each is journaled, and a later attempt does not do it again.

A handler is repeated from its beginning. Each of its calls here has a *position*; where the run has journaled what
came of the call at that position, that is returned, and nothing is done. So a handler must make the same calls each
time, whatever it does between them. Nothing is written before the first call; then the run keeps how it began: the
event whole, so that it can go on anywhere, and a seed of 128 random bits, from which the ids of all that it sends
are derived: a repeated attempt sends what it sent before under the same ids, which nobody can guess [R6].
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from natterjack import codec
from natterjack.branches import Branching, branch_here, calling, position_here
from natterjack.errors import ConfigError, NondeterminismError, PayloadError
from natterjack.journal import BEGUN, SLEEP, STEP, WAITED, WAITING
from natterjack.runjournal import RunJournal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from natterjack.components import Entry
    from natterjack.messages import Answer

log = logging.getLogger("natterjack.calls")

Note = dict[str, Any]
"""What a run did, as it is journaled: `verb`, `what`, and of what it sent, `id` and `sequence`."""


def asked(name: str, answer: Answer, began: float) -> Note:
    """Return the note of an ask that was answered, and began at this reading of `time.perf_counter`."""
    return {"verb": "ask", "what": name, "run": answer.run_id, "seconds": round(time.perf_counter() - began, 6)}


_CALLS: Final = (STEP, SLEEP, WAITING)


class _Step:
    """A step that is under way."""

    def __init__(self, run: Calls, position: str) -> None:
        self.run, self.position, self.task = run, position, asyncio.current_task()
        self.did: list[Note] = []


_STEP: Final[ContextVar[_Step | None]] = ContextVar("natterjack_step", default=None)


class Calls:
    """The calls of one run that are journaled.

    Args:
        run: Its id.
        journal: Its journal, with what earlier attempts wrote.
        origin: Returns what the run handles, as it is journaled.
        version: Of the agent's code.
        did: What the run has done before.
        branching: The run, as its tasks know it.

    Attributes:
        run: Its id.
        branching: The run, as its tasks know it.
        version: Of the code with which the run began.
        begun: Whether that is journaled: then a later attempt sends under the same ids.
        began: When it did, Unix seconds.
        made: How many calls its handler has made.
        waited: The events for which it has waited, by position; None: in vain.
        emitted: Sequence of the first event that it emitted; 0: none yet.
        astray: The call that was another than the one journaled, if there was one.
    """

    def __init__(
        self,
        run: str,
        journal: RunJournal,
        origin: Callable[[], Mapping[str, Any]],
        version: int,
        did: list[Note],
        branching: Branching,
    ) -> None:
        self.run, self._journal, self._origin, self._did = run, journal, origin, did
        self.began = time.time()
        self.version, self._seed, self.begun = version, secrets.token_bytes(16), False
        self._beginning = asyncio.Lock()
        self.branching = branching
        self.made, self._branched = 0, False
        self._numbers = Counter[str]()  # of what was sent, by where and what
        self._journaled: dict[str, Entry] = {}
        self._sent: dict[str, int] = {}  # sequences by id
        self.waited: dict[str, dict[str, Any] | None] = {}
        self.astray: NondeterminismError | None = None
        self._steps: set[_Step] = set()
        self._no_steps = asyncio.Event()
        self._ended = False
        self.emitted = 0
        for note in did:
            if (position := note.pop("position", None)) is not None:
                note["id"] = self._identity(position, note["verb"], note["what"])
            self._note_emit(note)

    def recall(self) -> None:
        """Take over what the journal has of earlier attempts."""
        for entry in self._journal.entries():
            if not isinstance(entry.data, dict):  # an agent's own, or corrupt
                continue
            try:
                self._take_over(entry.kind, entry)
            except (LookupError, TypeError, ValueError, AttributeError) as error:  # it must not strand the run
                text = "entry %d of run %s is passed over, as it is corrupt or its data is lost: %r"
                log.warning(text, entry.index, entry.run, error)

    def _take_over(self, kind: str, entry: Entry) -> None:
        data = entry.data
        if kind == BEGUN:
            self.version, self._seed, self.began = data["version"], bytes.fromhex(data["seed"]), entry.time
            self.begun = True
        elif kind in _CALLS and "position" in data:  # else its data, which was large, is lost
            self._journaled[data["position"]] = entry
        elif kind == WAITED and "position" in data:
            self.waited[data["position"]] = data["event"]
        for note in (*data.get("before", ()), *data.get("did", ())):
            if "id" in note:
                self._sent[note["id"]] = note["sequence"]
            self._note_emit(note)

    # Where the handler is

    def _step_here(self) -> _Step | None:
        step = _STEP.get()
        return step if step is not None and step.run is self else None

    def call(self, kind: str, name: str) -> tuple[str, Entry | None]:
        """Take the next position, and return it with what the run has journaled there.

        Raises:
            NondeterminismError: It has journaled another call there.
            ConfigError: The caller is inside a step, or in a task that the handler did not start, or the run has ended.
        """
        what = _told(kind, name)
        self.check(what)
        if self.astray is not None:
            raise self.astray
        branch = branch_here(self.branching)
        if branch is None:
            msg = f"{what} is called in a task that was not started by the handler of run {self.run}; start it there"
            raise ConfigError(msg)
        self._branched |= bool(branch.prefix)
        branch.calls += 1
        self.made += 1
        entry = self._journaled.get(branch.position)
        if entry is not None and (entry.kind, entry.data.get("name", "")) != (kind, name):
            raise self._differs(entry, what)
        return branch.position, entry

    def _differs(self, entry: Entry, what: str) -> NondeterminismError:
        """Return an error that is final, whatever the handler makes of it."""
        journaled = _told(entry.kind, entry.data.get("name", ""))
        self.astray = NondeterminismError(self.run, entry.data["position"], journaled, what)
        return self.astray

    def check_same(self) -> None:
        """Raise `NondeterminismError` if the handler has ended with other calls than those journaled, or fewer.

        How far a task of its own had got may differ: the handler may have cancelled it.
        """
        if self.astray is not None:
            raise self.astray
        made = 0 if self.branching.trunk is None else self.branching.trunk.calls
        for position, entry in self._journaled.items():
            if position.isdecimal() and int(position) > made:
                raise self._differs(entry, "nothing")

    @property
    def waits_no_more(self) -> bool:
        """Whether the call that is made next here is a wait that is over."""
        branch = branch_here(self.branching)
        return branch is not None and f"{branch.prefix}{branch.calls + 1}" in self.waited

    def check(self, what: str) -> None:
        """Raise `ConfigError` where no call may be made: inside a step, or after the end."""
        if (inside := self._step_here()) is not None:
            msg = f"{what} is inside the step at {inside.position}: a step is one piece, so take it apart instead"
            raise ConfigError(msg)
        self._check_ended(what)

    def _check_ended(self, what: str) -> None:
        if self._ended:
            msg = f"{what} comes too late: run {self.run} has ended here; await the tasks that a handler starts"
            raise ConfigError(msg)

    # Journaling

    async def begin(self) -> None:
        """Journal how the run began, unless it has been."""
        async with self._beginning:
            if not self.begun:
                await self.record(BEGUN, {"seed": self._seed.hex(), "version": self.version, **self._origin()})
                self.begun = True

    async def record(self, kind: str, data: Mapping[str, Any]) -> None:
        """Journal an entry, and with it what the handler did since the last one, outside of steps."""
        before, self._did[:] = self._did[:], ()
        try:
            await self._journal.record(kind, {**data, "before": before} if before else dict(data))
        except BaseException:
            self._did[:0] = before
            raise

    @property
    def left(self) -> dict[str, list[Note]]:
        """What the handler did since the last entry, outside of steps."""
        return {"before": self._did[:]} if self.begun and self._did else {}

    # Steps

    def step(self, name: str, fn: Callable[..., Any], args: Any, kwargs: Any) -> Coroutine[Any, Any, Any]:
        """Take a position for a step, at once; awaiting what is returned does the step. See `RunContext.step`."""
        if not name or not isinstance(name, str):
            msg = f"{name!r} is no name of a step; give it some text, e.g. ctx.step('search', search, topic)"
            raise ConfigError(msg)
        position, entry = self.call(STEP, name)
        return self._take(position, name, entry, lambda: fn(*args, **kwargs))

    async def _take(self, position: str, name: str, entry: Entry | None, call: Callable[[], Any]) -> Any:
        if entry is not None:
            return entry.data["result"]
        await self.begin()
        async with self._under_way(position, name) as step:
            began = time.perf_counter()
            result = call()
            if inspect.isawaitable(result):
                result = await result
            seconds = time.perf_counter() - began
            try:
                value = codec.decode(codec.encode(result))
            except PayloadError as error:
                msg = f"the result of step {name!r} cannot be journaled: {error}"
                raise PayloadError(msg) from error
            did = {"did": step.did} if step.did else {}
            entry_data = {"position": position, "name": name, "result": value, "seconds": round(seconds, 6), **did}
            await self.record(STEP, entry_data)
            return value

    @asynccontextmanager
    async def _under_way(self, position: str, name: str) -> AsyncIterator[_Step]:
        self._check_ended(f"step {name!r}")
        step = _Step(self, position)
        token = _STEP.set(step)
        self._steps.add(step)
        try:
            with calling(self.branching):
                yield step
        finally:
            _STEP.reset(token)
            self._steps.discard(step)
            if not self._steps:
                self._no_steps.set()

    @property
    def busy(self) -> bool:
        """Whether a step is under way."""
        return bool(self._steps)

    def alone(self, task: asyncio.Task[Any] | None) -> bool:
        """Tell whether a task is the handler's own, and no other has made calls."""
        return task is self.branching.task and not self._branched

    def close(self) -> None:
        """Take no more calls."""
        self._ended = True

    async def finish(self) -> None:
        """Take no more calls, and return once the steps that other tasks of the handler are in have ended."""
        self._ended = True
        while self._steps:
            self._no_steps.clear()
            await self._no_steps.wait()

    async def end(self) -> None:
        """Take no more calls, and cancel the steps that are still under way."""
        self._ended = True
        tasks = {step.task for step in self._steps if step.task is not None and step.task is not self.branching.task}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # What the run sends and asks

    def identity(self, verb: str, what: str) -> str:
        """Return the id of something that is sent now: the same whenever the handler comes here again."""
        step = self._step_here()
        position = f"{step.position}!" if step is not None else position_here(self.branching)
        return secrets.token_hex(16) if position is None else self._identity(position, verb, what)

    def _identity(self, position: str, verb: str, what: str) -> str:
        where = f"{position} {verb} {what}"
        self._numbers[where] += 1
        return blake2b(f"{where} {self._numbers[where]}".encode(), key=self._seed, digest_size=16).hexdigest()

    def sent(self, id: str) -> int | None:
        """Return the sequence of what an earlier attempt is known to have sent under an id."""
        return self._sent.get(id)

    def note(self, note: Note) -> None:
        """Keep what the run did, for its next entry."""
        step = self._step_here()
        (self._did if step is None else step.did).append(note)
        self._note_emit(note)

    def _note_emit(self, note: Note) -> None:
        if note["verb"] == "emit" and "delayed" not in note and not self.emitted:
            self.emitted = note["sequence"]


def _told(kind: str, name: str) -> str:
    """Return a call in words."""
    return f"{kind} {name!r}" if name else kind
