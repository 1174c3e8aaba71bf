"""The continuous pull under everything at once: every message is handled, none strands, and no worker holds too many.

Workers come and go, the server is killed and comes back, connections break, messages are given back or kept for long,
in an order that a seed decides.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from typing import Final

import pytest

from natterjack.bus import Bus, Consumer, Message
from natterjack.clock import Clock
from natterjack.errors import BrokerError
from natterjack.server import Server
from natterjack.specs import ConsumerSpec
from natterjack.testing import NatsServer, until

SPEC: Final = ConsumerSpec("WORK", "agent=work", "work.>")
STREAM: Final = {"name": "WORK", "subjects": ["work.>"], "allow_direct": True}
CONFIG: Final = {"durable_name": SPEC.name, "ack_policy": "explicit", "ack_wait": 10**9, "max_deliver": -1}
STEPS: Final = 25
REPLICAS: Final = 3

clock = Clock()


class Worker:
    """A replica: it takes what it gets, acks some, gives some back, keeps some for longer."""

    def __init__(self, bus: Bus, slots: int, rng: random.Random, handled: set[bytes]) -> None:
        self.bus, self.slots, self.handled = bus, slots, handled
        self.most = 0
        self.calm = False
        self.consumer = Consumer(bus, SPEC, self._take, slots=slots, heartbeat=0.5)
        self._rng = rng
        self._held: set[asyncio.Task[None]] = set()
        self._pulling = asyncio.create_task(self.consumer.run())

    def _take(self, message: Message) -> None:
        task = asyncio.create_task(self._handle(message))
        self._held.add(task)
        task.add_done_callback(self._held.discard)
        self.most = max(self.most, len(self._held))

    async def _handle(self, message: Message) -> None:
        try:
            await clock.sleep(0 if self.calm else self._rng.choice([0, 0, 0.001, 0.05, 0.4, 1.5]))
        except asyncio.CancelledError:
            self.consumer.nak(message)
            raise
        if self._rng.random() < 0.2:
            self.consumer.nak(message, self._rng.choice([0, 0.1]))
        else:
            self.handled.add(message.data)
            self.consumer.ack(message)

    async def stop(self) -> None:
        """Stop as an agent does: pull no more, give back what is held."""
        self._pulling.cancel()
        await asyncio.gather(self._pulling, return_exceptions=True)
        held = list(self._held)
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)

    async def crash(self) -> None:
        """End as a killed process does: the server hears nothing of what was held."""
        await self.bus.close()
        await self.stop()


class Scene:
    """A server, some workers, and a publisher."""

    def __init__(self, server: NatsServer, publisher: Bus, rng: random.Random, stack: AsyncExitStack) -> None:
        self.server, self.publisher, self.rng, self.stack = server, publisher, rng, stack
        self.workers: list[Worker] = []
        self.handled: set[bytes] = set()
        self.sent: set[bytes] = set()
        self.most: list[tuple[int, int]] = []

    async def hire(self) -> None:
        if len(self.workers) < REPLICAS:
            bus = await Bus.connect(Server(self.server.url), principal="agent")
            self.stack.push_async_callback(bus.close)
            self.workers.append(Worker(bus, self.rng.choice([1, 2, 7]), self.rng, self.handled))

    async def dismiss(self) -> None:
        if self.workers:
            worker = self.workers.pop(self.rng.randrange(len(self.workers)))
            await (worker.stop() if self.rng.random() < 0.7 else worker.crash())
            self.most.append((worker.most, worker.slots))

    async def publish(self) -> None:
        start = len(self.sent)
        data = {b"%d" % number for number in range(start, start + self.rng.choice([1, 5, 40]))}
        await asyncio.gather(*(self.publisher.store("work.x", each) for each in data))
        self.sent |= data

    async def kill(self) -> None:
        getattr(self.server, self.rng.choice(["kill", "stop"]))()
        await clock.sleep(self.rng.choice([0, 0.1]))
        self.server.start()

    async def cut(self) -> None:
        if self.workers:
            await self.rng.choice(self.workers).bus._nc.force_reconnect()

    async def wait(self) -> None:
        await clock.sleep(self.rng.choice([0, 0.01, 0.3]))

    async def settled(self) -> bool:
        """Tell whether nothing waits, and nothing is out."""
        try:
            found = await self.publisher.api(f"CONSUMER.INFO.WORK.{SPEC.name}")
        except BrokerError:
            return False
        return (found["num_pending"], found["num_ack_pending"]) == (0, 0)


@pytest.mark.open_mode(reason="on subjects of which no right speaks")
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(2, 60))])
async def test_whatever_happens_every_message_is_handled(
    own_server: NatsServer, stack: AsyncExitStack, seed: int
) -> None:
    publisher = await Bus.connect(Server(own_server.url), principal="publisher")
    stack.push_async_callback(publisher.close)
    await publisher.api("STREAM.CREATE.WORK", STREAM)
    await publisher.api(f"CONSUMER.DURABLE.CREATE.WORK.{SPEC.name}", {"stream_name": "WORK", "config": CONFIG})
    scene = Scene(own_server, publisher, random.Random(seed), stack)
    steps = [scene.publish] * 6 + [scene.hire] * 5 + [scene.dismiss] * 3 + [scene.cut] * 3 + [scene.wait] * 6
    steps += [scene.kill] * 2
    for _ in range(STEPS):
        await scene.rng.choice(steps)()
    await scene.publish()
    await scene.hire()
    for worker in scene.workers:  # a single one with a single slot would be busy for long with what is left
        worker.calm = True
    await until(lambda: scene.handled == scene.sent, 30)
    await until(scene.settled, 30)
    while scene.workers:
        await scene.dismiss()
    assert all(most <= slots for most, slots in scene.most), scene.most
