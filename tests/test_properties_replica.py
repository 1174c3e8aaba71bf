"""The replica under a feed that loses, repeats, delays and reorders: equal to the bucket in the end, never going back.

The bucket and the feed are a real server's; what the feed brings is tossed about before the replica hears of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from natterjack import subjects
from natterjack.bus import Bus, Message
from natterjack.bus.batch import BatchMessage, store_batch
from natterjack.context.replica import Replica
from natterjack.context.state import STREAM, State, Version, Watch, read_message
from natterjack.stores import STREAMS
from natterjack.testing import until

Fate = Literal["pass", "lose", "repeat", "echo", "hold"]
Step = tuple[str, int]

KEYS: Final = ("a", "b", "a.b")
TRANSACTIONS: Final = (("a",), ("b", "a"), ("a", "a", "b"), ("b", "a.b", "b", "b", "a"))
# In memory: a file stream made right after one of its name was deleted may come with the old one's messages.
BUCKET: Final = {"name": STREAM, **STREAMS[STREAM], "storage": "memory"}

fates = st.lists(st.sampled_from(["pass", "pass", "lose", "repeat", "echo", "hold"]), max_size=20)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, len(KEYS) - 1)),
        st.tuples(st.just("put"), st.integers(0, len(KEYS) - 1)),
        st.tuples(st.just("transact"), st.integers(0, len(TRANSACTIONS) - 1)),
        st.tuples(st.just("delete"), st.integers(0, len(KEYS) - 1)),
        st.tuples(st.just("release"), st.integers(0, 3)),
        st.tuples(st.just("reach"), st.integers(-3, 3)),
        st.tuples(st.sampled_from(["look", "look", "look", "reconnect"]), st.just(0)),
    ),
    max_size=15,
)
with_a_bucket = settings(
    max_examples=settings().max_examples // 3,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Tossed(Replica):
    """A replica whose feed is not to be trusted.

    Args:
        fates: What happens to each message of the feed, in turn; all that come later pass.
    """

    def __init__(self, state: State, bus: Bus, fates: list[Fate]) -> None:
        super().__init__(state, bus)
        self.heard = 0
        self._fates = iter(fates)
        self._held: list[Message] = []
        self._echoes: list[Message] = []  # what comes again after the next

    def _receive(self, message: Message) -> None:
        self.heard += 1
        fate = next(self._fates, "pass")
        if fate == "hold":
            self._held.append(message)
        echoes, self._echoes = self._echoes, [message] if fate == "echo" else []
        for each in [message] * {"lose": 0, "hold": 0, "repeat": 2}.get(fate, 1) + echoes:
            super()._receive(each)

    def release(self, index: int) -> None:
        """Bring a message late, behind newer ones."""
        if index < len(self._held):
            super()._receive(self._held.pop(index))


@pytest.fixture
async def other(bus: Bus, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch) -> Bus:
    """A second connection, which stays when the replica's goes."""
    monkeypatch.setattr("natterjack.context.replica.FEED_GRACE", 0.005)
    other = await Bus.connect(bus.server, principal="other")
    stack.push_async_callback(other.close)
    return other


async def contents(bus: Bus) -> dict[str, tuple[int, bytes, bool]]:
    """Return what the bucket has, read without a replica."""
    found = {}
    for key in KEYS:
        message = await bus.last(STREAM, subjects.key(subjects.CONTEXT_BUCKET, key))
        if message is not None:
            found[key] = shown(read_message(message)[1])
    return found


def everything(state: State) -> dict[str, tuple[int, bytes, bool]]:
    return {key: shown(version) for key, version in state.versions.items()}


def shown(version: Version) -> tuple[int, bytes, bool]:
    return version.revision, version.data, version.deleted


async def put(bus: Bus, key: str, data: bytes) -> int:
    """Write, or delete by writing nothing; return the revision."""
    headers = {} if data else {"KV-Operation": "DEL"}
    return (await bus.store(subjects.key(subjects.CONTEXT_BUCKET, key), data, headers=headers)).sequence


async def transact(bus: Bus, keys: Sequence[str], last: int) -> int:
    """Write several keys at once, some of them twice; return the last revision."""
    messages = [
        BatchMessage(subjects.key(subjects.CONTEXT_BUCKET, key), b"%d" % (last + at), {}) for at, key in enumerate(keys)
    ]
    await store_batch(bus, messages, id=bus.new_id())
    return last + len(messages)


async def check(step: Step, bus: Bus, replica: Tossed, last: int) -> None:
    """Do one step that writes nothing."""
    what, number = step
    if what == "release":
        replica.release(number)
    elif what == "reach":  # what is there, what is not there yet, and what will never be
        revision = max(0, last + number)
        await asyncio.wait_for(replica.reach(revision), 5)
        assert replica.covered >= min(revision, last)
    elif what == "look":
        await replica.repair()
        assert replica.covered >= last
    elif what == "reconnect":
        back = asyncio.Event()
        async with bus.reconnects(back.set):
            await bus._nc.force_reconnect()
            await asyncio.wait_for(back.wait(), 5)


@with_a_bucket
@given(before=st.integers(0, 3), fates=fates, steps=steps)
@example(before=0, fates=["lose"], steps=[("put", 0)])
@example(before=1, fates=["hold", "pass"], steps=[("put", 0), ("put", 0), ("release", 0)])
@example(before=0, fates=["hold", "pass", "pass"], steps=[("transact", 2), ("release", 0), ("put", 1)])
@example(before=0, fates=["echo"], steps=[("transact", 2)])
@example(before=0, fates=["lose", "repeat"], steps=[("put", 0), ("put", 1), ("reach", 0), ("reach", 3)])
async def test_whatever_the_feed_does_the_replica_ends_equal_to_the_bucket(
    bus: Bus, other: Bus, before: int, fates: list[Fate], steps: list[Step]
) -> None:
    await other.api(f"STREAM.CREATE.{STREAM}", BUCKET)
    state, watch = State(), Watch(">")
    state.watches.add(watch)
    replica = Tossed(state, bus, fates)
    try:
        for number in range(before):
            await put(other, KEYS[number], b"before")
        last = before
        await replica.start()
        assert everything(state) == await contents(other)
        for step in steps:
            if step[0] in ("put", "delete"):
                last = await put(other, KEYS[step[1]], b"%d" % last if step[0] == "put" else b"")
            elif step[0] == "transact":
                last = await transact(other, TRANSACTIONS[step[1]], last)
            else:
                await check(step, bus, replica, last)
        await asyncio.wait_for(replica.reach(last), 5)
        assert everything(state) == await contents(other)
        assert (replica.covered, state.revision, replica._waiters) == (last, last, [])
        watch.close()
        told = [(change.key, change.revision) async for change in watch]
        for key in KEYS:
            seen = [revision for name, revision in told if name == key]
            assert seen == sorted(set(seen))  # never an older value after a newer one, and none twice
    finally:
        await replica.close()
        await other.api(f"STREAM.DELETE.{STREAM}")


@pytest.mark.parametrize("lost", [1, 7])
async def test_what_the_feed_lost_is_found_without_being_asked_for(
    bus: Bus, other: Bus, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """The tail, too, after which the feed brings nothing that would show the gap."""
    monkeypatch.setattr("natterjack.context.follower.CHECK_EVERY", 0.2)
    await other.api(f"STREAM.CREATE.{STREAM}", BUCKET)
    state = State()
    replica = Tossed(state, bus, ["lose"] * lost)
    await replica.start()
    last = [await put(other, "a", b"1") for _ in range(lost)][-1]
    await until(lambda: replica.heard == lost)
    await until(lambda: replica.covered == last)
    assert everything(state) == await contents(other)
    await replica.close()
