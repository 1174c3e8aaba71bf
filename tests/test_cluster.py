"""A secured cluster under load, while its servers die, are cut off and are restarted one after another."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from natterjack import BrokerError, Bus, ConnectError, Message, NatterjackError, Server, TeamClient, codec, connect
from natterjack.testing import ScriptedAgent, until

from .chaos.proxy import Proxy
from .test_brokerconf import Cluster, secured, team

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

APART = 2
"""The server that can be cut off: the last of three."""
ROUTES = 4
"""Between two servers: one for the system's account, and three for all others."""
Fault = Callable[["World"], Awaitable[None]]


@dataclass
class World:
    """The cluster, the team on it, and how long nothing was acknowledged."""

    servers: Cluster
    proxies: list[Proxy]
    operator: Bus
    agents: dict[str, ScriptedAgent]
    acknowledged: list[int] = field(default_factory=list)
    stall: float = 0.0
    stopping: bool = False

    async def emit(self, client: TeamClient) -> None:
        """Emit one event after another, until it shall stop."""
        number, before = 0, time.monotonic()
        while not self.stopping:
            try:
                await client.event_bus.emit("work.due", {"n": number}, id=f"due-{number}")
            except BrokerError:  # it has given up, and says so: who emits goes on with the same id
                continue
            self.acknowledged.append(number)
            self.stall = max(self.stall, time.monotonic() - before)
            number, before = number + 1, time.monotonic()

    async def more(self, count: int = 50) -> None:
        """Return once so many more are acknowledged."""
        wanted = len(self.acknowledged) + count
        await until(lambda: len(self.acknowledged) >= wanted, timeout=60)

    async def leader(self) -> int:
        """Return which server leads the events.

        Raises:
            NatterjackError: None does at this moment.
        """
        info = await self.operator.api("STREAM.INFO.EVENTS")
        return int(info["cluster"].get("leader", "n-1")[1:])

    async def leads_apart(self) -> bool:
        """Tell whether the server that can be cut off leads the events, and ask for it.

        Before the load: a server that is a message behind gets no votes, and the leader goes on.
        """
        try:
            apart = await self.leader() == APART
            if not apart:
                wanted = {"placement": {"preferred": f"n{APART}"}}
                await self.operator.api("STREAM.LEADER.STEPDOWN.EVENTS", wanted)
        except NatterjackError:  # one is being elected
            return False
        return apart

    async def whole(self) -> bool:
        """Tell whether each server has all events."""
        try:
            cluster = (await self.operator.api("STREAM.INFO.EVENTS", timeout=2.0))["cluster"]
        except NatterjackError:
            return False
        others = cluster.get("replicas", ())  # a server that has just come back knows of none
        return bool(cluster.get("leader")) and len(others) == 2 and all(each["current"] for each in others)

    async def stored(self) -> tuple[Counter[int], Counter[int]]:
        """Return how often each event is stored, and each result."""
        found: dict[str, Counter[int]] = {"due": Counter(), "done": Counter()}
        async for message in self.operator.read("EVENTS", ">"):
            found[subject_of(message).rpartition(".")[2]][codec.decode(message.data)["n"]] += 1
        return found["due"], found["done"]

    async def journaled(self) -> Counter[str]:
        """Return how often each run has ended."""
        read = self.operator.read("JOURNAL", "journal.>")
        entries = [(subject_of(message), codec.decode(message.data)) async for message in read]
        return Counter(subject.rpartition(".")[0] for subject, entry in entries if entry["kind"] == "done")

    async def again(self, at: int) -> None:
        """Start a server that has ended, and wait until it has all."""
        self.servers.processes[at].wait(60)
        self.servers.processes[at] = self.servers.start(at)
        await until(self.whole, timeout=60)


def subject_of(message: Message) -> str:
    """Return where a message is stored."""
    return (message.headers or {})["Nats-Subject"]


class Apart(Cluster):
    """One of its servers has its routes over a network that can be cut, and tells no other way."""

    def __init__(self, folder: Path, proxies: list[Proxy]) -> None:
        super().__init__(folder)
        self._proxies = proxies
        path = folder / "cluster.conf"
        path.write_text(path.read_text().replace("cluster {\n", "cluster {\n    advertise: $ADVERTISE\n"))

    def environment(self, at: int) -> dict[str, str]:
        found = super().environment(at)
        for n, proxy in enumerate(self._proxies):
            if APART in (at, n) and n != at:
                found[f"ROUTE_{n + 1}"] = f"nats://route:hush@127.0.0.1:{proxy.port}"
        return {**found, "ADVERTISE": f"127.0.0.1:{self._proxies[at].port}"}


async def routed(servers: Cluster) -> bool:
    """Tell whether the first two servers have all their routes: they take none then that the third tells of."""
    try:
        system = await Bus.connect(Server(servers.url, keys=str(servers.folder / "keys")), principal="sys")
    except ConnectError:
        return False
    try:
        told = await system.gather("$SYS.REQ.SERVER.PING.ROUTEZ", window=0.2)
    finally:
        await system.close()
    return [codec.decode(message.data)["data"]["num_routes"] for message in told] == [ROUTES] * APART


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    ports: list[int] = []
    proxies = [Proxy(lambda at=at: ports[at]) for at in range(3)]  # type: ignore[misc]
    async with proxies[0], proxies[1], proxies[2]:
        servers = Apart(folder, proxies)
        ports += servers.ports["CLUSTER"]
        secured(folder, servers.url)
        with servers.running(APART):
            await until(lambda: routed(servers), timeout=30)
            servers.processes.append(servers.start(APART))
            async with team(servers) as (operator, agents):
                agents["ann"]._results = lambda event: event.data
                yield World(servers, proxies, operator, agents)


async def kill_the_leader(world: World) -> None:
    at = await world.leader()
    world.servers.processes[at].kill()
    await world.more()
    await world.again(at)


async def kill_a_follower(world: World) -> None:
    at = (await world.leader() + 1) % 3
    world.servers.processes[at].kill()
    await world.more()
    await world.again(at)


async def cut_off_the_leader(world: World) -> None:
    """The emitting client is at that server, and goes to another."""
    assert sum(proxy.links for proxy in world.proxies) == 2 * ROUTES  # the others have ways of their own to each other
    for proxy in world.proxies:
        proxy.freeze()
    await world.more()

    async def behind() -> bool:
        return not await world.whole()

    await until(behind, timeout=60)
    for proxy in world.proxies:
        proxy.thaw()
    await until(world.whole, timeout=60)


async def restart_one_after_another(world: World) -> None:
    for at in range(3):
        world.servers.processes[at].send_signal(signal.SIGUSR2)  # lame duck: it sends its clients away, then ends
        await asyncio.to_thread(world.servers.processes[at].wait, 60)
        await world.again(at)
        await world.more()


FAULTS = (kill_the_leader, kill_a_follower, cut_off_the_leader, restart_one_after_another)


@pytest.mark.parametrize("fault", FAULTS)
async def test_nothing_is_lost_and_nothing_done_twice(
    tmp_path: Path, fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world(tmp_path) as found:
        near = replace(found.operator.server, url=found.servers.url.split(",")[APART])  # it hears of the others there
        await until(found.leads_apart, timeout=60)
        async with connect(near) as client, asyncio.TaskGroup() as tasks:
            tasks.create_task(found.emit(client))
            await found.more()
            quiet, found.stall = found.stall, 0.0
            await fault(found)
            await found.more()
            found.stopping = True

        async def ended() -> bool:
            return len(await found.journaled()) >= 2 * len(found.acknowledged)

        await until(ended, timeout=120)
        once = dict.fromkeys(found.acknowledged, 1)
        assert await found.stored() == (once, once)
        assert set((await found.journaled()).values()) == {1}
    with capsys.disabled():
        longest = f"longest without an acknowledgement {found.stall:.2f} s, before {quiet:.2f} s"
        sys.stdout.write(f"\n{fault.__name__}: {len(found.acknowledged)} events; {longest}\n")
