"""What the kernel relies on in a journal."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar, cast

import pytest

from natterjack.components import Component, Entry, Journal, Kind
from natterjack.testing.contracts.component import TESTED, ComponentContract, assert_nothing_left


class JournalContract(ComponentContract):
    """What the kernel relies on in a journal. Override `read`, and `make` if settings alone do not make one.

    A journal that cannot fail to write need not override `spoil`; the others should.
    """

    kind: ClassVar[Kind] = "journal"
    base: ClassVar[type[Component]] = Journal

    def make(self, folder: Path) -> Journal:
        """Return a journal, not yet open; each call one on the same place.

        Args:
            folder: A folder of this test's own, for a journal that keeps files.
        """
        del folder
        return cast("Journal", self.component.create(self.settings))

    async def read(self, folder: Path, run: str) -> list[Entry]:
        """Return the entries of a run that the journal has kept, in its order."""
        msg = f"{type(self).__name__}: override `read`: return what the journal has kept"
        raise NotImplementedError(msg)

    async def spoil(self, journal: Journal, folder: Path) -> bool:
        """Make an open journal unable to write, and return True; False if nothing could."""
        del journal, folder
        return False

    def test_needs_no_settings(self) -> None:
        """A team file names a journal and has no place for settings, so each has a default."""
        assert isinstance(self.component.create({}), Journal)

    @pytest.mark.asyncio
    async def test_keeps_what_is_written_in_order(self, tmp_path: Path) -> None:
        """Every entry is there, whole, and in the order of its run."""
        journal = self.make(tmp_path)
        await journal.open()
        entries = [_entry("one", index) for index in range(1, 6)]
        for entry in entries:
            await journal.write(entry)
        await journal.close()
        assert await self.read(tmp_path, "one") == entries

    @pytest.mark.asyncio
    async def test_survives_being_opened_again(self, tmp_path: Path) -> None:
        """A process that starts again goes on where the last one ended, and overwrites nothing."""
        entries = [_entry("one", index) for index in range(1, 4)]
        for entry in entries:
            journal = self.make(tmp_path)
            await journal.open()
            await journal.write(entry)
            await journal.close()
        assert await self.read(tmp_path, "one") == entries

    @pytest.mark.asyncio
    async def test_keeps_runs_that_write_at_once(self, tmp_path: Path) -> None:
        """An agent works on several runs at once, each in its own order."""
        journal = self.make(tmp_path)
        await journal.open()
        runs = {run: [_entry(run, index) for index in range(1, 6)] for run in ("one", "two", "three")}

        async def write(run: str) -> None:
            for entry in runs[run]:
                await journal.write(entry)

        await asyncio.gather(*map(write, runs))
        await journal.close()
        assert {run: await self.read(tmp_path, run) for run in runs} == runs

    @pytest.mark.asyncio
    async def test_tells_when_it_cannot_write(self, tmp_path: Path) -> None:
        """An entry that is not kept is an error, never silence."""
        journal = self.make(tmp_path)
        await journal.open()
        if not await self.spoil(journal, tmp_path):
            pytest.skip("`spoil` is not overridden")
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever it is, it is told
            await journal.write(_entry("one", 1))
        assert not isinstance(caught.value, AssertionError)
        await journal.close()

    @pytest.mark.asyncio
    async def test_closing_leaves_no_task(self, tmp_path: Path) -> None:
        """After `close` nothing of it goes on."""
        before = asyncio.all_tasks()
        journal = self.make(tmp_path)
        await journal.open()
        await journal.write(_entry("one", 1))
        await journal.close()
        await assert_nothing_left(before)


def _entry(run: str, index: int) -> Entry:
    """Return an entry with data that is easily mangled."""
    data = {"text": "ä\n\u2028 \"'", "nested": [{"deep": [index, None, True, 0.1]}], "large": 2**53}
    return Entry(TESTED, run, index, "note", data, 1_700_000_000.25 + index)
