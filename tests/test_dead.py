"""Dead letters: listed, retried for their agent alone, dropped."""

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import pytest

from natterjack import Agent, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext
from natterjack.bus import Bus
from natterjack.dead import HEADER, DeadLetter, bury, dead_letter, dead_letters, drop, retry
from natterjack.errors import ConfigError, NotProvisionedError, PayloadError
from natterjack.server import Server
from natterjack.testing import NatsServer, until


class Fragile(Agent):
    """Fails until it is mended."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = True
        self.got: list[tuple[str, Any]] = []

    async def handle(self, event: Event, ctx: RunContext) -> str:
        self.got.append((event.type, event.data))
        if self.broken:
            raise ConfigError("broken")
        return "mended"


@pytest.fixture
async def agents(own_server: NatsServer, caplog: pytest.LogCaptureFixture) -> AsyncIterator[list[Fragile]]:
    caplog.set_level(logging.CRITICAL, "natterjack")
    agents = [Fragile(), Fragile()]
    agents[1].broken = False
    runtime = AgentRuntime(own_server.url)
    for name, agent in zip(("one", "two"), agents, strict=True):
        runtime.add_process(AgentProcess(name=name, agent=agent, triggers=[EventTrigger("job.*")]))
    async with runtime:
        yield agents


@pytest.fixture
async def bus(own_server: NatsServer, agents: list[Fragile]) -> AsyncIterator[Bus]:
    bus = await Bus.connect(Server(own_server.url), principal="operator")
    yield bus
    await bus.close()


async def letters(bus: Bus, count: int) -> list[DeadLetter]:
    async def enough() -> list[DeadLetter] | None:
        found = await dead_letters(bus)
        return found if len(found) >= count else None

    return await until(enough)  # type: ignore[arg-type]  # mypy cannot solve plain or async


async def test_list_and_show(bus: Bus) -> None:
    for n in range(3):
        await bus.store("events.job.a", b'{"n":%d}' % n)
    found = await letters(bus, 3)
    assert [letter.number for letter in found] == [1, 2, 3]
    assert len(await dead_letters(bus, limit=2)) == 2
    assert len(await dead_letters(bus, agent="one")) == 3
    assert await dead_letters(bus, agent="two") == []
    letter = await dead_letter(bus, 2)
    assert (letter.agent, letter.type, letter.cause) == ("one", "job.a", "ConfigError: broken")
    assert letter.size == len(letter.data)


async def test_retry_goes_to_that_agent_alone(bus: Bus, agents: list[Fragile]) -> None:
    await bus.store("events.job.a", b'{"n":1}')
    await letters(bus, 1)
    await until(lambda: agents[1].got)
    agents[0].broken = False
    await retry(bus, 1)
    await until(lambda: len(agents[0].got) == 2)
    assert agents[0].got == [("job.a", {"n": 1})] * 2
    assert agents[1].got == [("job.a", {"n": 1})]
    assert await dead_letters(bus) == []


async def test_a_retry_that_fails_is_a_letter_again(bus: Bus) -> None:
    await bus.store("events.job.a", b"1")
    await letters(bus, 1)
    await retry(bus, 1)

    async def again() -> bool:
        return [letter.number for letter in await dead_letters(bus)] == [2]

    await until(again)
    letter = await dead_letter(bus, 2)
    assert (letter.trigger, letter.stream, letter.type, letter.data) == ("inbox", "INBOX", "job.a", b"1")


async def test_drop_and_unknown_numbers(bus: Bus) -> None:
    await bus.store("events.job.a", b"1")
    await letters(bus, 1)
    await drop(bus, 1)
    assert await dead_letters(bus) == []
    for call in (dead_letter, retry, drop):
        for number in (1, 99):
            with pytest.raises(NotProvisionedError, match=f"dead letter {number}"):
                await call(bus, number)


@pytest.mark.open_mode(reason="it is stored there without the name of its sender")
async def test_a_letter_without_its_payload_is_retried_from_the_original(bus: Bus, agents: list[Fragile]) -> None:
    agents[0].broken = agents[1].broken = False
    stored = await bus.store("events.job.large", b'"' + b"x" * 1_048_000 + b'"')
    message = await bus.at("EVENTS", stored.sequence)
    assert message is not None
    for sequence in (stored.sequence, 99):
        subject = "stored.events.anyone.job.large"
        letter = DeadLetter("one", "event-job+@", "why " * 500, 1, "EVENTS", subject, sequence, "", "")
        await bury(bus, letter, message.data)
    found = await letters(bus, 2)
    assert [letter.data for letter in found] == [b"", b""]
    await retry(bus, 1)
    await until(lambda: len(agents[0].got) == 2)
    assert agents[0].got[0] == agents[0].got[1]
    with pytest.raises(PayloadError, match="kept nowhere any more"):
        await retry(bus, 2)


WHOLE: dict[str, object] = {
    "agent": "other",
    "trigger": "inbox",
    "cause": "",
    "attempts": 1,
    "stream": "EVENTS",
    "subject": "stored.events.anyone.job",
    "sequence": 1,
    "event": "1",
    "run": "",
    "size": 1,
}
WRONG_TYPES = json.dumps(WHOLE | {"attempts": "many", "cause": ["x"]})
NO_SUBJECT = json.dumps(WHOLE | {"subject": ""})


async def test_a_letter_belongs_to_the_agent_that_its_subject_names(bus: Bus) -> None:
    await bus.store("dead.one.event-job", b"x", headers={HEADER: json.dumps(WHOLE)})
    (letter,) = await letters(bus, 1)
    assert (letter.agent, letter.trigger, letter.type) == ("one", "event-job", "job")


@pytest.mark.parametrize(
    "header",
    [None, "", "{", "[]", "{}", '{"agent":1}', '{"unknown":1}', "9" * 5000, "[" * 50_000, WRONG_TYPES, NO_SUBJECT],
)
async def test_a_forged_letter_hides_no_other(bus: Bus, header: str | None) -> None:
    await bus.store("dead.one.forged", b"x", headers=None if header is None else {HEADER: header})
    await bus.store("events.job.a", b"1")
    forged, genuine = await letters(bus, 2)
    assert "cannot be read" in forged.cause
    assert (forged.agent, forged.trigger, forged.data, forged.type) == ("one", "forged", b"x", "unreadable")
    assert genuine.cause == "ConfigError: broken"
    await drop(bus, forged.number)
    assert len(await dead_letters(bus)) == 1


async def test_a_forged_letter_cannot_have_another_message_copied(bus: Bus) -> None:
    """The reference to an original is believed only where the original says the same."""
    secret = b'{"kind": "secret"}'
    for number, stream, subject in ((1, "JOURNAL", "journal.boss.run.1"), (2, "EVENTS", "events.other")):
        stored = await bus.store(subject, secret)
        claimed = "stored.events.anyone.job.a"
        forged = DeadLetter("one", "inbox", "x", 1, stream, claimed, stored.sequence, "e", "r", size=len(secret))
        described = {key: value for key, value in asdict(forged).items() if key not in ("data", "number")}
        await bus.store("dead.one.inbox", b"", headers={HEADER: json.dumps(described)})
        with pytest.raises(PayloadError, match="kept nowhere any more"):
            await retry(bus, number)
