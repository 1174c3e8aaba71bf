"""The world in which faults happen: servers, a network, a supervised team, and people who give it work."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Self, TypeVar

import psutil

from natterjack import BrokerError, PeerError, Server, TeamClient, connect
from natterjack.bus import Bus
from natterjack.service import discover
from natterjack.subjects import OPERATOR

from .audit import Audit, event_id, run_of
from .broker import Broker
from .proxy import Proxy
from .pulse import Pulse
from .supervised import REPLICAS, Supervised, left_behind
from .workload import clock, wisdom

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that one who asks waits at most."""
RATE = 25.0
"""Events in a second, about, half as many asks, and a tenth as many runs that sleep and wait."""
BEHIND = 3.0
"""Seconds for which one server of a cluster may be behind another."""
LIMIT = 30.0
"""Seconds within which the team is healthy again, without help."""


class World:
    """A team with its servers and its network.

    Args:
        folder: For stores, logs and effects.
        broker: The servers; started here.

    Attributes:
        bus: The auditor's connection, with no proxy between.
        team: The connection of those who emit and ask; through the proxy, like the agents'.
        proxies: The network, one for each server.
        supervisors: Who keeps the team running; one, if nobody makes a mistake.
        audit: What was accepted, and what came of it.
        asked: How many asks were answered, and how many failed, by error.
    """

    bus: Bus
    team: TeamClient
    audit: Audit

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.folder, self.broker = folder, broker
        self.proxies: list[Proxy] = []
        self.supervisors: list[Supervised] = []
        self.asked = Counter[str]()
        self._usual: Counter[tuple[str, int]] = Counter()
        self._durables: set[str] = set()
        self._number = 0
        self._pulse = Pulse()
        self._locks: dict[str, asyncio.Lock] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._begin()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _begin(self) -> None:
        enter = self._stack.enter_async_context
        await enter(self._pulse)
        self.broker.start()
        self._stack.callback(self.broker.kill)
        for node in self.broker.nodes:
            self.proxies.append(await enter(Proxy(lambda node=node: node.port)))  # type: ignore[misc]
        self.bus = await Bus.connect(Server(self.broker.url), principal=OPERATOR)
        self._stack.push_async_callback(self.bus.close)
        await self.stubborn(lambda: self.bus.api("INFO"))
        supervisor = self.add_supervisor()
        supervisor.start()
        await supervisor.ready()
        if self.broker.size > 1:
            await self._replicate()
        self.team = await enter(connect(self.url))
        self.audit = Audit(self.bus, self.folder)
        await self.healthy(time.monotonic())
        self._usual, self._durables = self._interest(), await self._consumers()

    async def _replicate(self) -> None:
        for name in await self.bus.streams(">"):
            config = (await self.bus.api(f"STREAM.INFO.{name}"))["config"]
            await self.bus.api(f"STREAM.UPDATE.{name}", config | {"num_replicas": self.broker.size})

    @property
    def url(self) -> str:
        """The servers, each through its proxy."""
        return ",".join(f"nats://{proxy.host}:{proxy.port}" for proxy in self.proxies)

    def add_supervisor(self) -> Supervised:
        """Return a further supervisor of the same team, not yet started, which is killed at the end."""
        log = self.folder / f"up{len(self.supervisors)}.log"
        supervisor = Supervised(self.url, self.folder, log)
        self.supervisors.append(supervisor)
        self._stack.callback(supervisor.kill)
        return supervisor

    async def end(self) -> None:
        """End the team in order, and see that nothing of it is left."""
        for supervisor in self.supervisors:
            assert await asyncio.to_thread(supervisor.stop) == 0, supervisor.output()
        assert left_behind(self.folder) == []

    # What faults use

    @asynccontextmanager
    async def alone(self, *what: str) -> AsyncIterator[None]:
        """Keep other faults from touching the same things meanwhile."""
        async with AsyncExitStack() as stack:
            for name in sorted(what):
                await stack.enter_async_context(self._locks.setdefault(name, asyncio.Lock()))
            yield

    def signal(self, label: str, number: signal.Signals) -> psutil.Process | None:
        """Send a signal to an agent's process, and return it; None if it is down at the moment."""
        process = self.supervisors[0].agents().get(label)
        return process if process is not None and send(process, number) else None

    async def stubborn(self, act: Callable[[], Awaitable[T]]) -> T:
        """Do something of an operator's, again and again while it fails, as the servers are away."""
        async with asyncio.timeout(4 * LIMIT):
            while True:
                try:
                    return await act()
                except BrokerError:
                    await clock.sleep(0.1)

    # Work

    @asynccontextmanager
    async def load(self, random: Random) -> AsyncIterator[None]:
        """Give the team work meanwhile, and wait at the end until all of it was accepted, or was not."""
        async with asyncio.TaskGroup() as group:
            over = asyncio.Event()
            group.create_task(self._work(group, over, self.emit, RATE, Random(random.random())))
            group.create_task(self._work(group, over, self.ask, RATE / 2, Random(random.random())))
            group.create_task(self._work(group, over, self.emit_slow, RATE / 10, Random(random.random())))
            try:
                yield
            finally:
                over.set()

    async def _work(
        self, group: asyncio.TaskGroup, over: asyncio.Event, act: Callable[[], Any], rate: float, random: Random
    ) -> None:
        while not over.is_set():
            group.create_task(act())
            await clock.sleep(random.expovariate(rate))

    def next_number(self) -> int:
        """Return a number that nobody has used."""
        self._number += 1
        return self._number

    async def emit(self, number: int = 0, **data: Any) -> None:
        """Emit one more event; what the server acknowledges is accepted."""
        number = number or self.next_number()
        if await self._accepted("work.due", number, **data):
            self.audit.accepted.add(number)

    async def emit_slow(self) -> None:
        """Begin a run that sleeps, and ring its bell at some time."""
        number, began = self.next_number(), time.monotonic()
        if not await self._accepted("work.slow", number):
            return
        self.audit.slow[number] = False
        await clock.sleep(number % 4)
        if await self._accepted("work.bell", number):
            self.audit.slow[number] = time.monotonic() - began < PATIENCE

    async def _accepted(self, event: str, number: int, **data: Any) -> bool:
        try:
            await self.team.event_bus.emit(event, {"n": number, **data}, id=event_id(number, event))
        except BrokerError:
            return False  # nobody promised anything
        return True

    async def emit_odd(self, data: bytes, headers: Mapping[str, str], end: str) -> str:
        """Store an event for the victim as a stranger would; return its run, which must end so, if it is accepted."""
        id = f"odd-{self.next_number()}"
        run = run_of("victim", "work.odd", id, self.bus.author)
        self.audit.may_end[run] = end
        about = {name: value.replace("{id}", id) for name, value in headers.items()}
        try:
            await self.team.bus.store("events.work.odd", data.replace(b"{id}", id.encode()), headers=about, id=id)
        except BrokerError:
            return ""
        self.audit.must_end.add(run)
        return run

    async def ask(self) -> None:
        """Ask the oracle something; it answers right or fails in time, but for what this process itself was late."""
        number, began, late = self.next_number(), time.monotonic(), self._pulse.late
        try:
            said = await self.team.ask_peer("oracle", str(number), timeout=PATIENCE)
        except (PeerError, BrokerError) as error:
            self.asked[type(error).__name__] += 1
        else:
            self.asked["answered"] += 1
            if said != wisdom(number):
                self.audit.problems.append(f"asked about {number}, the oracle said {said!r}")
        took, late = time.monotonic() - began, self._pulse.late - late
        if took - late > PATIENCE + 1:
            self.audit.problems.append(f"an ask took {took:.1f} s of {PATIENCE:g} s, {late:.1f} s of them by our fault")

    # Health

    async def healthy(self, since: float) -> float:
        """Wait until the team is healthy by itself, and return how many seconds that took since a moment."""
        while ailment := await self._ailment():
            if time.monotonic() - since > LIMIT:
                msg = f"not healthy after {LIMIT:g} s: {ailment}\n{self.supervisors[0].output()[-4000:]}"
                raise AssertionError(msg)
            await clock.sleep(0.05)
        return time.monotonic() - since

    async def _ailment(self) -> str:
        """Return the first thing that is not as it should be."""
        wanted = Counter({name: count * len(self.supervisors) for name, count in REPLICAS.items()})
        running = Counter(label.partition("/")[0] for each in self.supervisors for label in each.agents())
        if running != wanted:
            return f"processes run: {dict(running)}"
        try:
            if (found := Counter(info.name for info in await discover(self.bus, REPLICAS))) != wanted:
                return f"agents listen: {dict(found)}"
            if busy := [told for stream in ("EVENTS", "INBOX", "WAKES") for told in await self._unfinished(stream)]:
                return f"work is left: {', '.join(busy)}"
            if self._durables and (strange := await self._consumers() ^ self._durables):
                return f"consumers: {strange}"
            await self.team.ask_peer("oracle", "1", timeout=2.0)
            if self._usual and (interest := self._interest()) != self._usual:
                return f"more interest than usual: {interest - self._usual}, less: {self._usual - interest}"
        except (BrokerError, PeerError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return ""

    async def _unfinished(self, stream: str) -> list[str]:
        return [
            f"{info['name']} {info['num_pending']}+{info['num_ack_pending']}"
            for info in await self.bus.consumer_infos(stream)
            if info["num_pending"] or info["num_ack_pending"]
        ]

    async def _consumers(self) -> set[str]:
        streams = await self.bus.streams(">")
        return {f"{stream} {name}" for stream in streams for name in await self.bus.consumers(stream)}

    def _interest(self) -> Counter[tuple[str, int]]:
        """Return how many connections there are of each name and number of subscriptions."""
        found = self.broker.connections()
        return Counter((each.get("name", "?"), len(each.get("subscriptions_list", ()))) for each in found)

    # What must hold then

    async def check(self) -> None:
        """See that all that was accepted was done, once, and that all replicas of the context are equal."""
        began = time.monotonic()
        while wrong := await self.audit.check():  # a replica of a stream that is read may be behind for a moment [R8]
            assert time.monotonic() - began < BEHIND, wrong
            await clock.sleep(0.1)
        await self._check_replicas()
        known = self.team.context.keys()
        own = {name: self.team.context.get(name) for name in known}
        assert self.audit.same(own), "the operator's replica of the context differs from the bucket"
        expected = sum(REPLICAS.values()) * len(self.supervisors) + len(self.supervisors)
        assert len(left := left_behind(self.folder)) == expected, left

    async def _check_replicas(self) -> None:
        """Ask every process for the digest of its context, until each has told that of the bucket."""
        missing = {process.pid for each in self.supervisors for process in each.agents().values()}
        began, different = time.monotonic(), ""
        while missing:
            assert time.monotonic() - began < LIMIT, f"replicas of the context differ: {missing} {different}"
            for name in REPLICAS:
                pid, told = (await self.team.ask_peer(name, "context", timeout=PATIENCE)).split()
                if told == self.audit.digest:
                    missing.discard(int(pid))
                else:
                    different = f"{name} {pid}"


def send(process: psutil.Process, number: signal.Signals) -> bool:
    """Send a signal to a process; returns whether it is still there."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True
