"""An agent whose process was taken over, on a secured broker: what it may do it can, and nothing else has an effect.

What it does is looked at from `CORE`, where all is stored. It has the key of the researcher, and speaks to the broker
without the kernel's guards.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from natterjack import Message, Server, Team, TeamClient, agent_rights, connect, permissions
from natterjack.bus import Bus
from natterjack.errors import NatterjackError
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.runtime import start_agent
from natterjack.server import API_PREFIX
from natterjack.testing import NatsServer, ScriptedAgent, until
from natterjack.testing.narrow import login_of, narrow_config
from natterjack_permissions.testing import secured_broker

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
STREAMS = ("EVENTS", "MESSAGES", "INBOX", "JOURNAL", "DEAD", "WAKES", "KV_context", "KV_team", "DELAYS_researcher")


@dataclass
class Broker:
    """A secured broker with the team, and who looks at it."""

    attacker: Bus
    core: Bus
    client: TeamClient
    heard: list[str]
    analyst: ScriptedAgent

    async def stored(self) -> dict[str, Any]:
        """What all streams have: subjects, and how often there was something on each."""
        found = {}
        for name in STREAMS:
            info = await self.core.api(f"STREAM.INFO.{name}", {"subjects_filter": ">"})
            found[name] = info["state"].get("subjects") or {}
        return found

    async def settled(self) -> None:
        """Return once the server has done all that the attacker has sent, and what that made it send."""
        for _ in range(2):
            await self.attacker.flush()
            await self.core.flush()


@pytest.fixture(params=["static", pytest.param("operator", marks=pytest.mark.full)])
async def broker(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    async with attacked(tmp_path, operator_mode=request.param == "operator") as broker:
        yield broker


@asynccontextmanager
async def attacked(folder: Path, *, operator_mode: bool) -> AsyncIterator[Broker]:
    """A broker, its keys in a folder, in whose midst one is that was taken over."""
    plugins = Plugins.load()
    granted = {name: permissions(name, rights) for name, rights in agent_rights(TEAM.closed(), plugins).items()}
    with secured_broker(granted, folder, operator_mode=operator_mode) as (_, login):
        async with AsyncExitStack() as stack:

            async def join(principal: str, login: Server) -> Bus:
                bus = await Bus.connect(login, principal=principal)
                stack.push_async_callback(bus.close)
                return bus

            operator = await join("operator", login)
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
            analyst = agents["analyst"]
            assert isinstance(analyst, ScriptedAgent)
            yield Broker(await join("researcher", login), core, client, heard, analyst)


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
        "CORE.API.DIRECT.GET.EVENTS",
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
OWN = ("researcher", "$KV.context.findings", "$KV.context.status")


def others(stored: dict[str, Any]) -> dict[str, Any]:
    """What is stored, but for what is the researcher's own."""
    return {
        name: {subject: count for subject, count in subjects.items() if not any(own in subject for own in OWN)}
        for name, subjects in stored.items()
    }


@pytest.mark.parametrize("target", TARGETS)
async def test_an_answer_that_shall_go_elsewhere_has_no_effect(broker: Broker, target: str) -> None:
    before = others(await broker.stored())
    for subject in reflected():
        await broker.attacker.publish(subject, ASK, reply=target)
    await broker.settled()
    assert others(await broker.stored()) == before
    assert target not in broker.heard
    assert await broker.core.consumers("INBOX") == ["analyst=inbox", "researcher=inbox", "writer=inbox"]


async def test_none_has_an_effect_in_operator_mode(tmp_path: Path) -> None:
    """All of them at once, and who asks and who emits is known there, too."""
    async with attacked(tmp_path, operator_mode=True) as broker:
        before = others(await broker.stored())
        for target in TARGETS:
            for subject in reflected():
                await broker.attacker.publish(subject, ASK, reply=target)
        for subject, headers in HEADERS:
            await broker.attacker.publish(subject, b"{}", headers)
        await broker.settled()
        assert others(await broker.stored()) == before
        assert not {*TARGETS} & {*broker.heard}
        await test_who_asks_is_known_whatever_it_says(
            broker, {"Nats-Request-Info": '{"acc": "", "name_tag": "writer"}'}
        )
        await test_who_emits_is_known_whatever_it_says(broker)


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


@pytest.mark.parametrize(("subject", "headers"), HEADERS)
async def test_headers_of_the_server_widen_nothing(broker: Broker, subject: str, headers: dict[str, str]) -> None:
    before = others(await broker.stored())
    try:
        await broker.attacker.request(subject, b"{}", headers=headers, timeout=2)
    except NatterjackError as error:
        assert "researcher" in str(error) or subject in str(error)  # noqa: PT017 - it may be refused, or do nothing
    await broker.settled()
    assert others(await broker.stored()) == before


@pytest.mark.parametrize(
    "forged",
    [
        {},
        {"Natterjack": "s=operator"},
        {"Nats-Request-Info": '{"acc": "P-writer"}'},
        {"Nats-Request-Info": '{"acc": "AC", "name_tag": "writer"}'},
        {"Nats-Request-Info": "", "Natterjack": "s=writer"},
    ],
)
async def test_who_asks_is_known_whatever_it_says(broker: Broker, forged: dict[str, str]) -> None:
    await broker.attacker.request("agents.ask.analyst", b"hello", headers=forged, timeout=5)
    assert broker.analyst.contexts[-1].caller == "researcher"


async def test_only_the_operator_may_speak_for_others(broker: Broker) -> None:
    await broker.client.ask_peer("analyst", "hello", asker="ann")
    assert broker.analyst.contexts[-1].caller == "ann"
    await broker.client.ask_peer("analyst", "hello")
    assert broker.analyst.contexts[-1].caller == "operator"


async def test_who_emits_is_known_whatever_it_says(broker: Broker) -> None:
    forged = {"Natterjack": "s=operator", "ce-source": "operator"}
    await broker.attacker.request("events.research.complete", b"{}", headers=forged, timeout=5)
    (event,) = await broker.analyst.handled()
    assert (event.type, event.source) == ("research.complete", "researcher")


async def test_what_is_sent_is_answered_where_it_may_be(broker: Broker) -> None:
    """So the attacks by reflection do make the server answer."""
    answers: list[str] = []

    def note(subject: str, message: Message) -> None:
        del message
        answers.append(subject)

    for at, subject in enumerate(reflected()):
        await broker.attacker.listen(f"_INBOX.researcher.{at}", partial(note, subject))
        await broker.attacker.publish(subject, ASK, reply=f"_INBOX.researcher.{at}")
    assert await until(lambda: set(answers) == set(reflected()))


async def test_the_same_answers_do_harm_within_one_account(tmp_path: Path) -> None:
    """So these tests would see it; and this is why each principal has an account."""
    granted = agent_rights(TEAM)["researcher"]
    with NatsServer(narrow_config({"researcher": permissions("researcher", granted)})) as server:
        operator = await Bus.connect(login_of(server, "operator"), principal="operator")
        await provision(operator, TEAM, Plugins.load())
        attacker = await Bus.connect(login_of(server, "researcher"), principal="researcher")
        await attacker.publish("$JS.API.STREAM.INFO.KV_context", b"", reply="$KV.context.draft")

        async def draft() -> bytes:
            found = await operator.last("KV_context", "$KV.context.draft")
            return b"" if found is None else found.data

        assert b"stream_info_response" in await until(draft)
        await attacker.close()
        await operator.close()


async def test_nobody_can_hold_up_others_by_batches_without_end(broker: Broker) -> None:
    config = (await broker.core.api("STREAM.INFO.KV_context"))["config"]
    assert not config.get("allow_atomic")


async def test_nobody_answers_discovery_for_another(broker: Broker) -> None:
    """What a stranger's tool hears from all at once may be a lie; what `natterjack agents` tells is not."""
    (writer,) = [agent for agent in await broker.client.agents() if agent.name == "writer"]
    (told,) = await broker.client.bus.gather("srv.writer.STATS.agents", window=0.3)
    lie = told.data.replace(writer.instance.encode(), b"evil")

    async def answer(message: Message) -> None:
        await broker.attacker.publish(message.reply, lie)

    await broker.attacker.subscribe("$SRV.STATS.agents", answer)
    everybody = await broker.client.bus.gather("$SRV.STATS.agents", window=0.3)
    assert lie in [message.data for message in everybody]
    assert [agent.instance for agent in await broker.client.agents() if agent.name != "analyst"] == [writer.instance]
