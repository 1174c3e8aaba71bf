"""The trigger `files`."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import Field

from natterjack import BrokerError, PayloadError, Settings, Trigger, TriggerContext, hookimpl
from natterjack_files.changes import Change, Differences, Kind
from natterjack_files.folder import Folder, Listing
from natterjack_files.memory import Firing, Memory
from natterjack_files.watcher import Watcher

STATE: Final = ".natterjack/files"
LOOK_EVERY: Final = 5.0
"""Seconds after which it is looked for changes that the system did not tell of, e.g. in a network's file system."""
AWAY_EVERY: Final = 1.0
STANDBY_EVERY: Final = 2.0
BATCH: Final = 100
"""Changes that are fired at once."""
_MANY: Final = 1000
"""Changes after which it is told how far it has come."""
_LONGEST_PAUSE: Final = 30.0


class FilesTrigger(Trigger):
    """Fires for each file that is created, modified, renamed or deleted in a folder, also while nobody watched.

    Example in a team file::

        on = [{ files = { path = "inbox/", pattern = "*.pdf" } }]

    The data: `change`, `path` (relative to the folder), `absolute`, `size` in bytes, `mtime` in Unix seconds, and
    `renamed_from` of what was renamed.
    """

    name: ClassVar[str] = "files"
    tells_ready = True

    class Config(Settings):
        """Settings, as a team file gives them.

        Attributes:
            path: The folder; a relative one begins where the agent's process was started.
            pattern: Of the files' names, e.g. `*.pdf`; those that begin with a dot need a pattern that does.
            recursive: Whether the folders in it count, too.
            changes: Which changes wake the agent.
            settle: Seconds for which a file must rest before it is told: who writes it may not be done yet.
            existing: Whether what is there at the very first start is told as created.
            content: Whether the event has the file's content.
            content_limit: Bytes up to which it has.
            state: Folder for what the trigger knows; by default `.natterjack/files`.
        """

        path: str = Field(min_length=1)
        pattern: str = Field("*", min_length=1, pattern="^[^/]*$")
        recursive: bool = False
        changes: tuple[Kind, ...] = Field(("created", "modified", "renamed", "deleted"), min_length=1)
        settle: float = Field(1.0, ge=0, le=3600, allow_inf_nan=False)
        existing: bool = True
        content: bool = False
        content_limit: int = Field(256_000, ge=1, le=64_000_000)
        state: str = Field(STATE, min_length=1)

    config: Config

    @property
    def label(self) -> str:
        """`files-` and a number that folder and pattern have."""
        meant = repr((self.config.path, self.config.pattern, self.config.recursive))
        return f"files-{hashlib.sha256(meant.encode()).hexdigest()[:12]}"

    async def run(self, ctx: TriggerContext) -> None:
        """Fire until cancelled."""
        folder = Folder(_absolute(self.config.path), self.config.pattern, recursive=self.config.recursive)
        await asyncio.to_thread(folder.check)
        memory = await self._remember(ctx)
        changed = asyncio.Event()
        watcher = Watcher(folder, changed, ctx.log)
        try:
            await _Firer(self.config, folder, memory, ctx).run(watcher, changed)
        finally:
            await watcher.close()
            memory.close()

    async def _remember(self, ctx: TriggerContext) -> Memory:
        """Return what is known, once no other process uses it."""
        path = _absolute(self.config.state) / f"{ctx.agent}-{self.label}.sqlite3"
        told = False
        while (memory := await asyncio.to_thread(Memory.open, path)) is None:
            if not told:
                told = True
                ctx.log.info("another process watches %s; this one takes over when it ends", self.config.path)
                ctx.ready()
            await asyncio.create_task(ctx.clock.sleep(STANDBY_EVERY))  # as a scripted clock has it: a task a sleep
        return memory


class _Firer:
    """Looks for what has changed, and fires it.

    Args:
        config: The trigger's settings.
        folder: Where.
        memory: What is known.
        ctx: The trigger's.
    """

    def __init__(self, config: FilesTrigger.Config, folder: Folder, memory: Memory, ctx: TriggerContext) -> None:
        self._config, self._folder, self._memory, self._ctx = config, folder, memory, ctx
        self._differences = Differences(config.settle)

    async def run(self, watcher: Watcher, changed: asyncio.Event) -> None:
        """Look and fire until cancelled."""
        await self._begin()
        self._ctx.ready()
        await self._fire(self._memory.firing)
        away = False
        while True:
            changed.clear()
            await watcher.follow()
            pause = await self._look()
            if (pause is None) != away:
                away = pause is None
                text = "is gone, or cannot be read; what changed is told when it is back" if away else "is back"
                self._ctx.log.warning("the folder %s %s", self._folder.root, text)
            await self._rest(changed, AWAY_EVERY if pause is None else pause)

    async def _begin(self) -> None:
        """Take what is there at the very first start as known, if that is wanted."""
        if self._memory.new and not self._config.existing:
            listing = await asyncio.to_thread(self._folder.read) or Listing()
            there = [Change("created", path, seen) for path, seen in listing.files.items()]
            await asyncio.to_thread(self._memory.skip, there)
        await asyncio.to_thread(self._memory.looked)

    async def _look(self) -> float | None:
        """Fire what has changed, and return the seconds after which to look again; None: the folder is away."""
        listing = await asyncio.to_thread(self._folder.read)
        if listing is None:
            return None
        changes = self._differences.look(self._memory.known, listing, self._ctx.clock.now())
        wanted = [change for change in changes if change.kind in self._config.changes]
        unwanted = [change for change in changes if change.kind not in self._config.changes]
        if unwanted:
            await asyncio.to_thread(self._memory.skip, unwanted)
        for start in range(0, len(wanted), BATCH):
            await self._fire(await asyncio.to_thread(self._memory.begin, wanted[start : start + BATCH]))
            done = min(start + BATCH, len(wanted))
            if len(wanted) >= _MANY and (done % _MANY == 0 or done == len(wanted)):
                self._ctx.log.info("%s: %d of %d changes are stored", self._folder.root, done, len(wanted))
        if changes:
            return 0.0  # firing took its time
        due = self._differences.due(self._ctx.clock.now())
        return LOOK_EVERY if due is None else min(due, LOOK_EVERY)

    async def _rest(self, changed: asyncio.Event, pause: float) -> None:
        """Return when something has changed, or after some seconds."""
        tasks = [asyncio.create_task(changed.wait()), asyncio.create_task(self._ctx.clock.sleep(pause))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # Firing

    async def _fire(self, firing: list[Firing]) -> None:
        """Fire until all of it is stored, however long the broker is away or the inbox full."""
        pause = 1.0
        while firing:
            firing, problem = await self._fire_once(firing)
            if firing:
                if not isinstance(problem, BrokerError):
                    raise problem
                self._ctx.log.warning("%d changes are fired again in %g s: %s", len(firing), pause, problem)
                await asyncio.create_task(self._ctx.clock.sleep(pause))
                pause = min(_LONGEST_PAUSE, pause * 2)

    async def _fire_once(self, firing: list[Firing]) -> tuple[list[Firing], BaseException]:
        """Return what could not be fired, and why; what could be is recorded, also when this is cancelled."""
        tasks = {asyncio.create_task(self._fire_one(each)): each for each in firing}
        try:
            await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            pairs = list(zip(tasks.values(), results, strict=True))
            stored = [each for each, result in pairs if not isinstance(result, BaseException)]
            await asyncio.to_thread(self._memory.record, stored)
        problems = [(each, result) for each, result in pairs if isinstance(result, BaseException)]
        # What waiting does not help comes first.
        problems.sort(key=lambda pair: isinstance(pair[1], BrokerError))
        return [each for each, _ in problems], problems[0][1] if problems else BrokerError()

    async def _fire_one(self, firing: Firing) -> None:
        data = self._data(firing.change)
        if self._config.content and firing.change.kind != "deleted":
            limit = self._config.content_limit
            content = await asyncio.to_thread(self._folder.content, firing.change.path, limit)
            try:
                await self._ctx.fire(data | content, id=firing.id)
            except PayloadError as error:
                data["omitted"] = str(error)
            else:
                return
        await self._ctx.fire(data, id=firing.id)

    def _data(self, change: Change) -> dict[str, Any]:
        data = {
            "change": change.kind,
            "path": _text(change.path),
            "absolute": _text(str(self._folder.root / change.path)),
            "size": change.seen.size,
            "mtime": change.seen.mtime / 1e9,
        }
        return data | ({"renamed_from": _text(change.origin)} if change.origin else {})


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))  # not resolved: a link to the folder may change


def _text(path: str) -> str:
    """Return a path as JSON can hold it; what of it is no UTF-8 is replaced."""
    return os.fsencode(path).decode(errors="replace")


@hookimpl
def natterjack_triggers() -> list[type[Trigger]]:
    """Bring the trigger."""
    return [FilesTrigger]
