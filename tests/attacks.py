"""Attacks: brokers in whose midst an agent was taken over, what that one tries, and what may come of it.

It has the key of the researcher, and speaks to the broker without the kernel's guards. What it does is looked at from
`CORE`, where all is stored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from natterjack import Permissions, Server, Team, TeamClient, agent_rights, connect, permissions
from natterjack.bus import Bus
from natterjack.errors import NatterjackError, RefusedError
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.runtime import start_agent
from natterjack.server import API_PREFIX
from natterjack.testing import NatsServer, ScriptedAgent, until
from natterjack_permissions.authority import BESIDE
from natterjack_permissions.broker import accounts
from natterjack_permissions.keys import keep
from natterjack_permissions.mint import KEYS, Mint
from natterjack_permissions.pushes import push
from natterjack_permissions.star import star
from natterjack_permissions.testing import secured_broker
from natterjack_permissions.tls import Certificates

from .test_brokerconf import Cluster

KIND = "natterjack.testing.agents:ScriptedAgent"
TEAM = Team.model_validate(
    {
        "name": "newsroom",
        "external": ["research.start"],
        "agents": {
            "researcher": {
                "kind": KIND,
                "on": ["research.start"],
                "emits": ["research.*"],
                "delays": ["research.later"],
                "publishes": ["reports.*"],
                "asks": ["analyst"],
                "writes": ["findings.>"],
            },
            "analyst": {"kind": KIND, "on": ["research.complete"], "asks": ["researcher"], "writes": ["analysis"]},
            "writer": {"kind": KIND, "on": ["analysis.done", {"message": "secrets"}], "writes": ["draft"]},
        },
    }
)
STREAMS = (
    "AUDIT",
    "EVENTS",
    "MESSAGES",
    "INBOX",
    "JOURNAL",
    "DEAD",
    "WAKES",
    "KV_context",
    "KV_team",
    "DELAYS_researcher",
)


INBOX = "CONSUMER.INFO.INBOX.researcher=inbox"


@dataclass
class Broker:
    """A secured broker with the team, and who looks at it."""

    attacker: Bus
    core: Bus
    client: TeamClient
    heard: list[str]
    analyst: ScriptedAgent
    writer: ScriptedAgent

    async def stored(self) -> dict[str, Any]:
        """What all streams have: subjects, and how often there was something on each."""
        found = {}
        for name in STREAMS:
            info = await self.core.api(f"STREAM.INFO.{name}", {"subjects_filter": ">"})
            found[name] = info["state"].get("subjects") or {}
        return found

    async def made(self) -> dict[str, Any]:
        """What there is: configurations of all streams and consumers, and who may log in."""
        found: dict[str, Any] = {}
        for name in sorted(await self.core.streams(">")):
            info = await self.core.api(f"STREAM.INFO.{name}")
            found[name] = info["config"]
            found[f"consumers of {name}"] = sorted(await self.core.consumers(name))
        return found

    async def narrowed(self, narrow: Callable[[], Awaitable[object]]) -> None:
        """Take rights from the attacker, who hears and writes all until then."""
        spied: set[str] = set()
        await self.attacker.listen("feed.journal.>", lambda message: spied.add(message.subject))

        async def spies() -> bool:
            await self.core.publish("feed.journal.writer.before.1", b"1")
            return bool(spied)

        await until(spies)  # another server of a cluster has to hear of it first
        await self.attacker.store("$KV.context.draft", b'"before"')
        await narrow()

        async def refused() -> bool:
            try:
                await self.attacker.store("$KV.context.draft", b'"after"', budget=1.0)
            except RefusedError:
                return True
            return False

        await until(refused)
        await self.core.publish("feed.journal.writer.after.1", b"1")
        await self.settled()
        assert spied == {"feed.journal.writer.before.1"}
        self.heard.clear()

    async def settled(self) -> None:
        """Return once the server has done all that the attacker has sent, and what that made it send."""
        for _ in range(2):
            await self.attacker.flush()
            await self.core.flush()
        if self.attacker.server.url.count(",") and self.attacker.connected:  # behind what it has sent to all leaders
            for place in (*(f"STREAM.INFO.{name}" for name in ("EVENTS", "WAKES", "KV_context")), INBOX):
                await self.attacker.api(place)


class Ground(NamedTuple):
    """Where an attack happens.

    Attributes:
        login: How all log in.
        narrow: Takes from the attacker what it has beside its rights, while it is connected.
    """

    login: Server
    narrow: Callable[[], Awaitable[object]] | None = None


Begin = Callable[[Path], AbstractContextManager[Ground]]


def granted() -> dict[str, Permissions]:
    """What the principals of the team may do."""
    return {name: permissions(name, rights, attested=True) for name, rights in agent_rights(TEAM.closed()).items()}


@contextmanager
def static(folder: Path) -> Iterator[Ground]:
    """A server whose configuration has the accounts."""
    with secured_broker(granted(), folder) as (_, login):
        yield Ground(login)


@contextmanager
def clustered(folder: Path) -> Iterator[Ground]:
    """Three servers whose configuration has the accounts."""
    keys = keep(folder / KEYS, [*granted(), *BESIDE])
    (folder / "accounts.conf").write_text(accounts(star(granted()), keys))
    Certificates(folder, [*granted(), *BESIDE]).write()
    with Cluster(folder).running() as servers:
        yield Ground(Server(servers.url, keys=str(folder / KEYS)))


@contextmanager
def signed(folder: Path) -> Iterator[Ground]:
    """A server in operator mode."""
    with secured_broker(granted(), folder, operator_mode=True) as (_, login):
        yield Ground(login)


def _widely() -> tuple[dict[str, Permissions], list[str]]:
    """What may be done where the attacker is an operator, who may nearly all."""
    return {name: each for name, each in granted().items() if name != "researcher"}, ["researcher"]


@contextmanager
def reloaded(folder: Path) -> Iterator[Ground]:
    """A server whose configuration takes rights from the attacker while it is connected."""
    wide, operators = _widely()
    with secured_broker(wide, folder, operators) as (server, login):

        async def narrow() -> None:
            config = accounts(star(granted()), keep(folder, [*granted(), *BESIDE]))
            for times in (1, 2):
                server.reload(config)
                await until(partial(_has_reloaded, server, times))

        yield Ground(login, narrow)


@contextmanager
def pushed(folder: Path) -> Iterator[Ground]:
    """The same in operator mode, where it takes another token of the attacker's account."""
    wide, operators = _widely()
    with secured_broker(wide, folder, operators, operator_mode=True) as (server, login):
        yield Ground(login, partial(_push, folder, server.url, 1))


@contextmanager
def pushed_to_cluster(folder: Path) -> Iterator[Ground]:
    """The same on three servers."""
    mint = Mint(folder)
    mint.team(star(*_widely()))
    mint.write()
    Certificates(folder, [*granted(), *BESIDE]).write()
    with Cluster(folder).running() as servers:
        yield Ground(Server(servers.url, keys=str(folder / KEYS)), partial(_push, folder, servers.url, 3))


async def _push(folder: Path, url: str, size: int) -> None:
    mint = Mint(folder)
    mint.team(star(granted()), resolver=str(folder / "resolver"))
    mint.write()
    servers, names = await push(url, mint)
    assert (len(servers), "P-researcher" in names) == (size, True)


def _has_reloaded(server: NatsServer, times: int) -> bool:
    return server.log().count("Reloaded server configuration") >= times


async def _ready(join: Callable[[str], Awaitable[Bus]]) -> Bus | None:
    """Return the operator's connection, once the servers of a cluster have agreed on who leads."""
    try:
        bus = await join("operator")
        await bus.api("INFO", timeout=1.0)
    except NatterjackError:
        return None
    return bus


@asynccontextmanager
async def attacked(ground: Ground) -> AsyncIterator[Broker]:
    """A broker in whose midst one is that was taken over."""
    login, plugins = ground.login, Plugins.load()
    async with AsyncExitStack() as stack:

        async def join(principal: str, login: Server = login) -> Bus:
            bus = await Bus.connect(login, principal=principal)
            stack.push_async_callback(bus.close)
            return bus

        operator = await until(partial(_ready, join), timeout=40)
        assert operator is not None
        await provision(operator, TEAM, plugins)
        agents = {}
        for name in ("analyst", "writer"):
            host, context = await start_agent(name, login, plugins=plugins)
            stack.push_async_callback(context.close)
            stack.push_async_callback(host.stop, 5.0)
            agents[name] = host._agent
        core = await join("core", replace(login.of("core"), keys=None, prefix=API_PREFIX))
        heard: list[str] = []
        for subject in ("agents.>", "feed.>", "tools.>", "schedule.>"):
            await core.listen(subject, lambda message: heard.append(message.subject))
        await core.store("stored.events.operator.research.start", b"{}")
        client = await stack.enter_async_context(connect(login))
        analyst, writer, attacker = agents["analyst"], agents["writer"], await join("researcher")
        assert isinstance(analyst, ScriptedAgent)
        assert isinstance(writer, ScriptedAgent)
        broker = Broker(attacker, core, client, heard, analyst, writer)
        if ground.narrow is not None:
            await broker.narrowed(ground.narrow)
        yield broker


ASK = b'{"batch": 1, "no_wait": true, "seq": 1}'


def reflected() -> list[str]:
    """Where the researcher may send what is answered: the answer goes where it says."""
    return [
        "CORE.API.STREAM.INFO.KV_context",
        "CORE.API.STREAM.INFO.EVENTS",
        "CORE.API.CONSUMER.INFO.INBOX.researcher=inbox",
        "CORE.API.CONSUMER.MSG.NEXT.INBOX.researcher=inbox",
        "CORE.API.CONSUMER.MSG.NEXT.EVENTS.researcher=event-research+start",
        "CORE.API.DIRECT.GET.KV_context",
        "CORE.API.DIRECT.GET.KV_context.$KV.context.status",
        "CORE.API.DIRECT.GET.EVENTS.stored.events.researcher.research.x",
        "CORE.API.DIRECT.GET.KV_team.$KV.team.team",
        "CORE.API.DIRECT.GET.JOURNAL.journal.researcher.x.1",
        "$KV.context.findings.x",
        "events.research.x",
        "messages.reports.x",
        "inbox.researcher.x",
        "journal.researcher.x.1",
        "dead.researcher.x",
        "wake.researcher.x",
        "agents.ask.analyst",
        "agents.prompt.natterjack.newsroom.analyst",
    ]


TARGETS = [
    "$KV.context.draft",
    "$KV.team.team",
    "$KV.limits.writer.x",
    "events.analysis.done",
    "stored.events.operator.research.start",
    "stored.messages.operator.secrets",
    "inbox.writer.x",
    "stored.inbox.writer.operator.x",
    "journal.writer.x.1",
    "dead.writer.inbox",
    "audit.writer.guard.emit",
    "audit.operator.authority.provision",
    "wake.writer.x",
    "delay.writer.x",
    "delay.researcher.due.research.later",
    "feed.context.draft",
    "feed.events.operator.analysis.done",
    "agents.ask.writer",
    "agents.prompt.natterjack.newsroom.writer",
    "agents.cancel.writer.x",
    "agents.hb.natterjack.newsroom.writer",
    "CORE.API.STREAM.PURGE.EVENTS",
    "$JS.API.STREAM.PURGE.EVENTS",
    "$JS.API.STREAM.DELETE.JOURNAL",
    "$JS.API.CONSUMER.DELETE.INBOX.writer=inbox",
    "$JS.ACK.INBOX.writer=inbox.1.1.1.1.0",
    "$SRV.PING",
]
STREAMS_OF_ADMINISTRATION = ("EVENTS", "JOURNAL", "KV_context", "KV_team")
ADMINISTRATION = [
    *(
        f"{prefix}.{verb}.{stream}"
        for prefix in ("$JS.API", "CORE.API")
        for stream in STREAMS_OF_ADMINISTRATION
        for verb in (
            "STREAM.UPDATE",
            "STREAM.DELETE",
            "STREAM.PURGE",
            "STREAM.MSG.DELETE",
            "STREAM.MSG.GET",
            "STREAM.SNAPSHOT",
            "STREAM.RESTORE",
            "STREAM.LEADER.STEPDOWN",
            "STREAM.PEER.REMOVE",
            "CONSUMER.CREATE",
            "CONSUMER.LIST",
            "CONSUMER.NAMES",
        )
    ),
    *(
        f"{prefix}.{verb}"
        for prefix in ("$JS.API", "CORE.API")
        for verb in (
            "STREAM.CREATE.MINE",
            "STREAM.LIST",
            "STREAM.NAMES",
            "CONSUMER.CREATE.EVENTS.spy",
            "CONSUMER.CREATE.EVENTS.spy.>",
            "CONSUMER.DURABLE.CREATE.EVENTS.spy",
            "CONSUMER.DELETE.INBOX.writer=inbox",
            "CONSUMER.DELETE.INBOX.researcher=inbox",
            "CONSUMER.PAUSE.INBOX.writer=inbox",
            "CONSUMER.INFO.INBOX.writer=inbox",
            "CONSUMER.MSG.NEXT.INBOX.writer=inbox",
            "CONSUMER.LEADER.STEPDOWN.INBOX.writer=inbox",
            "CONSUMER.UNPIN.INBOX.writer=inbox",
            "META.LEADER.STEPDOWN",
            "SERVER.REMOVE",
            "ACCOUNT.PURGE.CORE",
            "ACCOUNT.STREAM.MOVE.CORE.EVENTS",
        )
    ),
    "$JS.ACK.EVENTS.writer=event-analysis+done.1.1.1.1.0",
    "$JS.FC.EVENTS.writer=event-analysis+done.x",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.SERVER.PING.CONNZ",
    "$SYS.REQ.SERVER.PING.KICK",
    "$SYS.REQ.SERVER.PING.RELOAD",
    "$SYS.REQ.SERVER.PING.SHUTDOWN",
    "$SYS.REQ.ACCOUNT.CORE.CONNZ",
    "$SYS.REQ.ACCOUNT.P-writer.SUBSZ",
    "$SYS.REQ.CLAIMS.UPDATE",
    "$SYS.REQ.CLAIMS.DELETE",
    "$SYS.REQ.CLAIMS.LIST",
    "$SYS.REQ.USER.AUTH",
    "$SYS.ACCOUNT.CORE.DISCONNECT",
]
"""What looks after servers, streams and consumers, under either name of the API."""
BODIES = (
    b"",
    b'{"stream_name": "EVENTS", "config": {"deliver_subject": "$KV.context.draft", "durable_name": "spy"}}',
    b'{"name": "MINE", "subjects": ["mine"], "sources": [{"name": "JOURNAL"}], "mirror": {"name": "EVENTS"}}',
    b'{"seq": 1, "last_by_subj": "journal.writer.x.1", "batch": 1}',
)
OWN = (
    *(f"{root}.researcher." for root in ("audit", "dead", "delay", "journal", "wake")),
    "$KV.context.findings.",
    "$KV.limits.researcher.",
    "stored.events.researcher.research.",
    "stored.inbox.researcher.researcher.",
    "stored.messages.researcher.reports.",
)
"""What the subjects begin with that are the researcher's own."""


def others(stored: dict[str, Any]) -> dict[str, Any]:
    """What is stored, but for what is the researcher's own."""
    return {
        name: {subject: count for subject, count in subjects.items() if not subject.startswith(OWN)}
        for name, subjects in stored.items()
    }


HEADERS = [
    ("$KV.context.findings.x", {"Nats-Rollup": "all"}),
    ("$KV.context.findings.x", {"Nats-Rollup": "sub"}),
    ("events.research.x", {"Nats-Rollup": "all"}),
    ("journal.researcher.x.1", {"Nats-Rollup": "all"}),
    ("inbox.researcher.x", {"Nats-Rollup": "all"}),
    ("events.research.x", {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "events.analysis.done"}),
    ("delay.researcher.x", {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "events.analysis.done"}),
    ("delay.researcher.x", {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "delay.writer.due.analysis.done"}),
    ("delay.researcher.x", {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "delay.researcher.due.analysis.x"}),
    ("delay.researcher.x", {"Nats-Schedule-Next": "purge", "Nats-Scheduler": "delay.operator.x"}),
    ("wake.researcher.x", {"Nats-Schedule": "@every 1s", "Nats-Schedule-Target": "wake.writer.x"}),
    ("$KV.context.findings.x", {"Nats-Batch-Id": "b", "Nats-Batch-Sequence": "1", "Nats-Batch-Commit": "eob"}),
    ("events.research.x", {"Nats-Expected-Stream": "JOURNAL"}),
    ("$KV.context.findings.x", {"KV-Operation": "PURGE", "Nats-Rollup": "sub"}),
]


DUE = "delay.researcher.due.research.later"


def soon() -> str:
    """A moment after those of all schedules before it."""
    return (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat().replace("+00:00", "Z")


async def try_all(broker: Broker) -> int:
    """Try everything that has been thought of; return how many rows that were.

    Raises:
        AssertionError: One had an effect; with its name.
    """
    before, made = others(await broker.stored()), await broker.made()
    told: list[str] = []
    await broker.attacker.listen("_INBOX.researcher.told", lambda message: told.append(message.data.decode("latin-1")))

    async def check(row: str) -> None:
        await broker.settled()
        assert others(await broker.stored()) == before, row
        assert not {*TARGETS} & {*broker.heard}, row

    rows = 0
    for subject in ADMINISTRATION:
        for body in BODIES:
            await broker.attacker.publish(subject, body, reply="_INBOX.researcher.told")
        await check(subject)
        rows += 1
    assert not [answer for answer in told if '"error"' not in answer and "503" not in answer]
    for target in TARGETS:
        await broker.attacker.publish(target, b"{}")
        await check(target)
        for subject in reflected():
            await broker.attacker.publish(subject, ASK, reply=target)
        await check(f"answers to {target}")
        rows += 1 + len(reflected())
    for subject, headers in HEADERS:
        await broker.attacker.publish(subject, b"{}", headers)
        await check(f"{subject} with {headers}")
        rows += 1
    await broker.attacker.publish(
        "delay.researcher.own", b"{}", {"Nats-Schedule": f"@at {soon()}", "Nats-Schedule-Target": DUE}
    )

    async def fired() -> bool:
        return "stored.events.researcher.research.later" in (await broker.stored())["EVENTS"]

    await until(fired, timeout=60)  # one that may fire has, and so would those that may not; the server may begin late
    await check("schedules")
    assert await broker.made() == made
    return rows
