"""Journals: entries by run, one writer each, and what is corrupt spoils nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from natterjack.builtin import FileJournal
from natterjack.bus import Bus
from natterjack.components import Entry
from natterjack.errors import ConfigError, FencedError, InvalidNameError, PayloadError
from natterjack.journal import RESERVED, RunJournal, StreamJournal, read_entry
from natterjack.provision import STREAMS
from natterjack.server import Server
from natterjack.testing import NatsServer, until


@pytest.fixture
async def bus(own_server: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(Server(own_server.url), principal="worker")
    await bus.api("STREAM.CREATE.JOURNAL", {"name": "JOURNAL", **STREAMS["JOURNAL"]})
    yield bus
    await bus.close()


@pytest.fixture
def stream(bus: Bus) -> StreamJournal:
    stream = StreamJournal()
    stream.attach(bus)
    return stream


async def test_entries_by_run(stream: StreamJournal) -> None:
    one, two = RunJournal("worker", "one", stream), RunJournal("worker", "two", stream)
    for n in range(20):  # more than one window
        await one.append("step", n)
    await two.append("step", {"a": [1]})
    again = RunJournal("worker", "one", stream)
    await again.load()
    assert [(entry.index, entry.data) for entry in again.entries()] == [(n + 1, n) for n in range(20)]
    assert again.entries(kind="other") == []
    assert len(again.entries(since=again.entries()[5].time)) >= 15
    assert await stream.read("worker", "none") == []
    assert [entry.data for entry in await stream.read("worker", "two")] == [{"a": [1]}]


async def test_nothing_is_written_before_the_first_append(bus: Bus, stream: StreamJournal) -> None:
    journal = RunJournal("worker", "lazy", stream)
    await journal.load()
    assert (journal.ended, journal.attempts, journal.died) == (False, 0, False)
    assert (await bus.api("STREAM.INFO.JOURNAL"))["state"]["messages"] == 0


async def test_two_replicas_cannot_both_go_on(stream: StreamJournal) -> None:
    """[R4] The second stops, and what the first wrote stays."""
    one, two = RunJournal("worker", "run", stream), RunJournal("worker", "run", stream)
    await one.append("step", 1)
    with pytest.raises(FencedError, match="another replica of 'worker' works on run run"):
        await two.append("step", 2)
    await one.append("step", 3)
    assert [entry.data for entry in await stream.read("worker", "run")] == [1, 3]


async def test_appends_at_once_keep_their_order(stream: StreamJournal) -> None:
    journal = RunJournal("worker", "run", stream)
    await asyncio.gather(*(journal.append("step", n) for n in range(50)))
    assert [entry.data for entry in await stream.read("worker", "run")] == list(range(50))


async def test_a_cancelled_append_does_not_fence_its_own_run(stream: StreamJournal) -> None:
    journal = RunJournal("worker", "run", stream)
    for n in range(5):
        task = asyncio.create_task(journal.append("step", n))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await journal.append("end")
    stored = await stream.read("worker", "run")
    assert stored == journal.entries()
    assert stored[-1].kind == "end"
    assert [entry.index for entry in stored] == list(range(1, len(stored) + 1))


async def test_what_cannot_be_kept_is_refused_and_the_run_goes_on(stream: StreamJournal) -> None:
    journal = RunJournal("worker", "run", stream)
    for data in (object(), "x" * 2_000_000):
        with pytest.raises(PayloadError):
            await journal.append("step", data)
    await journal.append("step", "fine")
    assert [entry.data for entry in await stream.read("worker", "run")] == ["fine"]


@pytest.mark.parametrize("kind", RESERVED)
async def test_the_kernels_kinds_are_its_own(stream: StreamJournal, kind: str) -> None:
    with pytest.raises(InvalidNameError, match="choose another"):
        await RunJournal("worker", "run", stream).append(kind)


@pytest.mark.parametrize(
    ("entries", "attempts", "died", "ended"),
    [
        ([], 0, False, False),
        ([("failed", 1)], 1, False, False),
        ([("started", 1)], 1, True, False),
        ([("failed", 1), ("started", 2)], 2, True, False),
        ([("started", 1), ("interrupted", 1)], 0, False, False),
        ([("failed", 1), ("started", 2), ("interrupted", 2), ("started", 2)], 2, True, False),
        ([("started", 1), ("done", 1)], 1, False, True),
        ([("dead", 3)], 0, False, True),
        ([("started", "many"), ("failed", None)], 0, False, False),
    ],
)
async def test_attempts(
    stream: StreamJournal, entries: list[tuple[str, Any]], attempts: int, died: bool, ended: bool
) -> None:
    journal = RunJournal("worker", "run", stream)
    for kind, attempt in entries:
        await journal.record(kind, {"attempt": attempt})
    await journal.load()
    assert (journal.attempts, journal.died, journal.ended) == (attempts, died, ended)


@pytest.mark.parametrize(
    "data", [b"", b"torn {", b"\xff", b"[]", b"{}", b'{"kind":1}', b'{"kind":"x","time":[]}', b"[" * 100]
)
async def test_a_corrupt_entry_spoils_nothing_else(bus: Bus, stream: StreamJournal, data: bytes) -> None:
    journal = RunJournal("worker", "run", stream)
    await journal.append("step", 1)
    await bus.store("journal.worker.run.2", data)
    again = RunJournal("worker", "run", stream)
    await again.load()
    assert [entry.kind for entry in again.entries()] == ["step", "corrupt"]
    assert (await again.append("step", 3)).index == 3
    with pytest.raises(PayloadError, match=r"is corrupt|not UTF-8|nests deeper"):
        read_entry("journal.worker.run.2", data)


async def test_the_live_copy(bus: Bus, stream: StreamJournal) -> None:
    from natterjack.bus import Message
    from natterjack.journal import live_entry

    seen: list[Entry] = []

    async def see(message: Message) -> None:
        seen.append(live_entry(message))

    await bus.subscribe("feed.journal.worker.run.*", see)
    written = await RunJournal("worker", "run", stream).append("step", {"n": 1})
    await until(lambda: seen)
    assert seen == [written]


async def test_the_file_journal_gets_what_is_stored(stream: StreamJournal, tmp_path: Path) -> None:
    sink = FileJournal(tmp_path / "journals")
    await sink.open()
    journal = RunJournal("worker", "run", stream, [sink])
    await journal.append("step", {"n": 1})
    with pytest.raises(PayloadError):
        await journal.append("step", object())
    await journal.append("step", "zwei")
    lines = (tmp_path / "journals" / "worker.jsonl").read_text().splitlines()
    assert [json.loads(line)["data"] for line in lines] == [{"n": 1}, "zwei"]
    assert json.loads(lines[0])["run"] == "run"


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        await FileJournal(tmp_path / "file" / "folder").open()
