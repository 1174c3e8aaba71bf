"""The continuous pull: for free slots only, alive through restarts, and everything given back at the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from natterjack.bus import Bus, Consumer, Message, place_of
from natterjack.errors import NotProvisionedError
from natterjack.server import Server
from natterjack.specs import ConsumerSpec
from natterjack.testing import NatsServer, until

pytestmark = pytest.mark.open_mode(reason="on subjects of which no right speaks")

SPEC = ConsumerSpec("WORK", "agent=work", "work.>")


@pytest.fixture
async def bus(own_server: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(Server(own_server.url), principal="agent")
    await bus.api("STREAM.CREATE.WORK", {"name": "WORK", "subjects": ["work.>"], "allow_direct": True})
    yield bus
    await bus.close()


async def provision(bus: Bus, ack_wait: float = 30.0) -> None:
    config = {"durable_name": SPEC.name, "ack_policy": "explicit", "ack_wait": int(ack_wait * 1e9), "max_deliver": -1}
    await bus.api(f"CONSUMER.DURABLE.CREATE.WORK.{SPEC.name}", {"stream_name": "WORK", "config": config})


async def fill(bus: Bus, count: int, start: int = 0) -> None:
    await asyncio.gather(*(bus.store("work.x", b"%d" % n) for n in range(start, start + count)))


async def info(bus: Bus) -> tuple[int, int]:
    """Return how many messages wait, and how many are out."""
    found = await bus.api(f"CONSUMER.INFO.WORK.{SPEC.name}")
    return found["num_pending"], found["num_ack_pending"]


class Worker:
    """Takes messages, and keeps them until told otherwise."""

    def __init__(self, bus: Bus, *, slots: int, heartbeat: float = 5.0) -> None:
        self.got: list[Message] = []
        self.consumer = Consumer(bus, SPEC, self.got.append, slots=slots, heartbeat=heartbeat)

    @property
    def numbers(self) -> list[int]:
        return [int(message.data) for message in self.got]

    def ack(self, count: int | None = None) -> None:
        taken, self.got[:count] = self.got[:count], []
        for message in taken:
            self.consumer.ack(message)


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(worker.consumer.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_only_free_slots_are_filled(bus: Bus) -> None:
    await provision(bus)
    await fill(bus, 40)
    worker = Worker(bus, slots=4)
    seen: list[int] = []
    async with running(worker):
        while len(seen) < 40:
            await until(lambda: worker.got)
            assert len(worker.got) <= 4
            assert (await info(bus))[1] <= 8  # the server books acks after requests that were sent later
            seen += worker.numbers[:1]
            worker.ack(1)
        assert seen == list(range(40))
        await settled(bus)


async def test_many_slots_that_get_free_one_by_one_make_few_requests(bus: Bus) -> None:
    """The server lets 512 wait, of all replicas together, and refuses more."""
    await provision(bus)
    await fill(bus, 900)
    worker = Worker(bus, slots=1000)
    async with running(worker):
        await until(lambda: len(worker.got) == 900)
        for _ in range(800):
            worker.ack(1)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await bus.flush()
        found = await bus.api(f"CONSUMER.INFO.{worker.consumer.spec.stream}.{worker.consumer.spec.name}")
        assert found["num_waiting"] <= 20


async def settled(bus: Bus) -> None:
    """Wait until nothing waits, and nothing is out."""

    async def nothing() -> bool:
        return await info(bus) == (0, 0)

    await until(nothing)


async def test_a_single_slot(bus: Bus) -> None:
    await provision(bus)
    await fill(bus, 5)
    worker = Worker(bus, slots=1)
    async with running(worker):
        for n in range(5):
            await until(lambda: worker.got)
            assert worker.numbers == [n]
            assert await info(bus) == (4 - n, 1)
            worker.ack()


async def test_place(bus: Bus) -> None:
    await provision(bus)
    await fill(bus, 2)
    worker = Worker(bus, slots=2)
    async with running(worker):
        await until(lambda: len(worker.got) == 2)
        places = [place_of(message) for message in worker.got]
        assert [place[:3] for place in places] == [("WORK", 1, 1), ("WORK", 1, 2)]
        assert [place.pending for place in places] == [1, 0]
        worker.consumer.nak(worker.got[0])
        await until(lambda: len(worker.got) == 3)
        assert place_of(worker.got[2])[:3] == ("WORK", 2, 1)


def test_place_behind_a_domain_and_an_account() -> None:
    class Delivered:
        reply = "$JS.ACK.hub.ACCHASH.WORK.agent=work.3.17.9.1700000000000000000.5.token"

    assert place_of(Delivered()) == ("WORK", 3, 17, 1700000000000000000, 5)  # type: ignore[arg-type]


async def test_nak_with_a_delay(bus: Bus) -> None:
    await provision(bus)
    await fill(bus, 1)
    worker = Worker(bus, slots=1)
    async with running(worker):
        await until(lambda: worker.got)
        began = asyncio.get_running_loop().time()
        worker.consumer.nak(worker.got.pop(), 0.3)
        await until(lambda: worker.got)
        assert 0.25 < asyncio.get_running_loop().time() - began < 2


async def test_what_is_held_is_not_delivered_again(bus: Bus) -> None:
    await provision(bus, ack_wait=1)
    await fill(bus, 3)
    worker, rival = Worker(bus, slots=3), Worker(bus, slots=3)
    async with running(worker):
        await until(lambda: len(worker.got) == 3)
        worker.consumer.release(worker.got[0])  # its slot is free, the message is not
        async with running(rival):
            began = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() > began + 2.5)
            assert rival.got == []
            assert len(worker.got) == 3
            worker.ack()
            await settled(bus)


async def test_two_share(bus: Bus) -> None:
    await provision(bus)
    one, two = Worker(bus, slots=2), Worker(bus, slots=2)
    async with running(one), running(two):
        await fill(bus, 40)
        total = 0
        while total < 40:
            await until(lambda: one.got or two.got)
            total += len(one.got) + len(two.got)
            one.ack()
            two.ack()
        assert total == 40
        await settled(bus)


async def test_stop_gives_everything_back_at_once(bus: Bus) -> None:
    await provision(bus)
    await fill(bus, 30)
    worker, heir = Worker(bus, slots=10), Worker(bus, slots=30)
    async with running(worker):
        await until(lambda: len(worker.got) == 10)
    for message in worker.got:
        worker.consumer.nak(message)
    began = asyncio.get_running_loop().time()
    async with running(heir):
        await until(lambda: len(heir.got) == 30)
        assert asyncio.get_running_loop().time() - began < 3


async def test_stop_under_fire_loses_nothing(bus: Bus) -> None:
    """What the server sends while a consumer stops goes to another at once, not after the ack wait."""
    await provision(bus)
    numbers: list[int] = []
    feeding = asyncio.create_task(fill(bus, 300))
    for _ in range(10):
        worker = Worker(bus, slots=8)
        async with running(worker):
            await until(partial(len, worker.got))
        numbers += worker.numbers
        worker.ack()
    await feeding
    heir = Worker(bus, slots=300)
    async with running(heir):
        await until(lambda: len(set(numbers + heir.numbers)) == 300, 3)
        assert sorted(numbers + heir.numbers) == list(range(300))  # and nothing twice
        heir.ack()
        await settled(bus)


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_it_survives_restarts_of_the_server(own_server: NatsServer, bus: Bus, how: str) -> None:
    await provision(bus, ack_wait=1)
    await fill(bus, 10)
    worker = Worker(bus, slots=4)
    seen: set[int] = set()
    async with running(worker) as task:
        await until(lambda: len(worker.got) == 4)
        getattr(own_server, how)()
        await until(lambda: not bus.connected)
        seen |= set(worker.numbers[:2])
        worker.ack(2)  # while nobody listens
        own_server.start()
        await bus.until_connected(5)
        await fill(bus, 10, start=10)
        while len(seen) < 20:
            await until(lambda: worker.got)
            seen |= set(worker.numbers)
            worker.ack()
        await settled(bus)
        assert not task.done()


async def test_it_begins_again_when_the_server_goes_meanwhile(own_server: NatsServer, bus: Bus) -> None:
    await provision(bus)
    await fill(bus, 3)
    worker = Worker(bus, slots=4)
    async with running(worker) as task:
        await asyncio.sleep(0)
        assert bus._mailbox._waiting  # its first look is on its way
        own_server.kill()
        own_server.start()
        await until(lambda: len(worker.got) == 3, 15)
        assert not task.done()


async def test_it_asks_again_when_the_server_is_silent(bus: Bus) -> None:
    """A pull request that was lost is noticed by the missing heartbeat."""
    await provision(bus)
    worker = Worker(bus, slots=1, heartbeat=0.2)
    async with running(worker):
        await until(lambda: worker.consumer._asked == 1)
        own = worker.consumer._next
        worker.consumer._next = "nowhere.at.all"
        worker.consumer._asked = 0
        worker.consumer._wake.set()
        await until(lambda: worker.consumer._asked == 0)  # refused by 503
        worker.consumer._next = own
        await fill(bus, 1)
        await until(lambda: worker.got, 5)
        assert worker.numbers == [0]


async def test_requests_that_the_server_has_not_forgotten_fill_no_more_than_the_slots(bus: Bus) -> None:
    """After a reconnect both the new requests and those from before may be answered."""
    await provision(bus)
    worker = Worker(bus, slots=2)
    most, seen = 0, 0
    async with running(worker):
        await until(lambda: worker.consumer._asked == 2)
        worker.consumer._start_over()
        await until(lambda: worker.consumer._asked == 2)
        await fill(bus, 8)
        while seen < 8:
            await until(lambda: worker.got)
            await bus.flush()  # all that is on its way has come
            most, seen = max(most, len(worker.got)), seen + len(worker.got)
            worker.ack()
        assert most <= 2
        await settled(bus)


async def test_without_a_consumer_it_ends_at_once(bus: Bus) -> None:
    with pytest.raises(NotProvisionedError, match=r"WORK\.agent=work"):
        await Worker(bus, slots=1).consumer.run()


@pytest.mark.parametrize("idle", [True, False])
async def test_a_deleted_consumer_ends_it(bus: Bus, idle: bool) -> None:
    await provision(bus)
    worker = Worker(bus, slots=1)
    async with running(worker) as task:
        if not idle:  # all slots are taken, so that no request is open that the server could answer
            await fill(bus, 1)
            await until(lambda: worker.got)
        await until(lambda: worker.consumer._asked == int(idle))
        await bus.flush()
        await bus.api(f"CONSUMER.DELETE.WORK.{SPEC.name}")
        worker.ack()
        with pytest.raises(NotProvisionedError, match="agent=work"):
            await asyncio.wait_for(asyncio.shield(task), 3)


async def test_cancelled_it_leaves_nothing(bus: Bus) -> None:
    await provision(bus)
    before = asyncio.all_tasks()
    async with running(Worker(bus, slots=2)):
        await until(lambda: len(bus._nc._subs) == 2)
    await until(lambda: asyncio.all_tasks() == before, 1)
    assert len(bus._nc._subs) == 1
    assert bus._on_reconnect == []
