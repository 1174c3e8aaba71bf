"""The replica of the context bucket: complete, never older than what it showed, and mended when the feed loses."""

import asyncio
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from natterjack import subjects
from natterjack.bus import Bus
from natterjack.context.replica import Replica, read_history
from natterjack.context.state import STREAM, State, Version
from natterjack.errors import NotProvisionedError
from natterjack.server import Server
from natterjack.stores import STREAMS
from natterjack.testing import NatsServer, until

BUCKET = {"name": STREAM, **STREAMS[STREAM], "deny_purge": False}


@pytest.fixture
async def bus(bus: Bus) -> Bus:
    """The operator's connection to a server that has the bucket."""
    await bus.api(f"STREAM.CREATE.{STREAM}", BUCKET)
    return bus


async def second(bus: Bus, stack: AsyncExitStack) -> Bus:
    """Return another connection."""
    other = await Bus.connect(bus.server, principal="other")
    stack.push_async_callback(other.close)
    return other


async def start(bus: Bus, stack: AsyncExitStack) -> tuple[State, Replica]:
    state = State()
    replica = Replica(state, bus)
    await replica.start()
    stack.push_async_callback(replica.close)
    return state, replica


async def put(bus: Bus, key: str, data: bytes) -> int:
    return (await bus.store(f"$KV.context.{key}", data)).sequence


def values(state: State) -> dict[str, object]:
    return {key: version.value() for key, version in state.versions.items() if not version.deleted}


async def lose_feed(replica: Replica) -> None:
    """As a slow consumer or a failing node would: the messages are gone, and nobody says so."""
    await replica._subscriptions.pop().unsubscribe()


async def restore_feed(replica: Replica, bus: Bus) -> None:
    replica._subscriptions.append(await bus.listen(subjects.feed_context(), replica._receive))


async def test_it_begins_with_what_the_bucket_has(bus: Bus, stack: AsyncExitStack) -> None:
    await put(bus, "a", b"1")
    await put(bus, "a.b", b'{"x":[2]}')
    await put(bus, "c", b"3")
    deleted = await bus.store("$KV.context.c", b"", headers={"KV-Operation": "DEL"})
    state, replica = await start(bus, stack)
    assert values(state) == {"a": 1, "a.b": {"x": [2]}}
    assert replica.covered == state.revision == deleted.sequence
    assert state.versions["c"].revision == deleted.sequence  # what a compare-and-set must expect


async def test_an_empty_bucket_is_fine_and_then_it_follows(bus: Bus, stack: AsyncExitStack) -> None:
    state, replica = await start(bus, stack)
    assert (replica.covered, values(state)) == (0, {})
    revision = await put(bus, "a", b"1")
    await replica.reach(revision)
    assert values(state) == {"a": 1}


async def test_without_a_bucket_it_does_not_start(own_server: NatsServer) -> None:
    bus = await Bus.connect(Server(own_server.url), principal="operator")
    replica = Replica(State(), bus)
    with pytest.raises(NotProvisionedError, match="natterjack provision"):
        await replica.start()
    assert replica._keeper is None
    await bus.close()


@pytest.mark.parametrize("count", [1000, 2500])
async def test_a_snapshot_is_complete_while_others_write(bus: Bus, stack: AsyncExitStack, count: int) -> None:
    await asyncio.gather(*(put(bus, f"k{index}", b"0") for index in range(count)))
    writers = await second(bus, stack)
    newest: dict[str, int] = {}
    done = asyncio.Event()

    async def write() -> None:
        value = 0
        while not done.is_set():
            value += 1
            # Few keys, so that their early versions leave the history while pages are read
            key = f"k{random.randrange(20)}"
            newest[key] = await put(writers, key, b"%d" % value)

    writing = [asyncio.create_task(write()) for _ in range(4)]
    await until(lambda: len(newest) > 10)
    state, replica = await start(bus, stack)
    known = {key: version.revision for key, version in state.versions.items()}
    assert len(known) == count
    done.set()
    await asyncio.gather(*writing)
    await replica.reach(max(newest.values()))
    assert {key: state.versions[key].revision for key in newest} == newest


async def test_large_values_come_in_several_answers(bus: Bus, stack: AsyncExitStack) -> None:
    for index in range(12):
        await put(bus, f"large{index}", b'"%s"' % (b"x" * 900_000))
    state, _ = await start(bus, stack)
    assert sorted(len(str(value)) for value in values(state).values()) == [900_000] * 12


async def test_a_gap_is_seen_at_the_next_write_and_read(bus: Bus, stack: AsyncExitStack) -> None:
    state, replica = await start(bus, stack)
    await put(bus, "a", b"1")
    await until(lambda: values(state) == {"a": 1})
    await lose_feed(replica)
    await put(bus, "a", b"2")
    await put(bus, "b", b"2")
    await restore_feed(replica, bus)
    last = await put(bus, "c", b"3")
    await until(lambda: values(state) == {"a": 2, "b": 2, "c": 3}, timeout=1.0)  # sooner than the regular look
    await until(lambda: replica.covered == last)


async def test_a_lost_tail_is_read_through(bus: Bus, stack: AsyncExitStack) -> None:
    state, replica = await start(bus, stack)
    await lose_feed(replica)
    revision = await put(bus, "a", b"1")
    await replica.reach(revision)
    assert values(state) == {"a": 1}


async def test_a_lost_tail_is_found_by_the_regular_look(
    bus: Bus, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack.context.follower.CHECK_EVERY", 0.2)
    state, replica = await start(bus, stack)
    await lose_feed(replica)
    await put(bus, "a", b"1")
    await until(lambda: values(state) == {"a": 1}, timeout=2.0)


async def test_a_reconnect_is_followed_by_a_look(bus: Bus, stack: AsyncExitStack) -> None:
    state, replica = await start(bus, stack)
    await lose_feed(replica)
    await put(await second(bus, stack), "a", b"1")
    assert values(state) == {}
    await bus._nc.force_reconnect()
    await until(lambda: values(state) == {"a": 1}, timeout=2.0)  # sooner than the regular look


async def test_a_revision_that_does_not_exist_holds_nobody_up(bus: Bus, stack: AsyncExitStack) -> None:
    _, replica = await start(bus, stack)
    await put(bus, "a", b"1")
    async with asyncio.timeout(1.0):
        await replica.reach(2**60)
    assert replica.covered == 1
    assert replica._waiters == []


async def test_many_repairs_at_once_read_once(bus: Bus, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    state, replica = await start(bus, stack)
    await lose_feed(replica)
    await put(bus, "a", b"1")
    reads = 0
    request_many = bus.request_many

    async def counted(*args: object, **kwargs: object) -> object:
        nonlocal reads
        reads += 1
        return await request_many(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(bus, "request_many", counted)
    await asyncio.gather(*(replica.repair() for _ in range(50)))
    assert values(state) == {"a": 1}
    assert reads == 1


async def test_it_never_goes_back() -> None:
    state = State()
    for revision in (1, 3, 2, 3):
        state.apply("a", Version(b"%d" % revision, revision=revision))
        assert state.versions["a"].revision == min(3, max(revision, state.revision))
    assert state.versions["a"].value() == 3


async def test_a_killed_server_costs_no_write(own_server: NatsServer, bus: Bus, stack: AsyncExitStack) -> None:
    state, replica = await start(bus, stack)
    seen: list[int] = []
    writer = await second(bus, stack)
    await put(writer, "a", b"1")
    await until(lambda: "a" in state.versions)
    watching = asyncio.create_task(watch_value(state, "a", seen))
    own_server.kill()
    own_server.start()
    # Written by another connection before the replica's own is back, or after: seen in both cases.
    await put(writer, "a", b"2")
    revision = await put(writer, "b", b"2")
    await until(lambda: values(state) == {"a": 2, "b": 2}, timeout=3.0)
    await until(lambda: replica.covered == revision)
    watching.cancel()
    assert seen == sorted(seen)


async def watch_value(state: State, key: str, seen: list[int]) -> None:
    while True:
        seen.append(state.versions[key].value())
        await asyncio.sleep(0)


async def test_a_bucket_made_anew_replaces_the_old_one(bus: Bus, stack: AsyncExitStack) -> None:
    state, replica = await start(bus, stack)
    for value in range(5):
        await put(bus, "old", b"%d" % value)
    await replica.reach(5)
    await bus.api(f"STREAM.DELETE.{STREAM}")
    await bus.api(f"STREAM.CREATE.{STREAM}", BUCKET)
    await put(bus, "new", b"1")
    await replica.repair()
    assert values(state) == {"new": 1}
    await put(bus, "new", b"2")
    await replica.reach(2)
    assert values(state) == {"new": 2}


async def test_purged_messages_are_not_waited_for(
    bus: Bus, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("natterjack.context.replica.TIMEOUT", 0.3)
    await put(bus, "a", b"1")
    state, replica = await start(bus, stack)
    await lose_feed(replica)
    await put(bus, "a", b"2")
    await put(bus, "b", b"1")
    await bus.api(f"STREAM.PURGE.{STREAM}", {"filter": "$KV.context.b"})
    await replica.repair()
    assert (values(state), replica.covered) == ({"a": 2}, 3)
    assert "3 to 3 are gone" in caplog.text


async def test_a_server_that_lags_behind_for_a_moment_is_waited_for_however_long_reading_took(
    bus: Bus, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack.context.replica._PAGE", 1)
    await put(bus, "a", b"1")
    state, replica = await start(bus, stack)
    await lose_feed(replica)
    await put(bus, "b", b"1")
    await put(bus, "c", b"1")
    batch, calls = bus.batch, 0

    async def lagging(stream: str, wanted: Mapping[str, Any], *, timeout: float) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:  # of a cluster's servers, another one
            return [], {}
        return await batch(stream, wanted, timeout=timeout)

    # Each page takes longer than an empty one is waited for.
    monkeypatch.setattr("natterjack.context.replica.time", SimpleNamespace(monotonic=lambda: 6.0 * min(calls, 1)))
    monkeypatch.setattr(bus, "batch", lagging)
    await replica.repair()
    assert values(state) == {"a": 1, "b": 1, "c": 1}


async def test_a_writer_cannot_forge_what_the_server_says(bus: Bus, stack: AsyncExitStack) -> None:
    state, replica = await start(bus, stack)
    forged = {"Nats-Sequence": "1000000", "Nats-Subject": "$KV.context.victim", "Nats-Stream": "OTHER"}
    await bus.store("$KV.context.mine", b"1", headers=forged)
    await put(bus, "mine", b"2")
    await replica.repair()
    assert values(state) == {"mine": 2}
    assert (await start(bus, stack))[0].versions["mine"].revision == 2


@pytest.mark.parametrize("status", ["404", "204", "503"])
async def test_a_value_that_poses_as_the_servers_status_hides_no_other(
    bus: Bus, stack: AsyncExitStack, status: str
) -> None:
    await put(bus, "a", b"1")
    await bus.store("$KV.context.b", b"2", headers={"Status": status, "Nats-Num-Pending": "0"})
    await put(bus, "c", b"3")
    state, replica = await start(bus, stack)
    assert (values(state), replica.covered) == ({"a": 1, "b": 2, "c": 3}, 3)
    assert [past.value for past in await read_history(bus, "context", "b", 2)] == [2]


async def test_what_is_not_json_is_text_or_bytes(bus: Bus, stack: AsyncExitStack) -> None:
    await put(bus, "text", b"plain text")
    await put(bus, "binary", b"\xff\xfe\x00")
    await put(bus, "deep", b"[" * 1000)
    await bus.store("$KV.context.header", b"1", headers={"Natterjack": "d=x"})
    await bus.publish("feed.context.nobody", b"1")
    state, _ = await start(bus, stack)
    assert values(state) == {"text": "plain text", "binary": b"\xff\xfe\x00", "deep": b"[" * 1000, "header": 1}
    assert state.versions["header"].writer == ""
