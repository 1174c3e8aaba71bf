"""Storing: once, whatever happens to the acknowledgement; and every refusal with its reason."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from natterjack.bus import Bus
from natterjack.bus.streams import PAGE
from natterjack.errors import (
    BrokerError,
    ConflictError,
    DisconnectedError,
    NoRespondersError,
    NotProvisionedError,
    PayloadError,
    StreamError,
)
from natterjack.server import Server
from natterjack.testing import NatsServer, until

pytestmark = pytest.mark.open_mode(reason="on subjects of which no right speaks")


@pytest.fixture
async def bus(own_server: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(Server(own_server.url), principal="agent")
    await create(bus, "LOG", subjects=["log.>"], allow_direct=True)
    yield bus
    await bus.close()


async def create(bus: Bus, name: str, **config: object) -> None:
    await bus.api(f"STREAM.CREATE.{name}", {"name": name, **config})


async def count(bus: Bus, stream: str = "LOG") -> int:
    return int((await bus.api(f"STREAM.INFO.{stream}"))["state"]["messages"])


class Proxy:
    """A TCP proxy that can lose what the server sends, and cut the connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.swallow: bytes | None = None
        self.swallowed = asyncio.Event()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut all connections."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, back]
        for source, sink, downstream in ((reader, back, False), (there, writer, True)):
            task = asyncio.create_task(self._pump(source, sink, downstream))
            self._tasks.add(task)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, downstream: bool) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                if downstream and self.swallow is not None and self.swallow in data:
                    self.swallow = None
                    self.swallowed.set()
                    self.cut()
                    return
                sink.write(data)
                await sink.drain()
        sink.close()


# Once


async def test_store_and_read_back(bus: Bus) -> None:
    stored = await bus.store("log.a", b"one")
    assert stored == (1, False)
    assert (await bus.store("log.a", b"two", headers={"X": "1"}, id="mine")).sequence == 2
    last = await bus.last("LOG", "log.a")
    assert last is not None
    assert last.data == b"two"
    assert last.headers is not None
    assert (last.headers["X"], last.headers["Nats-Msg-Id"]) == ("1", "mine")
    assert await bus.last("LOG", "log.none") is None
    first = await bus.at("LOG", 1)
    assert first is not None
    assert first.data == b"one"
    assert await bus.at("LOG", 99) is None


async def test_one_id_is_stored_once(bus: Bus) -> None:
    assert (await bus.store("log.a", b"x", id="same")).duplicate is False
    assert await bus.store("log.a", b"x", id="same") == (1, True)
    assert await count(bus) == 1


async def test_ids_cannot_be_guessed(bus: Bus) -> None:
    ids = {bus.new_id() for _ in range(100)}
    assert len({id[:8] for id in ids}) == 100  # who has seen one can guess no other
    assert len(ids) == 100
    assert all(len(found) > 21 for found in ids)


@pytest.mark.parametrize("expect", [None, 0])
async def test_a_lost_acknowledgement_stores_once(own_server: NatsServer, bus: Bus, expect: int | None) -> None:
    """[R5] also for compare-and-set, where the retry meets its own first try."""
    proxy = Proxy(own_server.port)
    async with proxy as url:
        other = await Bus.connect(Server(url), principal="other")
        try:
            proxy.swallow = b'"stream":"LOG"'  # the acknowledgement
            stored = await other.store("log.lost", b"precious", expect=expect, stream="LOG")
            assert proxy.swallowed.is_set()
            assert stored == (1, True)
            assert await count(bus) == 1
        finally:
            await other.close()


async def test_a_lost_race_after_a_lost_acknowledgement_is_a_conflict(own_server: NatsServer, bus: Bus) -> None:
    proxy = Proxy(own_server.port)
    async with proxy as url:
        other = await Bus.connect(Server(url), principal="other")
        try:
            await bus.store("log.race", b"first")
            proxy.swallow = b"10071"
            with pytest.raises(ConflictError, match="was written by somebody else"):
                await other.store("log.race", b"second", expect=0, stream="LOG")
            assert proxy.swallowed.is_set()
        finally:
            await other.close()


async def test_a_restart_of_the_server_stores_exactly_once(own_server: NatsServer, bus: Bus) -> None:
    async def store(n: int) -> int:
        return (await bus.store("log.many", b"%d" % n)).sequence

    tasks = [asyncio.create_task(store(n)) for n in range(200)]
    await until(lambda: sum(task.done() for task in tasks) > 20)
    own_server.kill()
    tasks += [asyncio.create_task(store(n)) for n in range(200, 250)]
    own_server.start()
    sequences = await asyncio.gather(*tasks)
    assert len(set(sequences)) == 250
    found = [int(message.data) async for message in bus.read("LOG", "log.many")]
    assert sorted(found) == list(range(250))


async def test_store_gives_up_after_its_budget(own_server: NatsServer, bus: Bus) -> None:
    own_server.kill()
    await until(lambda: not bus.connected)
    began = time.monotonic()
    with pytest.raises(DisconnectedError, match="is away"):
        await bus.store("log.away", b"", budget=0.2)
    assert time.monotonic() - began < 2


async def test_store_ends_with_the_connection(own_server: NatsServer, bus: Bus) -> None:
    own_server.kill()
    await until(lambda: not bus.connected)
    storing = asyncio.create_task(bus.store("log.away", b""))
    await asyncio.sleep(0)
    await bus.close()
    with pytest.raises(DisconnectedError):
        await asyncio.wait_for(storing, 7)
    with pytest.raises(DisconnectedError, match="the connection was closed"):
        await asyncio.wait_for(bus.store("log.away", b""), 0.1)


# Refused


async def test_compare_and_set(bus: Bus) -> None:
    one = await bus.store("log.cas", b"1", expect=0)
    with pytest.raises(ConflictError):
        await bus.store("log.cas", b"2", expect=0, stream="LOG")
    await bus.store("log.cas", b"2", expect=one.sequence)
    assert await count(bus) == 2


async def test_unprovisioned_is_known_at_once(bus: Bus) -> None:
    began = time.monotonic()
    with pytest.raises(NotProvisionedError, match=r"a stream for 'nowhere\.to\.go' does not exist on this server"):
        await bus.store("nowhere.to.go", b"")
    with pytest.raises(NotProvisionedError, match="natterjack provision"):
        await bus.api("STREAM.INFO.NOWHERE")
    with pytest.raises(NotProvisionedError, match=r"LOG\.nobody"):
        await bus.api("CONSUMER.INFO.LOG.nobody")
    with pytest.raises(NotProvisionedError, match="stream 'NOWHERE'"):
        _ = [message async for message in bus.read("NOWHERE", ">")]
    with pytest.raises(NoRespondersError):
        await bus.last("NOWHERE", "x")
    assert time.monotonic() - began < 3


async def test_full_stream(bus: Bus) -> None:
    await create(bus, "FULL", subjects=["full"], max_msgs=1, discard="new")
    await bus.store("full", b"")
    with pytest.raises(StreamError, match="maximum messages exceeded") as caught:
        await bus.store("full", b"")
    assert caught.value.code == 10077


async def test_too_large_is_never_sent(bus: Bus) -> None:
    with pytest.raises(PayloadError, match="the server takes"):
        await bus.store("log.large", b"x" * bus.max_payload)
    assert bus.connected


@pytest.mark.parametrize("text", ["not an acknowledgement", "[]", "{}", '{"seq":"x"}', '{"error":1}'])
async def test_a_subject_that_a_program_answers(bus: Bus, text: str) -> None:
    from natterjack.bus import Message

    async def answer(message: Message) -> None:
        await bus.publish(message.reply, text.encode())

    await bus.subscribe("mine", answer)
    with pytest.raises(BrokerError, match="answered by somebody else than JetStream"):
        await bus.store("mine", b"")


async def test_a_server_without_jetstream_says_so_at_once() -> None:
    config = "accounts { A: { users: [ { user: a, password: x } ] }, B: { jetstream: enabled } }"
    with NatsServer(config) as server:
        bus = await Bus.connect(Server(server.url, user="a", password="x"), principal="agent")
        try:
            began = time.monotonic()
            with pytest.raises(BrokerError, match="JetStream"):
                await bus.api("STREAM.INFO.LOG")
            with pytest.raises(BrokerError):
                await bus.store("log.a", b"", budget=0.5)
            assert time.monotonic() - began < 2
        finally:
            await bus.close()


async def test_jetstream_behind_another_prefix() -> None:
    config = """
    accounts {
        CORE: {
            jetstream: enabled, users: [ { user: core, password: x } ],
            exports: [ { service: "$JS.API.>", response_type: "stream" }, { service: "log.>" } ]
        }
        AGENT: {
            users: [ { user: agent, password: x } ],
            imports: [
                { service: { account: CORE, subject: "$JS.API.>" }, to: "CORE.API.>" }
                { service: { account: CORE, subject: "log.>" } }
            ]
        }
    }
    """
    with NatsServer(config) as server:
        core = await Bus.connect(Server(server.url, user="core", password="x"), principal="operator")
        agent = await Bus.connect(Server(server.url, user="agent", password="x", prefix="CORE.API"), principal="agent")
        try:
            await create(core, "LOG", subjects=["log.>"], allow_direct=True)
            await agent.store("log.a", b"from afar")
            last = await agent.last("LOG", "log.a")
            assert last is not None
            assert last.data == b"from afar"
            assert await count(agent) == 1
            assert [message.data async for message in agent.read("LOG", "log.>")] == [b"from afar"]
        finally:
            await core.close()
            await agent.close()


# Reading


async def test_reading_goes_on_over_pages(bus: Bus) -> None:
    total = 2 * PAGE
    await asyncio.gather(*(bus.store(f"log.{n % 2}", b"%d" % n) for n in range(total)))
    everything = [message async for message in bus.read("LOG", "log.>")]
    assert sorted(int(message.data) for message in everything) == list(range(total))
    assert len([message async for message in bus.read("LOG", "log.1")]) == PAGE
    assert [message async for message in bus.read("LOG", "log.>", start=total + 1)] == []


async def test_pages_of_large_messages_are_complete(bus: Bus) -> None:
    await create(bus, "BIG", subjects=["big"], allow_direct=True)
    for _ in range(70):  # more bytes than the server sends at once
        await bus.store("big", b"x" * 1_000_000)
    assert len([message.data[:1] async for message in bus.read("BIG", "big")]) == 70


async def test_forged_headers_of_a_stored_message_hide_nothing(bus: Bus) -> None:
    for name, value in (("Status", "404"), ("Status", "503"), ("Nats-Sequence", "1"), ("Nats-Num-Pending", "0")):
        await bus.store("log.forged", b"", headers={name: value})
        last = await bus.last("LOG", "log.forged")
        assert last is not None
        assert last.headers is not None
        assert last.headers["Nats-Msg-Id"]
    found = [int((message.headers or {})["Nats-Sequence"]) async for message in bus.read("LOG", "log.forged")]
    assert found == [1, 2, 3, 4]
