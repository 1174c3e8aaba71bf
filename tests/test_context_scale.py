"""A context of many keys: its snapshot is complete and right while others write, and small in memory."""

import asyncio
import gc
import os
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from natterjack.bus import Bus
from natterjack.context import AgentContext, Transaction
from natterjack.stores import context_stream
from natterjack.testing import NatsServer, until

STREAM, CONFIG = context_stream()
PAGE = 1000
SIZES = [3_000, pytest.param(100_000, marks=[pytest.mark.full, pytest.mark.timeout(600)])]


@pytest.fixture
async def bus(bus: Bus) -> Bus:
    """The operator's connection to a server that has the bucket."""
    await bus.api(f"STREAM.CREATE.{STREAM}", {"name": STREAM, **CONFIG})
    return bus


async def attached(bus: Bus, stack: AsyncExitStack) -> AgentContext:
    other = await Bus.connect(bus.server, principal="operator")
    stack.push_async_callback(other.close)
    context = AgentContext()
    await context.attach(other)
    stack.push_async_callback(context.close)
    return context


def name(number: int) -> str:
    return f"area{number % 10}.key{number}"


def write_page(start: int, tx: Transaction) -> None:
    for number in range(start, start + PAGE):
        tx.set(name(number), [0, number])


async def stored(bus: Bus) -> dict[str, tuple[int, bytes]]:
    """Revision and data of the newest of each key, read in another way than a context does."""
    newest: dict[str, tuple[int, bytes]] = {}
    async for message in bus.read(STREAM, "$KV.context.>"):
        headers = message.headers or {}
        key, data = headers["Nats-Subject"].removeprefix("$KV.context."), message.data
        newest[key] = (int(headers["Nats-Sequence"]), b"" if headers.get("KV-Operation") else data)
    return newest


def resident() -> int:
    """Bytes of memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", SIZES)
async def test_a_snapshot_is_complete_while_others_write(
    bus: Bus, stack: AsyncExitStack, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = await attached(bus, stack)
    for start in range(0, count, PAGE):
        await writer.transact(partial(write_page, start))
    done, rounds, new = asyncio.Event(), 0, 0

    async def keep_writing() -> None:
        """Rewrite keys, more often than a key's history is long, make new ones, and delete some."""
        nonlocal rounds, new
        while not done.is_set():
            rounds += 1
            for number in range(0, count, count // 50):
                writer.set(name(number), [rounds, number])
            writer.set(f"new.key{(new := new + 1)}", [rounds, new])
            writer.delete(name(new % count if new % (count // 50) else 1))
            await writer.flush()

    writing = asyncio.create_task(keep_writing())
    await until(lambda: rounds >= 3)
    before = {key: writer.get(key) for key in writer.keys("area0.*")}
    gc.collect()
    had, begun = resident(), time.perf_counter()
    reader = await attached(bus, stack)
    took, gained = time.perf_counter() - begun, resident() - had
    for key, (written, number) in before.items():  # what was there when it began is there, or has been deleted since
        found = reader.get(key)
        assert found is None or (found[0] >= written and found[1] == number), key
    done.set()
    await writing
    for context in (reader, writer):
        await context.refresh()
    truth = await stored(bus)
    for context in (reader, writer):
        versions = context._state.versions
        assert {key: (version.revision, version.data) for key, version in versions.items()} == truth
    assert len(truth) == count + new
    with capsys.disabled():
        sys.stdout.write(f"\n{count:,} keys: attached in {took:.1f} s, {gained / count:.0f} bytes of memory a key\n")
    if count == 100_000:
        assert gained / count < 1000


async def test_a_snapshot_costs_no_more_for_the_history_that_keys_have(
    own_server: NatsServer, bus: Bus, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = await attached(bus, stack)
    for _ in range(5):
        for start in range(0, 2 * PAGE, PAGE):
            await writer.transact(partial(write_page, start))
    taken = 0
    batch = Bus.batch

    async def counted(*args: object, **options: object) -> object:
        nonlocal taken
        answer = await batch(*args, **options)  # type: ignore[arg-type]
        taken += len(answer[0])
        return answer

    monkeypatch.setattr(Bus, "batch", counted)
    reader = await attached(bus, stack)
    assert (len(reader.keys()), taken) == (2 * PAGE, 2 * PAGE)
    assert reader._replica is not None
    assert reader._replica.covered == 10 * PAGE


async def test_values_that_fill_an_answer_are_asked_for_again(bus: Bus, stack: AsyncExitStack) -> None:
    """An answer ends at 4 MiB; what was left out comes with the next."""
    writer = await attached(bus, stack)
    for number in range(1200):
        writer.set(f"key{number}", "x" * (10_000 if number % 2 else 3))
        if number % 100 == 99:
            await writer.flush()
    reader = await attached(bus, stack)
    assert {key: len(reader.get(key)) for key in reader.keys()} == {  # noqa: SIM118 - it is no dict
        f"key{number}": 10_000 if number % 2 else 3 for number in range(1200)
    }
