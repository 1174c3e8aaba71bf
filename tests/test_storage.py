"""Storage: who stores more than its share is refused, and others go on."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from natterjack import connect
from natterjack.bus import Bus
from natterjack.cli.checks import check_team
from natterjack.cli.holdings import Look, Store
from natterjack.cli.places import Place, places
from natterjack.cli.shares import Shares
from natterjack.errors import DisconnectedError, NatterjackError, ShareError, UsageError
from natterjack.objects import get, put
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.stores import REFUSED, STREAMS, attested, noted
from natterjack.testing import NatsServer, until

from .attacks import TEAM, Broker, attacked, clustered, signed, static

MIB = 1024**2


@pytest.fixture
async def broker(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    with getattr(request, "param", static)(tmp_path) as ground:
        async with attacked(ground) as broker:
            yield broker


class Clock:
    """Tells the time, so many seconds ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


async def shrink(broker: Broker, stream: str, size: int) -> None:
    """Have a stream small enough to be filled at once."""
    config = (await broker.core.api(f"STREAM.INFO.{stream}"))["config"]
    await broker.core.api(f"STREAM.UPDATE.{stream}", config | {"max_bytes": size})


async def store_of(shares: Shares, stream: str) -> Store:
    """Look, and return what was seen of a stream."""
    return next(store for store in await shares.look() if store.name == stream)


def place_of(stream: str) -> Place:
    return next(place for place in places(TEAM) if place.stream == stream)


async def is_stored(bus: Bus, subject: str, size: int = 2) -> bool:
    try:
        await bus.store(subject, b'"' + b"x" * (size - 2) + b'"', budget=0.2)
    except NatterjackError:
        return False
    return True


@pytest.mark.parametrize(
    "broker", [static, *(pytest.param(each, marks=pytest.mark.full) for each in (signed, clustered))], indirect=True
)
async def test_who_floods_is_refused_and_others_go_on(broker: Broker) -> None:
    await shrink(broker, "EVENTS", 8 * MIB)
    clock = Clock()
    shares = Shares(broker.client.bus, clock)
    await broker.client.event_bus.emit("analysis.done", {"n": 0})
    stored = 0
    while await is_stored(broker.attacker, "events.research.x", 100_000):
        stored += 1
        assert stored < 80, "it fills the stream"
        await shares.look()
    assert stored > 10
    store = await store_of(shares, "EVENTS")
    assert store.refused == ["researcher"]
    assert store.held < 4 * MIB
    assert store.stored["researcher"] == pytest.approx(stored * 100_000, rel=0.1)
    with pytest.raises(
        ShareError, match=r"'researcher' has stored more on 'events\.research\.x' and the like than one may"
    ):
        await broker.attacker.store("events.research.x", b"{}")
    for number in (1, 2):
        await broker.client.event_bus.emit("analysis.done", {"n": number})
    await until(lambda: len(broker.writer.events) == 3)
    findings = [finding async for finding in check_team(broker.client.bus, Path("none.toml"), Plugins.load())]
    (problem,) = [finding.detail for finding in findings if finding.check == "streams"]
    assert problem.startswith("EVENTS takes nothing more from researcher")
    audit = broker.client.bus.read("AUDIT", "audit.operator.authority.refuse")
    (record,) = [json.loads(message.data) async for message in audit]
    assert (record["who"], record["stream"]) == ("researcher", "EVENTS")

    clock.ahead = 1800
    assert (await store_of(shares, "EVENTS")).refused == ["researcher"]
    clock.ahead = 3700
    await shares.look()
    assert (await store_of(shares, "EVENTS")).refused == []
    assert await is_stored(broker.attacker, "events.research.x")
    found = (await broker.core.api("STREAM.INFO.EVENTS"))["config"]
    assert found["subjects"] == ["events.>", "stored.events.>"]
    assert len(found["sources"]) == len(await broker.client.bus.streams("delay.*.*"))


PLACES = {
    "EVENTS": "events.research.x",
    "MESSAGES": "messages.reports.{}",
    "INBOX": "stored.inbox.nobody.researcher.{}",  # it may inject nothing: what its account would store
    "JOURNAL": "journal.researcher.{}.1",
    "WAKES": "wake.researcher.{}",
    "DEAD": "dead.researcher.{}",
    "OBJ_journal": "$O.journal.C.researcher.{}.1",
    "KV_limits": "$KV.limits.researcher.{}",
    "KV_context": "$KV.context.findings.{}",
}
"""Where the attacker stores."""


async def test_in_no_stream_it_leaves_others_without_room(broker: Broker) -> None:
    shares = Shares(broker.client.bus)
    for stream in PLACES:
        await shrink(broker, stream, 4 * MIB)
    for stream, place in PLACES.items():
        who = broker.core if stream == "INBOX" else broker.attacker
        for number in range(200):
            if not await is_stored(who, place.format(number), 100_000):
                break
            store = await store_of(shares, stream)
        assert store.refused == ["researcher"], stream
        assert store.held < 3 * MIB, stream
        assert not await is_stored(who, place.format("more")), stream
        others = place.format("more").replace("researcher", "writer").replace("findings.more", "draft")
        assert await is_stored(broker.core, others), stream


async def test_what_is_there_no_more_counts_no_more(broker: Broker) -> None:
    """An agent that counts its uses, or works off what it gets, may go on for ever."""
    for stream in ("KV_limits", "INBOX"):
        await shrink(broker, stream, 2 * MIB)
    shares = Shares(broker.client.bus)
    for number in range(40):
        assert await is_stored(broker.attacker, "$KV.limits.researcher.tokens", 100_000)
        await broker.core.store("stored.inbox.analyst.researcher.work", b'"' + b"x" * 100_000 + b'"')
        await until(lambda: len(broker.analyst.events) == number + 1)  # noqa: B023 - it is awaited here
        assert [store.refused for store in await shares.look() if store.refused] == []
    assert (await Look(broker.client.bus, place_of("KV_limits")).read()).stored["researcher"] < 200_000


async def test_writes_wait_for_a_moment_where_not_all_room_is_open(broker: Broker) -> None:
    """And one who is refused is told why, whichever way it writes."""
    await shrink(broker, "KV_context", 4 * MIB)
    server = broker.client.bus.server
    shares = Shares(broker.client.bus)
    await shares.look()
    assert (await broker.core.api("STREAM.INFO.KV_context"))["config"]["max_bytes"] < 2.1 * MIB
    enforcing = asyncio.create_task(shares.enforce())
    for number in range(15):
        await asyncio.gather(*(broker.client.context.set(f"status.{number}.{n}", "x" * 100_000) for n in range(2)))
    async with connect(server, name="researcher") as researcher:

        async def write() -> None:
            for number in range(40):
                await researcher.context.set(f"findings.{number}", "x" * 100_000)

        with pytest.raises(ShareError, match="has stored more on"):
            await write()
        await broker.client.context.set("draft", "done")
    enforcing.cancel()
    await asyncio.gather(enforcing, return_exceptions=True)
    assert (await broker.core.api("STREAM.INFO.KV_context"))["config"]["max_bytes"] == 4 * MIB


async def test_names_that_nobody_owns_push_out_no_values(broker: Broker) -> None:
    await shrink(broker, "OBJ_journal", 4 * MIB)
    shares = Shares(broker.client.bus)
    writer = await Bus.connect(broker.client.bus.server, principal="writer")
    value = await put(writer, b"x" * 1_000_000, bucket="journal")
    sent = 0
    while await is_stored(broker.attacker, f"$O.journal.M.{sent}", 100_000):
        sent += 1
        assert sent < 40
        await shares.look()
    assert await get(writer, value) == b"x" * 1_000_000
    other = await put(writer, b"y" * 1_000_000, bucket="journal")
    assert await get(writer, other) == b"y" * 1_000_000
    await writer.close()


async def test_what_it_delays_comes_no_more(broker: Broker) -> None:
    """The server itself would store it, again and again."""
    await shrink(broker, "EVENTS", 8 * MIB)
    shares = Shares(broker.client.bus)
    every = {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "delay.researcher.due.research.later"}
    for number in range(4):
        sent = f"delay.researcher.{number}"
        await broker.attacker.store(sent, b'"' + b"x" * 700_000 + b'"', headers=every)

    async def is_refused() -> bool:
        return (await store_of(shares, "EVENTS")).refused == ["researcher"]

    assert await until(is_refused, timeout=20)
    held = (await store_of(shares, "EVENTS")).held
    due = "delay.researcher.due.research.later"
    before = await broker.core.last("DELAYS_researcher", due)
    assert before is not None

    async def came_again() -> bool:
        last = await broker.core.last("DELAYS_researcher", due)
        return last is not None and last.headers != before.headers

    await until(came_again, timeout=10)
    assert (await store_of(shares, "EVENTS")).held == held
    assert await is_stored(broker.core, "stored.events.writer.any")


async def test_provisioning_changes_nothing_of_it(broker: Broker) -> None:
    await shrink(broker, "JOURNAL", 4 * MIB)
    shares = Shares(broker.client.bus)
    for number in range(12):
        await is_stored(broker.attacker, f"journal.researcher.{number}.1", 100_000)
    assert (await store_of(shares, "JOURNAL")).over() == ["researcher"]
    before = (await broker.core.api("STREAM.INFO.JOURNAL"))["config"]
    await provision(broker.client.bus, TEAM, Plugins.load())
    assert (await broker.core.api("STREAM.INFO.JOURNAL"))["config"] == before
    await shares.look()
    assert not await is_stored(broker.attacker, "journal.researcher.more.1")
    assert await is_stored(broker.core, "journal.writer.more.1")


async def test_operators_are_never_refused(broker: Broker) -> None:
    await shrink(broker, "EVENTS", 4 * MIB)
    shares = Shares(broker.client.bus)
    for _ in range(25):
        await is_stored(broker.client.bus, "events.research.x", 100_000)
    store = await store_of(shares, "EVENTS")
    assert store.over() == ["operator"]
    assert await is_stored(broker.client.bus, "events.research.x")


@pytest.mark.open_mode(reason="it is about a broker that attests nobody")
async def test_where_nobody_knows_who_stores_nobody_is_refused(bus: Bus) -> None:
    with pytest.raises(UsageError, match="secured mode"):
        Shares(bus)


@pytest.mark.open_mode(reason="it stores in the names of others")
async def test_what_is_counted_is_what_was_stored(own_server: NatsServer, bus: Bus) -> None:
    """However rare the large ones are."""
    await bus.api("STREAM.CREATE.EVENTS", {"name": "EVENTS", **attested(STREAMS["EVENTS"]), "sources": []})
    for _ in range(20):
        await asyncio.gather(*(bus.store("stored.events.small.x", b"x" * 100) for _ in range(250)))
        await bus.store("stored.events.large.x", b"x" * 900_000)
    store = await Look(bus, place_of("EVENTS")).read()
    assert store.stored == store.total
    assert store.stored["large"] == pytest.approx(20 * 900_000, rel=0.01)
    assert store.stored["small"] + store.stored["large"] == pytest.approx(store.held, rel=0.02)


async def test_who_looks_for_the_first_time_admits_nobody_it_does_not_know(broker: Broker) -> None:
    await shrink(broker, "EVENTS", 8 * MIB)
    shares = Shares(broker.client.bus)
    for _ in range(25):
        await is_stored(broker.attacker, "events.research.x", 100_000)
        await shares.look()
    assert (await store_of(shares, "EVENTS")).refused == ["researcher"]
    again = Shares(broker.client.bus)
    for _ in range(3):
        assert (await store_of(again, "EVENTS")).refused == ["researcher"]


async def test_who_is_slow_holds_half_of_it_at_most(broker: Broker) -> None:
    await shrink(broker, "EVENTS", 4 * MIB)
    clock = Clock()
    shares = Shares(broker.client.bus, clock)
    hours = 0
    while await is_stored(broker.attacker, "events.research.x", 100_000):
        hours += 1
        clock.ahead += 3700.0
        await shares.look()
        assert hours < 40
    assert (await store_of(shares, "EVENTS")).held < 2.5 * MIB
    assert (await store_of(shares, "EVENTS")).refused == ["researcher"]


async def test_who_is_in_the_team_no_more_is_refused_as_well(broker: Broker) -> None:
    await shrink(broker, "EVENTS", 4 * MIB)
    shares = Shares(broker.client.bus)
    for _ in range(12):
        await is_stored(broker.core, "stored.events.stranger.x", 100_000)
    assert (await store_of(shares, "EVENTS")).refused == ["stranger"]
    assert not await is_stored(broker.core, "stored.events.stranger.x")
    assert await is_stored(broker.core, "stored.events.writer.x")


async def test_nobody_pushes_out_what_others_have_counted(broker: Broker) -> None:
    await shrink(broker, "KV_limits", 4 * MIB)
    shares = Shares(broker.client.bus)
    assert await is_stored(broker.core, "$KV.limits.writer.tokens")
    for number in range(60):
        await is_stored(broker.attacker, f"$KV.limits.anyone.{number}", 100_000)
        await shares.look()
    assert await broker.core.last("KV_limits", "$KV.limits.writer.tokens") is not None
    assert await is_stored(broker.core, "$KV.limits.writer.others")


async def test_where_nobody_looks_any_more_provisioning_opens_all(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shrink(broker, "JOURNAL", 4 * MIB)
    for number in range(12):
        await is_stored(broker.attacker, f"journal.researcher.{number}.1", 100_000)
    shares = Shares(broker.client.bus)
    assert (await store_of(shares, "JOURNAL")).refused == ["researcher"]

    async def room() -> int:
        return int((await broker.core.api("STREAM.INFO.EVENTS"))["config"]["max_bytes"])

    closed = await room()
    await provision(broker.client.bus, TEAM, Plugins.load())
    assert await room() == closed < STREAMS["EVENTS"]["max_bytes"]
    monkeypatch.setattr("natterjack.stores.BEAT", -1.0)
    await provision(broker.client.bus, TEAM, Plugins.load())
    assert await room() == STREAMS["EVENTS"]["max_bytes"]
    assert await is_stored(broker.attacker, "journal.researcher.more.1")
    journal = (await broker.core.api("STREAM.INFO.JOURNAL"))["config"]
    assert not noted(journal, REFUSED)
    assert journal["max_bytes"] == STREAMS["JOURNAL"]["max_bytes"]


@pytest.mark.full
@pytest.mark.timeout(300)
async def test_a_flood_as_fast_as_it_goes_leaves_room_for_others(broker: Broker) -> None:
    """A gibibyte that is half full, and the largest messages that there are."""
    await shrink(broker, "EVENTS", 1024 * MIB)
    await broker.core.store("stored.events.operator.much", b"x" * 100)
    for _ in range(60):
        await asyncio.gather(*(broker.core.store("stored.events.operator.much", b"x" * 1_000_000) for _ in range(9)))
    server = broker.client.bus.server
    environment = os.environ | server.environment()
    command = [sys.executable, "-m", "natterjack", "storage", "--enforce"]
    enforcing = await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)
    assert enforcing.stderr is not None
    assert b"enforced" in await asyncio.wait_for(enforcing.stderr.readline(), 30)
    stop = asyncio.Event()

    async def flood() -> None:
        while not stop.is_set():
            with suppress(DisconnectedError):  # it sends more than anybody can take
                for _ in range(20):
                    await broker.attacker.publish("events.research.x", b"x" * 1_000_000)
                await broker.attacker.flush()

    flooding = asyncio.create_task(flood())
    for number in range(100):
        await broker.client.event_bus.emit("analysis.done", {"n": number})
    await until(lambda: len(broker.writer.events) == 100, timeout=60)

    async def is_refused() -> bool:
        config = (await broker.client.bus.api("STREAM.INFO.EVENTS"))["config"]
        return bool(config.get("metadata", {}).get("natterjack.refused") == "researcher")

    await until(is_refused, timeout=60)
    await broker.client.event_bus.emit("analysis.done", {"n": 100})
    state = (await broker.client.bus.api("STREAM.INFO.EVENTS"))["state"]
    assert state["bytes"] < 1000 * MIB, state
    stop.set()
    await flooding
    enforcing.terminate()
    told = (await enforcing.stderr.read()).decode()
    assert "'researcher' is refused in EVENTS" in told
    assert await enforcing.wait() == 0
