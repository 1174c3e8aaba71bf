"""Restricted `reads`: what an agent may read that may not read everything, and what a broker cannot keep from it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest

from natterjack.bus import Bus
from natterjack.context import AgentContext, SharedContext
from natterjack.context.partial import PartialReplica
from natterjack.errors import BrokerError, NotProvisionedError, RefusedError
from natterjack.rights import Right, permissions
from natterjack.server import Server
from natterjack.stores import context_stream
from natterjack.testing import NatsServer, until

STREAM, CONFIG = context_stream()
READS = {"reader": ("plan", "notes.*"), "literal": ("plan",), "blind": ()}
DIRECT = f"$JS.API.DIRECT.GET.{STREAM}"


def config() -> str:
    users = ["{ user: operator, password: p }"]
    for name, reads in READS.items():
        granted = permissions(name, [Right("write", "own"), *(Right("read", pattern) for pattern in reads)])
        allowed = {
            verb: {"allow": list(subjects)}
            for verb, subjects in (("publish", granted.publish), ("subscribe", (*granted.subscribe, *granted.serve)))
        }
        users.append(f"{{ user: {name}, password: p, permissions: {json.dumps(allowed)} }}")
    return f"authorization {{ users = [ {', '.join(users)} ] }}\n"


class Team:
    """A server whose readers may do what their reads need, and nothing else."""

    def __init__(self, server: NatsServer, stack: AsyncExitStack) -> None:
        self.server, self._stack = server, stack

    async def bus(self, name: str) -> Bus:
        bus = await Bus.connect(Server(self.server.url, user=name, password="p"), principal=name)
        self._stack.push_async_callback(bus.close)
        return bus

    async def context(self, name: str) -> AgentContext:
        context = AgentContext()
        await context.attach(await self.bus(name), reads=READS.get(name))
        self._stack.push_async_callback(context.close)
        return context

    async def view(self, name: str) -> SharedContext:
        context = await self.context(name)
        assert context._bus is not None
        return context.acting_as(name, context._bus, READS[name])

    def violations(self) -> list[str]:
        return [line for line in self.server.log().splitlines() if "violation" in line.lower()]


@pytest.fixture
async def team() -> AsyncIterator[Team]:
    with NatsServer(config()) as server:
        async with AsyncExitStack() as stack:
            team = Team(server, stack)
            operator = await team.bus("operator")
            await operator.api(f"STREAM.CREATE.{STREAM}", {"name": STREAM, **CONFIG})
            yield team


async def test_it_has_its_keys_and_sees_them_change(team: Team) -> None:
    operator = await team.context("operator")
    for key in ("plan", "notes.a", "notes.a.deep", "secret"):
        await operator.set(key, 1)
    await operator.set("notes.gone", 1)
    await operator.delete("notes.gone")
    reader = await team.view("reader")
    assert {key: reader.get(key) for key in reader.keys()} == {"plan": 1, "notes.a": 1}  # noqa: SIM118 - it is no dict
    assert reader.keys("notes.>") == ["notes.a"]
    changes = reader.watch()
    for key in ("secret", "notes.b", "notes.a.deep", "plan"):
        await operator.set(key, 2)
    seen = [await anext(changes) for _ in range(2)]
    assert sorted((change.key, change.value, change.writer) for change in seen) == [
        ("notes.b", 2, "operator"),
        ("plan", 2, "operator"),
    ]
    await operator.delete("plan")
    await until(lambda: reader.keys() == ["notes.a", "notes.b"])
    await reader.set("own", 3)
    await operator.refresh()
    assert operator.get("own") == 3
    assert team.violations() == []


async def test_another_key_is_refused_here(team: Team) -> None:
    reader = await team.view("reader")
    refused = "'reader' may not read 'secret': here its `reads` name 'plan', 'notes.*'"
    with pytest.raises(PermissionError, match=refused.replace("*", r"\*")):
        reader.get("secret")
    with pytest.raises(RefusedError, match="may not read 'secret'"):
        await reader.history("secret")
    with pytest.raises(RefusedError, match="may not read 'own'"):
        await reader.update("own", lambda _: 1)
    async with reader.transaction() as tx:
        with pytest.raises(RefusedError, match="may not read 'own'"):
            tx.get("own")
        tx.set("own", tx.get("plan"))
    assert tx.revision == 1
    with pytest.raises(RefusedError, match="the broker refuses 'reader'"):
        await reader.history("plan")
    blind = await team.view("blind")
    with pytest.raises(RefusedError, match="here its `reads` name nothing"):
        blind.get("plan")
    await blind.set("own", 1)


async def test_in_a_process_that_has_everything_it_gets_no_more(team: Team) -> None:
    operator = await team.context("operator")
    for key in ("plan", "secret"):
        await operator.set(key, 1)
    reader = operator.acting_as("reader", await team.bus("reader"), READS["reader"])
    with pytest.raises(RefusedError):
        reader.get("secret")
    assert reader.keys() == ["plan"]
    changes = reader.watch()
    for key in ("secret", "plan"):
        await operator.set(key, 2)
    assert (await anext(changes)).key == "plan"


async def refused(bus: Bus, subject: str, body: bytes = b"") -> bool:
    try:
        await bus.request_many(subject, body, timeout=2, until=lambda _: True)
    except RefusedError:
        return True
    return False


BODIES: list[dict[str, Any]] = [
    {"seq": 1},
    {"last_by_subj": "$KV.context.secret"},
    {"next_by_subj": "$KV.context.secret", "seq": 1},
    {"next_by_subj": "$KV.context.>", "seq": 1, "batch": 10},
    {"multi_last": ["$KV.context.>"]},
    {"multi_last": ["$KV.context.secret"], "batch": 1},
]


@pytest.mark.parametrize("name", ["reader", "literal", "blind"])
async def test_the_broker_refuses_every_way_to_another_key(team: Team, name: str) -> None:
    """[R11]."""
    operator = await team.context("operator")
    for key in ("secret", "plan"):
        await operator.set(key, "value of " + key)
    bus, plan = await team.bus(name), f"{DIRECT}.$KV.context.plan"
    for body in [b"", *map(orjson.dumps, BODIES)]:
        assert await refused(bus, DIRECT, body)
        assert await refused(bus, f"{DIRECT}.$KV.context.secret", body)
        assert await refused(bus, f"{DIRECT}.$KV.context.>", body)
        assert await refused(bus, f"{DIRECT}.$KV.context.*", body)
        assert await refused(bus, f"$JS.API.STREAM.MSG.GET.{STREAM}", body)
        # A get whose subject is granted answers with that subject, whatever its payload wishes.
        if "plan" in READS[name]:
            replies = await bus.request_many(plan, body, timeout=2, until=lambda _: True)
            assert [reply.data for reply in replies] in ([b'"value of plan"'], [b""])
    for subject in ("feed.context.secret", "feed.context.>", "feed.>", "$KV.context.secret", "$KV.>"):
        with pytest.raises(RefusedError):
            await bus.subscribe(subject, ignore)
    for api in (
        f"CONSUMER.CREATE.{STREAM}",
        f"CONSUMER.CREATE.{STREAM}.x.$KV.context.secret",
        f"STREAM.SNAPSHOT.{STREAM}",
    ):
        assert await refused(bus, f"$JS.API.{api}", orjson.dumps({"stream_name": STREAM, "config": {}}))


async def ignore(message: object) -> None:
    """Nothing is ever heard."""


async def test_what_one_account_cannot_keep_from_it(team: Team) -> None:
    """The names of all keys, from whoever reads by a wildcard, and the revisions of all, from whoever writes.

    STREAM.INFO is not bounded by a subject, nor is the key that a write's guard names.
    """
    operator = await team.context("operator")
    await operator.set("secret", 1)
    names = {}
    for name in ("reader", "literal"):
        bus = await team.bus(name)
        try:
            info = await bus.api(f"STREAM.INFO.{STREAM}", {"subjects_filter": ">"}, timeout=2)
            names[name] = list(info["state"]["subjects"])
        except RefusedError:
            names[name] = []
    assert names == {"reader": ["$KV.context.secret"], "literal": []}
    guard = "Nats-Expected-Last-Subject-Sequence"
    headers = {guard: "99", f"{guard}-Subject": "$KV.context.secret"}
    reply = await (await team.bus("blind")).request("$KV.context.own", b"1", timeout=2, headers=headers)
    assert orjson.loads(reply.data)["error"]["description"] == "wrong last sequence: 1"


async def test_a_later_revision_is_read_through(team: Team) -> None:
    """Also where the feed brings nothing."""
    operator, reader = await team.context("operator"), await team.context("reader")
    replica = reader._replica
    assert isinstance(replica, PartialReplica)
    for feed in replica._subscriptions:
        await feed.unsubscribe()
    await operator.set("notes.a", 1)
    revision = await operator.set("secret", 1)
    assert reader.keys() == []
    await asyncio.gather(*(reader.reach(revision) for _ in range(10)))
    assert {key: reader.get(key) for key in reader.keys()} == {"notes.a": 1}  # noqa: SIM118 - it is no dict
    await operator.set("plan", 1)
    await reader.refresh()
    assert reader.get("plan") == 1


async def test_a_made_up_revision_does_not_last(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.context.follower.CHECK_EVERY", 0.1)
    monkeypatch.setattr("natterjack.context.partial.CHECK_EVERY", 0.1)
    reader = await team.context("literal")
    await reader.reach(10**9)
    replica = reader._replica
    assert replica is not None
    await until(lambda: replica.covered == 0)


async def test_it_makes_up_for_what_it_missed_while_away(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.context.partial.CHECK_EVERY", 600)  # the regular look is not what finds it
    operator, reader = await team.context("operator"), await team.context("reader")
    await operator.set("plan", 1)
    await until(lambda: reader.get("plan") == 1)
    assert reader._replica is not None
    for feed in reader._replica._subscriptions:
        await feed.unsubscribe()
    await operator.set("plan", 2)
    await operator.set("notes.new", 2)
    assert (reader.get("plan"), reader.keys()) == (1, ["plan"])
    team.server.kill()
    team.server.start()
    await until(lambda: (reader.get("plan"), reader.get("notes.new")) == (2, 2), timeout=20)


async def test_a_lost_change_is_found_by_the_regular_look(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.context.partial.CHECK_EVERY", 0.1)
    operator, reader = await team.context("operator"), await team.context("reader")
    assert reader._replica is not None
    for feed in reader._replica._subscriptions:
        await feed.unsubscribe()
    await operator.set("notes.a", 1)
    await until(lambda: reader.get("notes.a") == 1)


async def test_many_keys_are_read_and_looked_at_less_often(team: Team) -> None:
    operator = await team.context("operator")

    def write(start: int) -> None:
        for number in range(start, start + 500):
            operator.set(f"notes.n{number}", number)

    for start in range(0, 6000, 500):
        write(start)
        await operator.flush()
    reader = await team.context("reader")
    assert [reader.get(key) for key in sorted(reader.keys(), key=lambda key: int(key[7:]))] == list(range(6000))
    assert isinstance(reader._replica, PartialReplica)
    assert reader._replica.check_every == 6.0


@pytest.mark.parametrize("name", ["reader", "literal"])
async def test_without_a_bucket_it_says_so(name: str) -> None:
    with NatsServer(config()) as server:
        bus = await Bus.connect(Server(server.url, user=name, password="p"), principal=name)
        try:
            with pytest.raises((NotProvisionedError, BrokerError), match="KV_context does not exist"):
                await AgentContext().attach(bus, reads=READS[name])
        finally:
            await bus.close()
