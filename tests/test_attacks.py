"""An agent whose process was taken over, on a secured broker: what it may do it can, and nothing else has an effect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from natterjack import Message, Server, agent_rights, permissions
from natterjack.bus import Bus
from natterjack.errors import ConflictError, PeerBusyError, PeerUnavailableError, RefusedError
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.service import discover
from natterjack.testing import NatsServer, until
from natterjack.testing.narrow import login_of, narrow_config
from natterjack_permissions.authority import BESIDE
from natterjack_permissions.broker import accounts
from natterjack_permissions.keys import keep
from natterjack_permissions.star import star

from .attacks import (
    ASK,
    TEAM,
    Begin,
    Broker,
    Ground,
    attacked,
    clustered,
    granted,
    pushed,
    pushed_to_cluster,
    reflected,
    reloaded,
    signed,
    static,
    try_all,
)


@pytest.fixture(params=[static, pytest.param(signed, marks=pytest.mark.full)])
async def broker(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    with request.param(tmp_path) as ground:
        async with attacked(ground) as broker:
            yield broker


@pytest.mark.parametrize(
    "begin",
    [
        static,
        signed,
        reloaded,
        pushed,
        pytest.param(clustered, marks=pytest.mark.full),
        pytest.param(pushed_to_cluster, marks=pytest.mark.full),
    ],
)
async def test_nothing_that_it_tries_has_an_effect(tmp_path: Path, begin: Begin) -> None:
    """All rows one after another; and who asks and who emits is known after them."""
    with begin(tmp_path) as ground:
        async with attacked(ground) as broker:
            assert await try_all(broker) > 600
            await test_who_asks_is_known_whatever_it_says(
                broker, {"Nats-Request-Info": '{"acc": "", "name_tag": "writer"}'}
            )
            await test_who_emits_is_known_whatever_it_says(broker)


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

    async def instances() -> list[str]:
        return [
            agent.instance
            for agent in await discover(broker.client.bus, TEAM.agents, window=1.0)
            if agent.name == "writer"
        ]

    async def told_of() -> list[Message]:
        return await broker.client.bus.gather("srv.writer.STATS.agents", window=1.0)

    (writer,) = await until(instances)  # who is slow does not answer within one window
    (told,) = await until(told_of)
    lie = told.data.replace(writer.encode(), b"evil")

    async def answer(message: Message) -> None:
        await broker.attacker.publish(message.reply, lie)

    await broker.attacker.subscribe("$SRV.STATS.agents", answer)

    async def is_lied_to() -> bool:
        everybody = await broker.client.bus.gather("$SRV.STATS.agents", window=1.0)
        return lie in [message.data for message in everybody]

    await until(is_lied_to)
    assert await until(instances) == [writer]


@pytest.mark.full
async def test_others_live_while_it_floods(broker: Broker) -> None:
    """It asks whom it may ask, writes what it may write, and emits, without end and without listening to answers."""
    stop = asyncio.Event()

    async def flood(subject: str) -> int:
        sent = 0
        while not stop.is_set():
            for _ in range(500):
                await broker.attacker.publish(subject, b"x" * 1000, reply="_INBOX.researcher.nobody")
            await broker.attacker.flush()
            sent += 500
        return sent

    floods = [
        asyncio.create_task(flood(each))
        for each in ("agents.ask.analyst", "$KV.context.findings.x", "events.research.x")
    ]
    taken = []
    for number in range(20):
        begun = time.perf_counter()
        assert (await broker.client.ask_peer("writer", "there?", timeout=20)).agent == "writer"
        await broker.client.context.set("status", number)
        await broker.client.event_bus.emit("analysis.done", {"n": number})
        taken.append(time.perf_counter() - begun)
    stop.set()
    assert sum(await asyncio.gather(*floods)) > 1000
    assert max(taken) < 10.0  # each an ask, a write and an event: 0.4 to 1.3 s where the flood shares this process
    await until(lambda: len(broker.writer.events) == 20, timeout=20)

    async def answers() -> bool:
        try:
            return (await broker.client.ask_peer("analyst", "and you?", timeout=20)).agent == "analyst"
        except PeerBusyError:  # while it works off what it has taken
            return False

    await until(answers, timeout=20)


async def test_ids_that_it_guesses_keep_nobody_out(broker: Broker) -> None:
    """Neither the broker nor an agent takes what others send under an id for what the researcher sent under it."""
    for headers in ({"Nats-Msg-Id": "delivery-1"}, {"Natterjack-Id": "delivery-1"}):
        await broker.attacker.request("events.research.complete", b'"forged"', headers=headers, timeout=5)
    await broker.analyst.handled(1)
    await broker.client.event_bus.emit("research.complete", "real", id="delivery-1")
    again = await broker.client.event_bus.emit("research.complete", "real", id="delivery-1")
    with pytest.raises(ConflictError):
        await broker.client.event_bus.emit("research.complete", "other", id="delivery-1")
    with pytest.raises(ConflictError):
        await broker.client.event_bus.emit("research.later", "real", id="delivery-1")
    later = await broker.client.event_bus.emit("research.complete", "more", id="delivery-2")
    assert await broker.client.event_bus.emit("research.complete", "real", id="delivery-1") == again < later

    def real() -> list[tuple[object, str]]:
        return [(event.data, event.id) for event in broker.analyst.events if event.source == "operator"]

    await until(lambda: len(real()) == 2)
    assert real() == [("real", "delivery-1"), ("more", "delivery-2")]
    assert {event.data for event in broker.analyst.events if event.source == "researcher"} == {"forged"}


async def test_it_reads_back_only_what_it_has_emitted(broker: Broker) -> None:
    await broker.attacker.store("events.research.x", b'"mine"')
    found = await broker.attacker.last("EVENTS", "stored.events.researcher.research.x")
    assert found is not None
    assert found.data == b'"mine"'
    for read in (
        broker.attacker.at("EVENTS", 1),
        broker.attacker.last("EVENTS", "stored.events.operator.research.start"),
        broker.attacker.at("MESSAGES", 1),
        broker.attacker.at("INBOX", 1),
        broker.attacker.last("INBOX", "stored.inbox.writer.operator.x"),
        broker.attacker.last("KV_team", "$KV.team.settings.writer"),
        broker.attacker.at("KV_team", 1),
    ):
        with pytest.raises(RefusedError):
            await read


async def test_an_ask_whose_answer_cannot_come_any_more_ends_at_once(tmp_path: Path) -> None:
    """Who asks gets another key meanwhile: the way back across accounts ends with its connection."""
    names = [*granted(), *BESIDE]
    with NatsServer(accounts(star(granted()), keep(tmp_path, names))) as server:
        ground = Ground(Server(server.url, keys=str(tmp_path)))
        async with attacked(ground) as broker:
            asked, answers = asyncio.Event(), asyncio.Event()

            async def answer(message: Message) -> None:
                asked.set()
                await answers.wait()

            await broker.attacker.subscribe("agents.ask.researcher", answer)
            ask = asyncio.create_task(broker.client.ask_peer("researcher", "?", timeout=60))
            await asked.wait()
            server.reload(accounts(star(granted()), keep(tmp_path, names, ["operator"])))
            with pytest.raises(PeerUnavailableError, match="went before a reply came"):
                await asyncio.wait_for(ask, 20)
            answers.set()
            await until(lambda: broker.client.bus.connected)
            assert (await broker.client.ask_peer("analyst", "now?", timeout=20)).agent == "analyst"
