"""Transactions: several keys change together or not at all, whatever happens to the broker and to others."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from natterjack.bus import BatchMessage, Bus, Message, store_batch
from natterjack.context import AgentContext, SharedContext, Transaction
from natterjack.context.replica import Replica
from natterjack.errors import (
    ConfigError,
    ConflictError,
    NotProvisionedError,
    PayloadError,
    RefusedError,
    RequestTimeoutError,
    UsageError,
)
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.server import Server
from natterjack.stores import context_stream
from natterjack.team import Team
from natterjack.testing import NatsServer, until

STREAM, CONFIG = context_stream()
PERMISSIONS = {"shop": ["stock", "sold"]}


@pytest.fixture
async def bus(bus: Bus) -> Bus:
    """The operator's connection to a server that has the bucket."""
    await bus.api(f"STREAM.CREATE.{STREAM}", {"name": STREAM, **CONFIG})
    return bus


async def attached(bus: Bus, stack: AsyncExitStack, context: AgentContext | None = None) -> AgentContext:
    context = context or AgentContext()
    await context.attach(bus)
    stack.push_async_callback(context.close)
    return context


async def another(bus: Bus, stack: AsyncExitStack, principal: str = "operator") -> Bus:
    other = await Bus.connect(bus.server, principal=principal)
    stack.push_async_callback(other.close)
    return other


async def last_sequence(bus: Bus) -> int:
    return int((await bus.api(f"STREAM.INFO.{STREAM}"))["state"]["last_seq"])


def contents(context: AgentContext) -> dict[str, Any]:
    return {key: context.get(key) for key in context.keys()}  # noqa: SIM118 - it is no dict


def sell(tx: Transaction) -> int:
    tx.set("stock", tx.get("stock") - 1)
    tx.set("sold", tx.get("sold", 0) + 1)
    return int(tx.get("stock"))


# On its own


async def test_alone_all_of_it_happens_or_nothing() -> None:
    context = AgentContext({"stock": 3})
    async with context.transaction() as tx:
        assert sell(tx) == 2
        assert contents(context) == {"stock": 3}
        tx.delete("sold")
        tx.set("gone", None)
    assert (contents(context), tx.revision, context.revision) == ({"stock": 2, "gone": None}, 4, 4)
    with pytest.raises(ZeroDivisionError):
        async with context.transaction() as tx:
            tx.set("stock", 1 // 0)

    async def too_late() -> None:
        async with context.transaction() as tx:
            sell(tx)
            await context.set("stock", 9)

    with pytest.raises(ConflictError, match="'stock' was written by somebody else meanwhile; nothing was changed"):
        await too_late()
    assert contents(context) == {"stock": 9, "gone": None}
    assert await context.transact(sell) == 8
    assert [past.value for past in await context.history("sold")] == [None, 1]


async def test_alone_permissions_are_checked_at_once() -> None:
    context = AgentContext({"stock": 3}, write_permissions=PERMISSIONS)
    async with context.transaction(writer="shop") as tx:
        tx.set("stock", 2)
        for act in (partial(tx.set, "price", 1), partial(tx.delete, "price")):
            with pytest.raises(PermissionError, match="'shop' may not write 'price'"):
                act()
    assert contents(context) == {"stock": 2}


# On the broker


async def test_all_is_stored_or_nothing(bus: Bus, stack: AsyncExitStack) -> None:
    one, two = await attached(bus, stack), await attached(await another(bus, stack), stack)
    await one.set("stock", 3)
    async with one.transaction() as tx:
        sell(tx)
        tx.set("new", {"a": 1})
        tx.delete("never")
        assert contents(one) == {"stock": 3}
        assert await last_sequence(bus) == 1
    assert contents(one) == {"stock": 2, "sold": 1, "new": {"a": 1}}
    assert tx.revision == one.revision == await last_sequence(bus) == 5
    await until(lambda: two.revision == 5)
    assert contents(two) == contents(one)
    with pytest.raises(ZeroDivisionError):
        async with one.transaction() as tx:
            tx.set("stock", 1 // 0)
    async with one.transaction() as tx:
        assert tx.get("stock") == 2
    assert await last_sequence(bus) == 5


async def test_whoever_read_something_old_changes_nothing(bus: Bus, stack: AsyncExitStack) -> None:
    one, two = await attached(bus, stack), await attached(await another(bus, stack), stack)
    await one.set("stock", 3)
    await two.refresh()

    async def attempt(disturbed: str) -> None:
        async with one.transaction() as tx:
            tx.set("sold", [tx.get("stock"), tx.get("price"), tx.get("other")])
            tx.set("stock", 0)
            await two.set(disturbed, 5)

    for disturbed in ("stock", "price"):
        before = await last_sequence(bus)
        with pytest.raises(ConflictError, match="nothing was changed"):
            await attempt(disturbed)
        assert await last_sequence(bus) == before + 1
        assert one.get(disturbed) == 5
        assert one.get("sold") is None
    assert two.get("stock") == 5


@pytest.mark.parametrize("disturbed", ["a", "b", "c", "d", None])
async def test_what_is_only_read_is_guarded_too(bus: Bus, stack: AsyncExitStack, disturbed: str | None) -> None:
    """More keys are read than written, so that some guards have no message of their own."""
    one, two = await attached(bus, stack), await attached(await another(bus, stack), stack)
    for key in "abc":
        await one.set(key, 1)
    watched, seen = two.watch("sum"), []

    async def add() -> None:
        async with one.transaction() as tx:
            tx.set("sum", sum(tx.get(key, 0) for key in "abcd"))
            if disturbed:
                await two.set(disturbed, 5)

    if disturbed:
        with pytest.raises(ConflictError):
            await add()
        await one.refresh()
        assert one.get("sum") is None
    else:
        await add()
        await two.refresh()
        await two.set("sum", "end")
        seen = [(await anext(watched)).value for _ in range(2)]
        assert seen == [3, "end"]


async def test_many_at_once_lose_nothing(own_server: NatsServer, bus: Bus, stack: AsyncExitStack) -> None:
    contexts = [await attached(await another(bus, stack), stack) for _ in range(4)]
    await contexts[0].set("stock", 100)
    await asyncio.gather(*(context.refresh() for context in contexts))

    async def shop(context: AgentContext) -> None:
        for _ in range(10):
            await context.transact(sell)

    await asyncio.gather(*(shop(context) for context in contexts))
    for context in contexts:
        await context.refresh()
        assert contents(context) == {"stock": 60, "sold": 40}


async def test_nobody_ever_sees_half_of_it(bus: Bus, stack: AsyncExitStack) -> None:
    writer, reader = await attached(bus, stack), await attached(await another(bus, stack), stack)
    changes = reader.watch()
    seen: list[list[int]] = []

    async def follow() -> None:
        async for _ in changes:
            seen.append([reader.get(key) for key in "abc"])  # noqa: PERF401 - it is looked at meanwhile

    following = asyncio.create_task(follow())
    for number in range(50):
        async with writer.transaction() as tx:
            for key in "abc":
                tx.set(key, number)
        # One that joins now takes a snapshot.
        if number % 10 == 0:
            joining = await attached(bus, stack)
            assert len(set(map(str, (joining.get(key) for key in "abc")))) == 1
    await until(lambda: seen and seen[-1] == [49] * 3)
    following.cancel()
    assert all(len(set(values)) == 1 for values in seen)


async def test_earlier_writes_of_this_process_come_first(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)
    write = context.set("stock", 3)
    async with context.transaction() as tx:
        tx.set("stock", tx.get("stock") - 1)
    assert (await write, tx.revision, context.get("stock")) == (1, 2, 2)


async def test_an_agents_transaction_is_its_own(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack, AgentContext(write_permissions=PERMISSIONS))
    shop: SharedContext = context.acting_as("shop", await another(bus, stack, "shop"))
    await context.set("stock", 3)
    assert await shop.transact(sell) == 2
    async with shop.transaction() as tx:
        with pytest.raises(RefusedError, match="'shop' may not write 'price'"):
            tx.set("price", 1)
        sell(tx)
    assert [past.writer for past in await shop.history("stock")] == ["operator", "shop", "shop"]


# Faults


async def test_a_lost_acknowledgement_is_no_lost_race(
    bus: Bus, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[R5]."""
    context, request = await attached(bus, stack), bus.request
    lost: list[str] = []

    async def forgetful(subject: str, data: bytes = b"", **options: Any) -> Message:
        reply = await request(subject, data, **options)
        if "Nats-Batch-Commit" in (options.get("headers") or {}) and len(lost) < 2:
            lost.append(subject)
            raise RequestTimeoutError(subject, 0.0)
        return reply

    await context.set("stock", 3)
    monkeypatch.setattr(bus, "request", forgetful)
    async with context.transaction() as tx:
        sell(tx)
    assert (contents(context), tx.revision, await last_sequence(bus), len(lost)) == ({"stock": 2, "sold": 1}, 3, 3, 2)
    lost.clear()
    async with context.transaction() as tx:
        tx.set("blind", 1)
    assert (context.get("blind"), await last_sequence(bus)) == (1, 4)


async def test_a_transaction_outlives_a_restart_of_the_server(
    own_server: NatsServer, bus: Bus, stack: AsyncExitStack
) -> None:
    context = await attached(bus, stack)
    await context.set("stock", 3)
    async with context.transaction() as tx:
        sell(tx)
        own_server.kill()
        starting = asyncio.get_running_loop().run_in_executor(None, own_server.start)
    await starting
    assert (contents(context), await last_sequence(bus)) == ({"stock": 2, "sold": 1}, 3)


async def abandon(bus: Bus, count: int) -> None:
    """Begin batches and never end them, as a process does that dies meanwhile."""
    for number in range(count):
        headers = {"Nats-Batch-Id": f"abandoned-{number}", "Nats-Batch-Sequence": "1"}
        await bus.request("$KV.context.stock", b"1", timeout=5, headers=headers)


async def test_one_abandoned_batch_holds_nobody_up(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)
    await context.set("stock", 3)
    await abandon(bus, 1)
    async with asyncio.timeout(2):
        await context.transact(sell)
        await context.set("stock", 7)
    assert contents(context) == {"stock": 7, "sold": 1}


@pytest.mark.full
async def test_many_abandoned_batches_hold_transactions_up_for_ten_seconds(bus: Bus, stack: AsyncExitStack) -> None:
    """[R12]: the server has room for 50; ordinary writes go on."""
    context = await attached(bus, stack)
    await context.set("stock", 3)
    await abandon(bus, 60)
    async with asyncio.timeout(2):
        await context.set("stock", 4)
    async with asyncio.timeout(14):
        await context.transact(sell)
    assert contents(context) == {"stock": 3, "sold": 1}


async def test_where_they_are_off_that_is_said(bus: Bus, stack: AsyncExitStack) -> None:
    """[R12]."""
    name, config = context_stream(transactions=False)
    await bus.api(f"STREAM.UPDATE.{name}", {"name": name, **config})
    context = await attached(bus, stack)
    await context.set("stock", 1)
    with pytest.raises(ConfigError, match="takes no transactions for this context: they are off"):
        await context.transact(sell)
    assert contents(context) == {"stock": 1}
    async with context.transaction() as tx:  # of one key, it is an ordinary write
        tx.set("stock", tx.get("stock") + 1)
    assert contents(context) == {"stock": 2}


@pytest.mark.parametrize("allowed", [True, False])
async def test_provisioning_turns_them_on_or_off(own_server: NatsServer, allowed: bool) -> None:
    bus = await Bus.connect(Server(own_server.url), principal="operator")
    try:
        for transactions in (not allowed, allowed):
            await provision(bus, Team(transactions=transactions, buckets={"safe": {}}), Plugins.load())
        for stream in (STREAM, "KV_context_safe"):
            assert (await bus.api(f"STREAM.INFO.{stream}"))["config"].get("allow_atomic", False) == allowed
    finally:
        await bus.close()


async def test_limits_are_said_before_anything_is_sent(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)

    def write(values: Iterable[str]) -> Callable[[Transaction], None]:
        def fn(tx: Transaction) -> None:
            for number, value in enumerate(values):
                tx.set(f"k{number}", value)

        return fn

    with pytest.raises(UsageError, match="1,000 keys, and this one has 1,001"):
        await context.transact(write(["x"] * 1001))
    with pytest.raises(PayloadError, match="bytes, but the server takes"):
        await context.transact(write(["x", "x" * (1 << 20)]))
    await context.transact(write(["x"] * 1000))
    assert len(context.keys()) == context.revision == await last_sequence(bus) == 1000


async def test_without_a_bucket_it_says_so_at_once(own_server: NatsServer, stack: AsyncExitStack) -> None:
    bus = await Bus.connect(Server(own_server.url), principal="operator")
    stack.push_async_callback(bus.close)
    with pytest.raises(NotProvisionedError):
        await store_batch(bus, [BatchMessage("$KV.context.a", b"1", {})], id="x")


async def test_a_refusal_of_one_key_is_heard_and_changes_nothing() -> None:
    users = (
        '{ user: operator, password: p }, { user: shop, password: p, permissions: { publish: { allow: ["$KV.context.a"]'
        ' }, subscribe: { allow: ["_INBOX.>"] } } }'
    )
    with NatsServer(f"authorization {{ users = [ {users} ] }}\n") as server:
        async with AsyncExitStack() as stack:
            operator, shop = [
                await Bus.connect(Server(server.url, user=name, password="p"), principal=name)
                for name in ("operator", "shop")
            ]
            for each in (operator, shop):
                stack.push_async_callback(each.close)
            await operator.api(f"STREAM.CREATE.{STREAM}", {"name": STREAM, **CONFIG})
            messages = [BatchMessage(f"$KV.context.{key}", b"1", {}) for key in "ab"]
            with pytest.raises(RefusedError, match=r"refuses 'shop' to publish on '\$KV.context.b'"):
                await store_batch(shop, messages, id="x")
            assert await last_sequence(operator) == 0


async def test_readers_that_miss_the_end_of_one_read_it_and_never_show_half(bus: Bus, stack: AsyncExitStack) -> None:
    context, other = await attached(bus, stack), await attached(bus, stack)
    replica = context._replica
    assert replica is not None
    await replica._subscriptions.pop().unsubscribe()
    async with other.transaction() as tx:
        tx.set("a", 1)
        tx.set("b", 1)
    await other.set("c", 1)
    a, _, c = [message async for message in bus.read(STREAM, ">")]
    replica.fed(a)
    assert (contents(context), replica.covered) == ({}, 0)
    replica.fed(c)
    assert contents(context) == {"c": 1}
    await until(lambda: contents(context) == {"a": 1, "b": 1, "c": 1})


async def test_what_is_left_of_one_whose_end_was_replaced_is_read(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)
    await context.set("first", 1)
    async with context.transaction() as tx:
        tx.set("a", 1)
        tx.set("b", 0)
    for n in range(1, 18):  # one more than the history has
        await context.set("b", n)
    late = await attached(bus, stack)
    assert isinstance(late._replica, Replica)
    late._state.clear()
    late._replica.covered = 1
    await late._replica._catch_up(20)
    assert contents(late) == {"a": 1, "b": 17}
