"""The broker's configurations: each is read by the real server, and a team runs on it."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from natterjack import Bus, ConnectError, NatterjackError, NotProvisionedError, Server, Team, connect
from natterjack.broker import find_server
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.record import stored_team
from natterjack.runtime import start_agent
from natterjack.testing import ScriptedAgent, free_ports, until
from natterjack_permissions.authority import authority
from natterjack_permissions.broker import server as server_conf
from natterjack_permissions.mint import Mint
from natterjack_permissions.plan import Mode, minted, write
from natterjack_permissions.pushes import push
from natterjack_permissions.tls import Certificates

CONFIGURATIONS = Path(__file__).parents[1] / "brokerconf"
LISTENERS = ("LISTEN", "CLUSTER", "LEAF", "WEBSOCKET", "MONITOR")
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


def secured(folder: Path, url: str, mode: Mode = Mode.STATIC) -> None:
    """Write what `secure --tls` would."""
    found = authority(TEAM)
    certificates = Certificates(folder, found.principals)
    if mode is Mode.STATIC:
        write(found, folder, url, tls=True)
    else:
        minted(found, folder, url, (), certificates).write()
    certificates.write()


class Cluster:
    """Three servers with `cluster.conf`, each started in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "cluster.conf").write_text((CONFIGURATIONS / "cluster.conf").read_text())
        ports = iter(free_ports(3 * len(LISTENERS)))
        self.ports = {name: [next(ports) for _ in range(3)] for name in LISTENERS}
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return ",".join(f"nats://127.0.0.1:{port}" for port in self.ports["LISTEN"])

    def environment(self, at: int) -> dict[str, str]:
        routes = {
            f"ROUTE_{n + 1}": f"nats://route:hush@127.0.0.1:{port}" for n, port in enumerate(self.ports["CLUSTER"])
        }
        own = {name: f"127.0.0.1:{ports[at]}" for name, ports in self.ports.items()}
        named = {"NAME": f"n{at}", "STORE": str(self.folder / f"n{at}"), "SECRET": "hush"}
        return {**os.environ, **named, **own, **routes}

    def start(self, at: int) -> subprocess.Popen[bytes]:
        own = self.folder / f"n{at}"
        own.mkdir(exist_ok=True)
        command = [str(find_server()), "-c", str(self.folder / "cluster.conf"), "-l", str(own.with_suffix(".log"))]
        return subprocess.Popen(command, cwd=own, env=self.environment(at), stdin=subprocess.DEVNULL)

    @contextmanager
    def running(self, size: int = 3) -> Iterator[Cluster]:
        """All three, or fewer, until the end."""
        self.processes = [self.start(at) for at in range(size)]
        try:
            yield self
        finally:
            for process in self.processes:
                process.kill()
                process.wait(20)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """The three servers, and the keys and certificates of the team in `keys`."""
    found = Cluster(folder)
    secured(folder, found.url.split(",")[0])
    with found.running():
        yield found


def edge(folder: Path, port: int, hub: int, mode: Mode = Mode.STATIC) -> dict[str, str]:
    """What the configuration of the edge is to know where ann is there."""
    keys = folder / "keys"
    if mode is Mode.STATIC:
        login = {"SEED": (keys / "ann.nk").read_text().strip()}
    else:
        login = {"CREDENTIALS": str(keys / "ann.creds")}
    return {
        **os.environ,
        **login,
        "NAME": "edge",
        "LISTEN": f"127.0.0.1:{port}",
        "HUB": f"tls://127.0.0.1:{hub}",
        "CERTIFICATE": str(keys / "ann.pem"),
        "AUTHORITIES": str(keys / "ca.crt"),
    }


async def joined(login: Server) -> Bus | None:
    """Return the operator's connection, once the servers have agreed on who leads."""
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


async def started(stack: AsyncExitStack, name: str, login: Server, plugins: Plugins) -> ScriptedAgent:
    """Start an agent, until the end."""
    host, context = await start_agent(name, login, plugins=plugins)
    stack.push_async_callback(context.close)
    stack.push_async_callback(host.stop, 5.0)
    agent = host._agent
    assert isinstance(agent, ScriptedAgent)
    return agent


async def linked(login: Server) -> bool:
    """Tell whether what is at the edge reaches the team."""
    try:
        bus = await Bus.connect(login, principal="ann")
        try:
            return bool(await stored_team(bus))
        finally:
            await bus.close()
    except (ConnectError, NotProvisionedError):
        return False


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def team(cluster: Cluster) -> AsyncIterator[tuple[Bus, dict[str, ScriptedAgent]]]:
    """The team on it, once the servers have agreed on who leads."""
    login, plugins = Server(cluster.url, keys=str(cluster.folder / "keys")), Plugins.load()
    operator = await until(partial(joined, login), timeout=30)
    assert operator is not None
    async with AsyncExitStack() as stack:
        stack.push_async_callback(operator.close)
        await provision(operator, TEAM, plugins)
        yield operator, {name: await started(stack, name, login, plugins) for name in TEAM.agents}


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
                    others = info["cluster"].get("replicas", ())  # a server that has just come back knows of none
                    return len(others) == 2 and all(each["current"] for each in others)

                await until(current, timeout=30)
            await agents["ben"].handled(6, timeout=60)
            info = await operator.api("STREAM.INFO.EVENTS")
            assert info["config"]["num_replicas"] == 3
            assert info["state"]["messages"] == 12  # each due event, and each that is done, once
            assert {event.source for event in agents["ben"].events} == {"ann"}
    logs = [(tmp_path / f"n{at}.log").read_text() for at in range(3)]
    refused = [line for log in logs for line in log.splitlines() if "Violation" in line]
    assert refused == []


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGURATIONS.glob("*.conf")))
def test_the_server_reads_each(tmp_path: Path, name: str) -> None:
    mode = Mode.OPERATOR if "operator" in name else Mode.STATIC
    secured(tmp_path, "nats://127.0.0.1:4222", mode)
    (tmp_path / name).write_text((CONFIGURATIONS / name).read_text())
    command = [str(find_server()), "-t", "-c", name]
    environment = {**Cluster(tmp_path).environment(0), **edge(tmp_path, 4223, 7422, mode)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def reached(port: int, folder: Path, sent: bytes, *, told: bool, certificate: str = "") -> bytes:
    """Return what a listener answers to a stranger, or to who has a certificate, after TLS; empty: it hangs up.

    Some have told something before.
    """
    context = ssl.create_default_context(cafile=folder / "keys/ca.crt")
    if certificate:
        context.load_cert_chain(folder / certificate)
    with closing(socket.create_connection(("127.0.0.1", port), 5)) as plain:
        if told:
            assert plain.recv(8192).startswith(b"INFO {")
        try:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                secure.sendall(sent)
                return secure.recv(8192)
        except (ssl.SSLError, ConnectionError):
            return b""


async def test_no_listener_talks_to_who_has_no_certificate(tmp_path: Path) -> None:
    http = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    nats = b"CONNECT {}\r\nPING\r\n"
    servers = Cluster(tmp_path)
    secured(tmp_path, servers.url)
    with servers.running(1):
        for name in LISTENERS:
            port, first = servers.ports[name][0], http if name in ("WEBSOCKET", "MONITOR") else nats
            await until(partial(listens, port))
            told = name in ("LISTEN", "LEAF")
            assert reached(port, tmp_path, first, told=told, certificate="keys/ann.pem"), name
            # nats-server wants none for monitoring.
            assert bool(reached(port, tmp_path, first, told=told)) == (name == "MONITOR"), name


@contextmanager
def running(configuration: str, folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """One server, until the end."""
    command = [str(find_server()), "-c", configuration, "-l", str(folder / f"{configuration}.log")]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


class Hub:
    """A server with leaf nodes, and one at the edge where ann is; each runs while its context does."""

    def __init__(self, folder: Path, mode: Mode) -> None:
        port, hub, leaf = free_ports(3)
        secured(folder, f"nats://127.0.0.1:{hub}", mode)
        leafnodes = f'leafnodes {{ listen: "127.0.0.1:{leaf}", tls {{ include "tls.conf" }} }}\n'
        (folder / "hub.conf").write_text((folder / "nats-server.conf").read_text() + leafnodes)
        self._folder, self._environment = folder, edge(folder, port, leaf, mode)
        self._leaf = "leaf.conf" if mode is Mode.STATIC else "leaf-operator.conf"
        (folder / self._leaf).write_text((CONFIGURATIONS / self._leaf).read_text())
        self.here = Server(f"nats://127.0.0.1:{hub}", keys=str(folder / "keys"))
        self.there = Server(f"nats://127.0.0.1:{port}", prefix=Server.SECURED_PREFIX)

    @asynccontextmanager
    async def provisioned(self) -> AsyncIterator[Bus]:
        """Run the hub, with the team; yields the operator's connection."""
        with running("hub.conf", self._folder, os.environ):
            operator = await until(partial(joined, self.here), timeout=30)
            assert operator is not None
            try:
                await provision(operator, TEAM, Plugins.load())
                yield operator
            finally:
                await operator.close()

    def edge(self) -> AbstractContextManager[None]:
        return running(self._leaf, self._folder, self._environment)


@pytest.mark.parametrize("mode", Mode)
async def test_an_agent_at_the_edge_is_away_for_a_while_and_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    monkeypatch.setattr("natterjack.provision.ACK_WAIT", 10**9)  # of what was on its way
    hub, plugins = Hub(tmp_path, mode), Plugins.load()
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(hub.provisioned())
        client = await stack.enter_async_context(connect(operator.server))
        ben = await started(stack, "ben", hub.here, plugins)
        with hub.edge():
            await until(partial(linked, hub.there), timeout=30)
            ann = await started(stack, "ann", hub.there, plugins)
            await client.event_bus.emit("work.due", {"n": 0})
            await ben.handled(1, timeout=30)
        for n in (1, 2, 3):
            await client.event_bus.emit("work.due", {"n": n})
        with hub.edge():
            await ben.handled(4, timeout=60)
            assert {event.data["n"] for event in ann.events} == {0, 1, 2, 3}
            assert await client.ask_peer("ann", "there?") == ""
            info = await operator.api("STREAM.INFO.EVENTS")
            assert info["state"]["messages"] == 8  # each due event, and each that is done, once
            assert {event.source for event in ben.events} == {"ann"}


async def test_the_edge_is_cut_off_by_revoking_and_goes_on_with_other_credentials(tmp_path: Path) -> None:
    hub = Hub(tmp_path, Mode.OPERATOR)
    async with hub.provisioned():
        with hub.edge():
            await until(partial(linked, hub.there), timeout=30)
            mint = Mint(tmp_path)
            mint.revoke("ann")
            mint.write()
            await push(hub.here.url, mint)

            async def cut_off() -> bool:
                return not await linked(hub.there)

            await until(cut_off, timeout=30)
            mint.issue("ann")
            mint.write()
            assert await until(partial(linked, hub.there), timeout=60)
