"""The broker's configurations: each is read by the real server, and a team runs on it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from natterjack import Bus, ConnectError, NatterjackError, Server, Team, connect
from natterjack.broker import find_server
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.runtime import start_agent
from natterjack.testing import ScriptedAgent, until
from natterjack_permissions.authority import authority
from natterjack_permissions.broker import server as server_conf
from natterjack_permissions.secure import write

from .chaos.broker import free_ports

CONFIGURATIONS = Path(__file__).parents[1] / "brokerconf"
KIND = "natterjack.testing.agents:ScriptedAgent"
TEAM = Team.model_validate(
    {
        "external": ["work.due"],
        "agents": {
            "ann": {"kind": KIND, "on": ["work.due"], "result_event": "work.done", "asks": ["ben"]},
            "ben": {"kind": KIND, "on": ["work.done"]},
        },
    }
)


def test_what_secure_writes_is_what_stands_here() -> None:
    assert (CONFIGURATIONS / "secured.conf").read_text() == server_conf("nats://127.0.0.1:4222")


class Cluster:
    """Three servers with `cluster.conf`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "cluster.conf").write_text((CONFIGURATIONS / "cluster.conf").read_text())
        ports = free_ports(6)
        self._clients, self._routes = ports[:3], ports[3:]
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return ",".join(f"nats://127.0.0.1:{port}" for port in self._clients)

    def environment(self, at: int) -> dict[str, str]:
        routes = {f"ROUTE_{n + 1}": f"nats://route:hush@127.0.0.1:{port}" for n, port in enumerate(self._routes)}
        own = {"LISTEN": f"127.0.0.1:{self._clients[at]}", "CLUSTER": f"127.0.0.1:{self._routes[at]}"}
        return {**os.environ, "NAME": f"n{at}", "STORE": str(self.folder / f"n{at}"), "SECRET": "hush", **own, **routes}

    def start(self, at: int) -> subprocess.Popen[bytes]:
        command = [str(find_server()), "-c", "cluster.conf", "-l", str(self.folder / f"n{at}.log")]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment(at), stdin=subprocess.DEVNULL)

    @contextmanager
    def running(self) -> Iterator[Cluster]:
        """All three, until the end."""
        self.processes = [self.start(at) for at in range(3)]
        try:
            yield self
        finally:
            for process in self.processes:
                process.kill()
                process.wait(20)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """The three servers, and the keys of the team in `keys`."""
    found = Cluster(folder)
    write(authority(TEAM), folder, found.url.split(",")[0])
    with found.running():
        yield found


@asynccontextmanager
async def team(cluster: Cluster) -> AsyncIterator[tuple[Bus, dict[str, ScriptedAgent]]]:
    """The team on it, once the servers have agreed on who leads."""
    login, plugins = Server(cluster.url, keys=str(cluster.folder / "keys")), Plugins.load()

    async def joined() -> Bus | None:
        try:
            bus = await Bus.connect(login, principal="operator")
        except ConnectError:
            return None
        try:
            await bus.api("INFO", timeout=1.0)
        except NatterjackError:
            await bus.close()
            return None
        return bus

    operator = await until(joined, timeout=30)
    assert operator is not None
    async with AsyncExitStack() as stack:
        stack.push_async_callback(operator.close)
        await provision(operator, TEAM, plugins)
        agents = {}
        for name in TEAM.agents:
            host, context = await start_agent(name, login, plugins=plugins)
            stack.push_async_callback(context.close)
            stack.push_async_callback(host.stop, 5.0)
            agent = host._agent
            assert isinstance(agent, ScriptedAgent)
            agents[name] = agent
        yield operator, agents


@pytest.mark.full
@pytest.mark.timeout(180)
async def test_a_secured_cluster_outlives_any_one_of_its_servers(tmp_path: Path) -> None:
    with cluster(tmp_path) as servers:
        async with team(servers) as (operator, agents), connect(operator.server) as client:
            for at in range(3):
                await client.event_bus.emit("work.due", {"n": at})
                await agents["ben"].handled(at + 1, timeout=30)
                servers.processes[at].kill()
                servers.processes[at].wait(20)
                await operator.store("events.work.due", b'{"n": "while it is down"}', budget=30.0)
                servers.processes[at] = servers.start(at)

                async def current() -> bool:
                    try:
                        info = await operator.api("STREAM.INFO.EVENTS", timeout=2.0)
                    except NatterjackError:
                        return False
                    return all(each["current"] for each in info["cluster"]["replicas"])

                await until(current, timeout=30)
            await agents["ben"].handled(6, timeout=60)
            info = await operator.api("STREAM.INFO.EVENTS")
            assert info["config"]["num_replicas"] == 3
            assert info["state"]["messages"] == 12  # each due event, and each that is done, once
            assert {event.source for event in agents["ben"].events} == {"ann"}
    logs = [(tmp_path / f"n{at}.log").read_text() for at in range(3)]
    refused = [line for log in logs for line in log.splitlines() if "Violation" in line]
    # Whether a stream is there at all is asked where nobody answers; an agent may not be told, and goes on trying.
    assert [line for line in refused if "STREAM.NAMES" not in line] == []


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGURATIONS.glob("*.conf")))
def test_the_server_reads_each(tmp_path: Path, name: str) -> None:
    write(authority(TEAM), tmp_path, "nats://127.0.0.1:4222")
    (tmp_path / name).write_text((CONFIGURATIONS / name).read_text())
    command = [str(find_server()), "-t", "-c", name]
    environment = Cluster(tmp_path).environment(0)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
