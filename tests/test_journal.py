"""Journals: entries by run, one writer each, and what is corrupt spoils nothing else."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from natterjack.builtin import FileJournal
from natterjack.bus import Bus
from natterjack.components import Entry
from natterjack.errors import ConfigError, DisconnectedError, FencedError, InvalidNameError, PayloadError
from natterjack.journal import RESERVED, StreamJournal, read_entry
from natterjack.objects import Reference
from natterjack.runjournal import RunJournal
from natterjack.server import Server
from natterjack.stores import STREAMS
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
        await one.append("note", n)
    await two.append("note", {"a": [1]})
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
    assert (journal.ended, journal.tries.total, journal.died) == (False, 0, False)
    assert (await bus.api("STREAM.INFO.JOURNAL"))["state"]["messages"] == 0


async def test_two_replicas_cannot_both_go_on(stream: StreamJournal) -> None:
    """[R4] The second stops, and what the first wrote stays."""
    one, two = RunJournal("worker", "run", stream), RunJournal("worker", "run", stream)
    await one.append("note", 1)
    with pytest.raises(FencedError, match="another replica of 'worker' works on run run"):
        await two.append("note", 2)
    await one.append("note", 3)
    assert [entry.data for entry in await stream.read("worker", "run")] == [1, 3]


async def test_appends_at_once_keep_their_order(stream: StreamJournal) -> None:
    journal = RunJournal("worker", "run", stream)
    await asyncio.gather(*(journal.append("note", n) for n in range(50)))
    assert [entry.data for entry in await stream.read("worker", "run")] == list(range(50))


async def test_a_cancelled_append_does_not_fence_its_own_run(stream: StreamJournal) -> None:
    journal = RunJournal("worker", "run", stream)
    for n in range(5):
        task = asyncio.create_task(journal.append("note", n))
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
    for data in (object(), "x" * 70_000_000):
        with pytest.raises(PayloadError):
            await journal.append("note", data)
    await journal.append("note", "fine")
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
        ([("failed", 1), ("started", 2), ("step", 0)], 1, True, False),
        ([("failed", 1), ("started", 2), ("step", 0), ("failed", 2), ("started", 3)], 3, True, False),
        ([("started", 1), ("step", 0), ("interrupted", 1), ("started", 1)], 1, True, False),
        ([("failed", 1), ("dead", 2), ("resumed", 0), ("started", 2)], 2, True, False),
    ],
)
async def test_attempts(
    stream: StreamJournal, entries: list[tuple[str, Any]], attempts: int, died: bool, ended: bool
) -> None:
    journal = RunJournal("worker", "run", stream)
    for kind, attempt in entries:
        await journal.record(kind, {"attempt": attempt})
    await journal.load()
    assert (journal.tries.total, journal.died, journal.ended) == (attempts, died, ended)


@pytest.mark.parametrize(
    ("entries", "in_vain", "failing"),
    [
        ([], 0, 1),
        (["failed"], 1, 2),
        (["started"], 1, 1),
        (["failed", "started"], 2, 2),
        (["failed", "started", "failed", "started"], 3, 3),
        (["failed", "started", "step"], 0, 1),
        (["failed", "started", "step", "failed", "started"], 2, 2),
        (["started", "sleep", "started", "interrupted"], 0, 1),
        (["failed", "dead", "resumed", "started"], 1, 1),
    ],
)
async def test_attempts_since_the_last_progress(
    stream: StreamJournal, entries: list[str], in_vain: int, failing: int
) -> None:
    journal = RunJournal("worker", "run", stream)
    for kind in entries:
        await journal.record(kind, {"attempt": 1})
    assert (journal.tries.in_vain, journal.tries.failing) == (in_vain, failing)


@pytest.mark.parametrize(
    "data", [b"", b"torn {", b"\xff", b"[]", b"{}", b'{"kind":1}', b'{"kind":"x","time":[]}', b"[" * 100]
)
async def test_a_corrupt_entry_spoils_nothing_else(bus: Bus, stream: StreamJournal, data: bytes) -> None:
    journal = RunJournal("worker", "run", stream)
    await journal.append("note", 1)
    await bus.store("journal.worker.run.2", data)
    again = RunJournal("worker", "run", stream)
    await again.load()
    assert [entry.kind for entry in again.entries()] == ["note", "corrupt"]
    assert (await again.append("note", 3)).index == 3
    with pytest.raises(PayloadError, match=r"is corrupt|not UTF-8|nests deeper"):
        read_entry("journal.worker.run.2", data)


async def test_the_live_copy(bus: Bus, stream: StreamJournal) -> None:
    from natterjack.bus import Message
    from natterjack.journal import stored_entry

    seen: list[Entry] = []

    async def see(message: Message) -> None:
        seen.append(stored_entry(message))

    await bus.subscribe("feed.journal.worker.run.*", see)
    written = await RunJournal("worker", "run", stream).append("note", {"n": 1})
    await until(lambda: seen)
    assert seen == [written]


async def test_the_file_journal_gets_what_is_stored(stream: StreamJournal, tmp_path: Path) -> None:
    sink = FileJournal(tmp_path / "journals")
    await sink.open()
    journal = RunJournal("worker", "run", stream, [sink])
    await journal.append("note", {"n": 1})
    with pytest.raises(PayloadError):
        await journal.append("note", object())
    await journal.append("note", "zwei")
    lines = (tmp_path / "journals" / "worker.jsonl").read_text().splitlines()
    assert [json.loads(line)["data"] for line in lines] == [{"n": 1}, "zwei"]
    assert json.loads(lines[0])["run"] == "run"


async def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        await FileJournal(tmp_path / "file" / "folder").open()


# Large values


@pytest.fixture
async def objects(bus: Bus) -> None:
    await bus.api("STREAM.CREATE.OBJ_journal", {"name": "OBJ_journal", **STREAMS["OBJ_journal"]})


LARGE = {"report": "x" * 2_500_000}


@pytest.mark.usefixtures("objects")
async def test_what_is_too_large_for_a_message_is_journaled_by_reference(bus: Bus, stream: StreamJournal) -> None:
    journal = RunJournal("worker", "run", stream)
    await journal.append("note", LARGE)
    await journal.append("note", "small")
    assert [entry.data for entry in journal.entries()] == [LARGE, "small"]
    assert [entry.data for entry in await stream.read("worker", "run")] == [LARGE, "small"]
    entries = [entry async for entry in stream.entries("worker")]
    assert isinstance(entries[0].data, Reference)
    assert (await stream.whole(entries[0])).data == LARGE
    assert await stream.whole(entries[1]) == entries[1]


@pytest.mark.usefixtures("objects")
async def test_a_large_append_that_was_cancelled_does_not_fence_its_own_run(stream: StreamJournal) -> None:
    journal = RunJournal("worker", "run", stream)
    for turns in range(1, 30, 4):
        task = asyncio.create_task(journal.append("note", LARGE))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await journal.append("end")
    assert await stream.read("worker", "run") == journal.entries()


@pytest.mark.usefixtures("objects")
async def test_a_large_value_that_is_gone_leaves_its_entry(bus: Bus, stream: StreamJournal) -> None:
    await RunJournal("worker", "run", stream).record("done", LARGE)
    await bus.api("STREAM.UPDATE.OBJ_journal", {"name": "OBJ_journal", **STREAMS["OBJ_journal"], "max_msgs": 1})
    (entry,) = await stream.read("worker", "run")
    assert entry.kind == "done"
    assert "is not there any more" in entry.data["omitted"]


@pytest.mark.usefixtures("objects")
async def test_an_entry_cannot_refer_to_what_is_another_agents(bus: Bus, stream: StreamJournal) -> None:
    await RunJournal("worker", "run", stream).append("note", LARGE)
    last = await bus.last("JOURNAL", "journal.worker.run.1")
    assert last is not None
    with pytest.raises(PayloadError, match="which is not its agent's"):
        read_entry("journal.spy.run.1", last.data)


@pytest.mark.open_mode(reason="an agent may not ask which streams there are")
async def test_without_a_place_for_large_values_they_are_refused_and_the_run_goes_on(stream: StreamJournal) -> None:
    journal = RunJournal("worker", "run", stream)
    with pytest.raises(PayloadError, match="there is no place for more"):
        await journal.append("note", LARGE)
    await journal.append("note", "fine")
    assert [entry.data for entry in await stream.read("worker", "run")] == ["fine"]


# Reading back


async def collect(stream: StreamJournal, *agent: str, **wanted: Any) -> list[Any]:
    return [entry.data async for entry in stream.entries(*agent, **wanted)]


async def test_entries_of_all_agents_and_runs(bus: Bus, stream: StreamJournal) -> None:
    for n, (agent, run) in enumerate([("worker", "one"), ("other", "one"), ("worker", "two")]):
        await RunJournal(agent, run, stream).append("note", n)
    await bus.store("journal.worker.two.2", b"torn {")
    assert await collect(stream) == [0, 1, 2, "torn {"]
    assert await collect(stream, "worker") == [0, 2, "torn {"]
    assert await collect(stream, run="one") == [0, 1]
    assert await collect(stream, kind="corrupt") == ["torn {"]
    middle = [entry.time async for entry in stream.entries()][2]
    assert await collect(stream, since=datetime.fromtimestamp(middle, UTC)) == [2, "torn {"]
    assert await collect(stream, since=middle) == [2, "torn {"]
    assert await collect(stream, since=datetime.now(UTC) + timedelta(days=1)) == []


async def take(tail: AsyncIterator[Entry], count: int) -> list[Any]:
    return [(await asyncio.wait_for(anext(tail), 10)).data for _ in range(count)]


async def test_tail_begins_with_what_is_stored_and_misses_nothing(bus: Bus, stream: StreamJournal) -> None:
    one = RunJournal("worker", "one", stream)
    for n in range(3):
        await one.append("note", n)
    async with stream.tail("worker", last=2, kind="note") as tail:
        assert await take(tail, 2) == [1, 2]
        await one.append("other", "unwanted")
        await RunJournal("other", "one", stream).append("note", "unwanted")
        for n in range(3, 300):  # a reader that sleeps meanwhile
            await one.append("note", n)
        await bus.store("journal.worker.two.1", b"\xff")
        await one.append("note", 300)
        assert await take(tail, 298) == list(range(3, 301))


async def test_tail_without_more_tells_what_comes(stream: StreamJournal) -> None:
    one = RunJournal("worker", "one", stream)
    await one.append("note", 0)
    async with stream.tail() as tail, stream.tail(last=None) as whole:
        assert await take(whole, 1) == [0]
        await one.append("note", 1)
        assert await take(tail, 1) == await take(whole, 1) == [1]


async def test_tail_goes_on_after_the_server_was_away_and_ends_with_the_connection(
    own_server: NatsServer, bus: Bus, stream: StreamJournal
) -> None:
    one = RunJournal("worker", "one", stream)
    async with stream.tail(last=None) as tail:
        await one.append("note", 0)
        assert await take(tail, 1) == [0]
        own_server.stop()
        own_server.start()
        await one.append("note", 1)
        assert await take(tail, 1) == [1]
        waiting = asyncio.create_task(take(tail, 1))
        await asyncio.sleep(0)
        await bus.close()
        with pytest.raises(DisconnectedError):
            await waiting
