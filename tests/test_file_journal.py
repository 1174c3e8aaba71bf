"""Journals in files: what a crash, a full disk or a stranger leaves is reported, skipped, and never overwritten."""

import asyncio
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from natterjack import Agent, AgentProcess, AgentRuntime
from natterjack.builtin import FileJournal
from natterjack.bus import Bus
from natterjack.components import Entry, Journal
from natterjack.journal import StreamJournal
from natterjack.messages import Event
from natterjack.runjournal import RunJournal
from natterjack.runs import RunContext
from natterjack.server import Server
from natterjack.stores import STREAMS
from natterjack.testing import NatsServer


@pytest.fixture
async def journal(tmp_path: Path) -> FileJournal:
    journal = FileJournal(tmp_path)
    await journal.open()
    return journal


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "worker.jsonl")


def content(file: str) -> bytes:
    return Path(file).read_bytes()


def entry(index: int, data: Any = None, *, run: str = "run", kind: str = "note") -> Entry:
    return Entry("worker", run, index, kind, data, float(index))


def numbers(journal: FileJournal, **wanted: Any) -> list[int]:
    return [each.index for each in journal.entries(**wanted)]


async def test_what_is_written_is_read(journal: FileJournal) -> None:
    written = [entry(1, {"a": [1, None]}), entry(2, "zwei\nZeilen", run="other"), entry(3, kind="done")]
    for each in written:
        await journal.write(each)
    assert [*journal.entries()] == written
    assert numbers(journal, run="run") == [1, 3]
    assert numbers(journal, kind="done") == [3]
    assert numbers(journal, since=2.0) == numbers(journal, since=datetime.fromtimestamp(2, UTC)) == [2, 3]
    assert numbers(journal, agent="worker") == [1, 2, 3]
    assert numbers(journal, agent="nobody") == []


async def test_it_takes_what_the_stream_takes(journal: FileJournal) -> None:
    class Finding(BaseModel):
        sources: set[str]

    await journal.write(entry(1, Finding(sources={"a"})))
    assert [each.data for each in journal.entries()] == [{"sources": ["a"]}]


@pytest.mark.parametrize("torn", [b'{"agent":"worker","run":"run","ind', b"\xff\xfe", b"{}", b"[1]", b"x" * 100_000])
async def test_a_torn_line_is_reported_and_skipped_and_stays(
    journal: FileJournal, file: str, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    await journal.write(entry(1))
    before = content(file) + torn
    (journal.folder / "worker.jsonl").write_bytes(before)
    assert numbers(journal) == [1]
    assert f"{file}:2: this line is no journal entry and is skipped" in caplog.text
    await journal.write(entry(2))
    assert content(file).startswith(before + b"\n{")
    assert numbers(journal) == [1, 2]


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """No file of this process may have more bytes: a write is cut off there, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_line_that_a_full_disk_cuts_off_is_an_error_and_spoils_no_other(
    journal: FileJournal, file: str
) -> None:
    await journal.write(entry(1))
    with disk_full_after(len(content(file)) + 10), pytest.raises(OSError, match="only 10 of"):
        await journal.write(entry(2))
    await journal.write(entry(3))
    assert numbers(journal) == [1, 3]


WRITER = """
import asyncio, sys
from natterjack.builtin import FileJournal
from natterjack.components import Entry

async def main() -> None:
    journal = FileJournal(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    for index in range(200):
        await journal.write(Entry("worker", sys.argv[2], index, "note", "x" * 9000, 0.0))

asyncio.run(main())
"""


def test_processes_that_write_at_once_do_not_mix_their_lines(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path)
    (tmp_path / "worker.jsonl").write_bytes(b"half a li")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), f"run{n}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for n in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        writer.communicate(b"go\n", timeout=30)
        assert writer.returncode == 0
    for n in range(3):
        assert numbers(journal, run=f"run{n}") == list(range(200))
    assert (tmp_path / "worker.jsonl").read_bytes().count(b"\n") == 601


async def test_each_line_is_on_the_disk_if_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    await FileJournal(tmp_path).write(entry(1))
    assert synced == []
    await FileJournal(FileJournal.Config(folder=str(tmp_path), sync=True)).write(entry(2))
    await FileJournal(tmp_path, sync=True).write(entry(3))
    assert len(synced) == 2


# A sink that fails, beside the stream


@pytest.fixture
async def bus(own_server: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(Server(own_server.url), principal="worker")
    await bus.api("STREAM.CREATE.JOURNAL", {"name": "JOURNAL", **STREAMS["JOURNAL"]})
    yield bus
    await bus.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
async def test_the_stream_has_what_a_full_disk_does_not(
    bus: Bus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "worker.jsonl").symlink_to("/dev/full")
    stream = StreamJournal().attach(bus)
    journal = RunJournal("worker", "run", stream, [FileJournal(tmp_path)])
    await journal.append("note", 1)
    await journal.append("note", 2)
    assert [each.data for each in await stream.read("worker", "run")] == [1, 2]
    for index in (1, 2):
        assert f"worker: its journal 'file' misses entry {index} of run run: OSError" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


class Hanging(Journal):
    """Never done."""

    name: ClassVar[str] = "hanging"

    async def write(self, entry: Entry) -> None:
        await asyncio.Event().wait()


async def test_a_sink_that_hangs_does_not_hold_up_the_run_for_long(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("natterjack.runjournal.SINK_TIMEOUT", 0.05)
    journal = RunJournal("worker", "run", StreamJournal().attach(bus), [Hanging()])
    began = time.monotonic()
    await journal.append("note")
    assert time.monotonic() - began < 5
    assert "misses entry 1 of run run: TimeoutError" in caplog.text


class Failing(Journal):
    """Takes nothing."""

    name: ClassVar[str] = "failing"

    async def write(self, entry: Entry) -> None:
        msg = "no place"
        raise OSError(msg)

    async def close(self) -> None:
        msg = "no end either"
        raise OSError(msg)


async def test_a_run_is_neither_failed_nor_repeated_by_a_sink(own_server: NatsServer) -> None:
    handled: list[int] = []

    class Counter(Agent):
        async def handle(self, event: Event, ctx: RunContext) -> str:
            handled.append(event.attempt)
            await ctx.journal.append("note", event.attempt)
            return "counted"

    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess(name="counter", agent=Counter(), journal=Failing(), retry_delay=0.01))
    async with runtime:
        run = await runtime.inject_event("counter", {"type": "count"})
        assert await run.result(timeout=10) == "counted"
        kinds = [entry.kind async for entry in runtime.journal.entries("counter", run=run.id)]
        assert kinds == ["note", "done"]
        again = await runtime.inject_event("counter", {"type": "count"})
        assert await again.result(timeout=10) == "counted"
    assert handled == [1, 1]
