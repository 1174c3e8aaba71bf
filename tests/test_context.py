"""The shared context: local reads, writes that show at once, rights, races, and faults of the broker."""

import asyncio
import logging
import time
import timeit
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from natterjack.bus import Bus
from natterjack.context.shared import AgentContext, Change, SharedContext
from natterjack.context.state import STREAM
from natterjack.errors import (
    ConflictError,
    DisconnectedError,
    InvalidNameError,
    PatternError,
    PayloadError,
    RefusedError,
    RequestTimeoutError,
    UsageError,
)
from natterjack.rights import Right, permissions
from natterjack.server import Server
from natterjack.stores import STREAMS
from natterjack.testing import NatsServer, until

BUCKET = {"name": STREAM, **STREAMS[STREAM]}
PERMISSIONS = {"researcher": ["findings", "sources.*"], "writer": ["draft"]}

Connect = Callable[..., Awaitable[Bus]]


@pytest.fixture
async def bus(bus: Bus) -> Bus:
    """The operator's connection to a server that has the bucket."""
    await bus.api(f"STREAM.CREATE.{STREAM}", BUCKET)
    return bus


async def connect(server: NatsServer, stack: AsyncExitStack, principal: str = "operator", password: str = "") -> Bus:
    credentials: dict[str, Any] = {"user": principal, "password": password} if password else {}
    bus = await Bus.connect(Server(server.url, **credentials), principal=principal)
    stack.push_async_callback(bus.close)
    return bus


async def attached(bus: Bus, stack: AsyncExitStack, context: AgentContext | None = None) -> AgentContext:
    context = context or AgentContext()
    await context.attach(bus)
    stack.push_async_callback(context.close)
    return context


async def last_sequence(bus: Bus) -> int:
    return int((await bus.api(f"STREAM.INFO.{STREAM}"))["state"]["last_seq"])


def contents(context: AgentContext) -> dict[str, Any]:
    keys = context.keys()
    return {key: context.get(key) for key in keys}


def increment(value: int | None) -> int:
    return (value or 0) + 1


# On its own


def test_the_documents_sample_runs_without_a_loop() -> None:
    shared_ctx = AgentContext(
        initial_state={"project": "quarterly-report", "status": "in_progress"},
        write_permissions={
            "researcher": ["findings", "sources"],
            "analyst": ["analysis", "recommendations"],
            "writer": ["draft", "status"],
        },
    )
    shared_ctx.set("findings", ["data"], writer="researcher")
    assert shared_ctx.get("findings") == ["data"]
    shared_ctx.set("analysis", {"quality": 4}, writer="analyst")
    shared_ctx.set("draft", "text", writer="writer")
    shared_ctx.set("status", "complete", writer="writer")
    with pytest.raises(PermissionError, match="'researcher' may not write 'draft'"):
        shared_ctx.set("draft", "...", writer="researcher")
    assert shared_ctx.get("draft") == "text"
    assert shared_ctx.get("status") == "complete"
    assert shared_ctx.keys() == ["analysis", "draft", "findings", "project", "status"]


def test_permissions_may_be_patterns_and_the_operator_may_write_all() -> None:
    context = AgentContext(write_permissions=PERMISSIONS)
    context.set("sources.web", 1, writer="researcher")
    context.set("draft", 1)
    for writer, key in [("researcher", "sources.web.deep"), ("writer", "findings"), ("stranger", "draft")]:
        with pytest.raises(RefusedError, match=f"'{writer}' may not write"):
            context.set(key, 2, writer=writer)
        with pytest.raises(RefusedError):
            context.delete(key, writer=writer)
    assert context.keys() == ["draft", "sources.web"]


@pytest.mark.parametrize("key", ["", "a b", "a..b", ".a", "a.*", ">", "ä", "x" * 256])
def test_a_malformed_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidNameError, match="context key"):
        AgentContext().set(key, 1)
    with pytest.raises(InvalidNameError, match="context key"):
        AgentContext(initial_state={key: 1})


def test_malformed_patterns_and_values_are_refused() -> None:
    with pytest.raises(PatternError):
        AgentContext(write_permissions={"writer": ["dr*ft"]})
    with pytest.raises(PatternError):
        AgentContext().watch("a.>.b")
    with pytest.raises(PayloadError):
        AgentContext().set("a", object())
    with pytest.raises(PayloadError):
        AgentContext(initial_state={"a": {1, object()}})


def test_a_value_that_was_read_or_written_cannot_change_the_store() -> None:
    given = {"list": [1]}
    context = AgentContext(initial_state={"a": given})
    given["list"].append(2)
    context.get("a")["list"].append(3)
    assert context.get("a") == {"list": [1]}


async def test_alone_it_counts_revisions_and_keeps_history() -> None:
    context = AgentContext({"a": 1})
    assert context.revision == 1
    assert await context.set("a", None, writer="me", expected=1) == 2
    assert context.get("a", "default") is None
    with pytest.raises(ConflictError, match="revision 2, not 1"):
        context.set("a", 3, expected=1)
    await context.delete("a", writer="me")
    assert context.get("a", "default") == "default"
    assert context.keys() == []
    assert [(past.value, past.writer, past.revision) for past in await context.history("a")] == [
        (1, "operator", 1),
        (None, "me", 2),
        (None, "me", 3),
    ]
    assert await context.update("a", increment) == 1
    await context.refresh()
    await context.reach(99)
    await context.flush()
    await context.close()


async def test_alone_changes_are_seen_by_watch() -> None:
    context = AgentContext({"a": 1})
    watch = context.watch("a")
    context.set("a", 2, writer="me")
    context.set("b", 2)
    context.delete("a")
    await context.close()
    assert [change async for change in watch] == [
        Change("a", 2, 2, "me", deleted=False),
        Change("a", None, 4, "operator", deleted=True),
    ]


async def test_a_slow_watcher_misses_old_values_only() -> None:
    context = AgentContext()
    watch = context.watch()
    for value in range(5000):
        context.set(f"k{value % 3}", value)
    await context.close()
    seen: dict[str, list[int]] = {"k0": [], "k1": [], "k2": []}
    async for change in watch:
        seen[change.key].append(change.value)
    assert [seen[key][-1] for key in ("k0", "k1", "k2")] == [4998, 4999, 4997]
    assert sum(map(len, seen.values())) <= 1024
    assert all(values == sorted(values) for values in seen.values())


async def test_a_cancelled_or_closed_watch_ends() -> None:
    context = AgentContext()

    async def read() -> None:
        async for _ in context.watch():
            pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    await context.close()
    async with asyncio.timeout(1.0):
        await reading
    assert [change async for change in context.watch()] == []


def test_reading_is_fast() -> None:
    context = AgentContext({"status": "in_progress"})
    took = min(timeit.repeat(lambda: context.get("status"), number=100_000, repeat=5, timer=time.process_time))
    assert took < 0.2  # measured 0.025


# On the broker


async def test_a_write_shows_here_at_once_and_there_soon(bus: Bus, stack: AsyncExitStack) -> None:
    here, there = await attached(bus, stack), await attached(bus, stack)
    write = here.set("a", {"x": 1}, writer="me")
    assert here.get("a") == {"x": 1}
    assert here.keys() == ["a"]
    assert here.revision == 0
    assert await write == await write == here.revision == 1
    await there.reach(1)
    assert there.get("a") == {"x": 1}
    await here.delete("a")
    await there.refresh()
    assert there.get("a", "gone") == "gone"
    assert there.keys() == here.keys() == []


async def test_initial_state_is_stored_once_ever(bus: Bus, stack: AsyncExitStack) -> None:
    await bus.store("$KV.context.status", b'"complete"')
    provisioning = AgentContext({"status": "in_progress", "project": "report"})
    provisioning.set("extra", 1)
    await provisioning.seed(bus)
    await provisioning.attach(bus)
    assert provisioning.get("status") == "complete"
    assert (provisioning.get("project"), provisioning.get("extra")) == ("report", 1)
    await provisioning.delete("project")
    await provisioning.close()
    again = AgentContext({"project": "report"})
    await again.seed(bus)
    await again.attach(bus)
    assert again.get("project") is None
    await again.close()
    running = await attached(bus, stack, AgentContext({"another": 1}))
    assert running.keys() == ["extra", "status"]


async def test_it_is_attached_once(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)
    with pytest.raises(UsageError, match="attached to a bus already"):
        await context.attach(bus)


async def test_a_refused_write_sends_nothing(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack, AgentContext(write_permissions=PERMISSIONS))
    await context.set("draft", 1, writer="writer")
    view = context.acting_as("researcher", bus)
    with pytest.raises(RefusedError, match="'researcher' may not write 'draft'"):
        context.set("draft", 2, writer="researcher")
    with pytest.raises(RefusedError):
        context.delete("draft", writer="researcher")
    with pytest.raises(RefusedError):
        view.set("draft", 2)
    with pytest.raises(RefusedError):
        view.delete("draft")
    with pytest.raises(RefusedError):
        await view.update("draft", increment)
    assert context.get("draft") == 1
    assert await last_sequence(bus) == 1


async def test_compare_and_set(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)
    first = await context.set("a", 1, expected=0)
    with pytest.raises(ConflictError, match="written by somebody else"):
        await context.set("a", 2, expected=0)
    assert context.get("a") == 1
    await context.set("a", 3, expected=first)
    assert context.get("a") == 3
    await context.flush()  # the conflict was awaited, and so heard of


async def test_writes_of_a_key_keep_their_order(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)
    for value in range(10):
        context.set("a", value)
    updated = asyncio.create_task(context.update("a", increment))
    await asyncio.sleep(0)
    context.set("a", 100)
    await context.flush()
    assert await updated == 10
    assert [past.value for past in await context.history("a")] == [*range(11), 100]
    assert context.get("a") == 100


async def test_increments_of_four_processes_all_land(own_server: NatsServer, bus: Bus, stack: AsyncExitStack) -> None:
    contexts = [await attached(await connect(own_server, stack), stack) for _ in range(4)]
    await asyncio.gather(*(contexts[index % 4].update("n", increment) for index in range(100)))
    for context in contexts:
        await context.refresh()
    assert [context.get("n") for context in contexts] == [100] * 4
    assert await last_sequence(bus) == 100


async def test_an_update_reads_what_the_feed_has_not_brought(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)
    assert context._replica is not None
    await context._replica._subscriptions.pop().unsubscribe()
    await bus.store("$KV.context.n", b"41")
    async with asyncio.timeout(2.0):
        assert await context.update("n", increment) == 42


async def test_an_update_whose_function_fails_changes_nothing(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)
    with pytest.raises(ZeroDivisionError):
        await context.update("a", lambda _: 1 // 0)
    assert await context.update("a", increment) == 1


async def test_contexts_converge_under_interleaved_writes(
    own_server: NatsServer, bus: Bus, stack: AsyncExitStack
) -> None:
    one, other = await attached(bus, stack), await attached(await connect(own_server, stack), stack)
    for value in range(300):
        one.set(f"k{value % 7}", value, writer="one")
        other.set(f"k{value % 5}", -value, writer="other")
        if value % 50 == 0:
            await one.flush()
    await asyncio.gather(one.flush(), other.flush())
    await asyncio.gather(one.refresh(), other.refresh())
    assert contents(one) == contents(other)
    assert one.revision == other.revision == 600


async def test_causality(own_server: NatsServer, bus: Bus, stack: AsyncExitStack) -> None:
    sender, receiver = await attached(bus, stack), await attached(await connect(own_server, stack), stack)
    for value in range(300):
        revision = await sender.set("a", value)
        await receiver.reach(revision)
        assert receiver.get("a") == value


async def test_reach_gives_up_in_time(own_server: NatsServer, bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)
    own_server.kill()
    with pytest.raises(RequestTimeoutError, match="context revision 1"):
        await context.reach(1, timeout=0.3)
    own_server.start()
    await until(lambda: bus.connected)
    await bus.store("$KV.context.a", b"1")
    await context.reach(1)
    assert context.get("a") == 1


async def test_watch_sees_what_others_write(bus: Bus, stack: AsyncExitStack) -> None:
    here, there = await attached(bus, stack), await attached(bus, stack)
    watch = there.watch("sources.*")
    await here.set("sources.web", [1], writer="researcher")
    await here.set("draft", 1)
    await here.delete("sources.web", writer="researcher")
    async with asyncio.timeout(2.0):
        assert await anext(watch) == Change("sources.web", [1], 1, "researcher", deleted=False)
        assert await anext(watch) == Change("sources.web", None, 3, "researcher", deleted=True)


async def test_history_says_who_wrote_what_and_when(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)
    assert await context.history("a") == []
    await context.set("a", 1, writer="one")
    await bus.store("$KV.context.a", b"from the command line")
    await context.delete("a", writer="two")
    past = await context.acting_as("reader", bus).history("a")
    assert [(entry.value, entry.writer, entry.revision, entry.deleted) for entry in past] == [
        (1, "one", 1, False),
        ("from the command line", "", 2, False),
        (None, "two", 3, True),
    ]
    assert all(abs(entry.time.timestamp() - time.time()) < 60 for entry in past)


# Failures


async def test_a_failed_write_reverts_and_is_raised_by_flush(
    bus: Bus, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    context = await attached(bus, stack)
    await context.set("a", 1)
    large = "x" * bus.max_payload
    context.set("a", large)
    assert context.get("a") == large
    with pytest.raises(PayloadError, match="the server takes"):
        await context.flush()
    assert context.get("a") == 1
    assert "operator could not write 'a'" in caplog.text
    await context.flush()  # it was heard of
    with pytest.raises(PayloadError):
        await context.set("a", large)
    await context.close()


async def test_a_failure_that_nobody_heard_of_is_raised_by_close(
    bus: Bus, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    context = AgentContext()
    await context.attach(bus)
    context.set("a", 1, expected=5)
    with caplog.at_level(logging.CRITICAL), pytest.raises(ConflictError):
        await context.close()
    with pytest.raises(DisconnectedError, match="closed"):
        context.set("a", 1)


async def test_a_later_write_shows_when_an_earlier_one_fails(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)
    failing, later = context.set("a", 1, expected=5), context.set("a", 2)
    with pytest.raises(ConflictError):
        await failing
    assert context.get("a") == 2
    assert await later == 1
    assert context.get("a") == 2


async def test_cancelling_who_waits_does_not_cancel_the_write(bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack)

    async def write() -> None:
        await context.set("a", 1)

    writing = asyncio.create_task(write())
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await context.flush()
    assert await last_sequence(bus) == 1


async def test_a_killed_server_neither_loses_nor_repeats_writes(
    own_server: NatsServer, bus: Bus, stack: AsyncExitStack
) -> None:
    context = await attached(bus, stack)
    other = await attached(await connect(own_server, stack), stack)
    seen: list[int] = []
    watching = asyncio.create_task(read_values(other.watch("n"), seen))

    async def write() -> None:
        for value in range(1, 201):
            assert await context.update("n", increment) == value
            await context.set(f"k{value % 10}", value)

    writing = asyncio.create_task(write())
    for pause in (30, 90, 150):
        await until(partial(reached, context, pause))
        own_server.kill()
        own_server.start()
    async with asyncio.timeout(30):
        await writing
    assert await last_sequence(bus) == 400  # a lost ack made nothing twice [R5]
    await until(lambda: other.get("n") == 200, timeout=3.0)
    await until(lambda: sorted(other.get(f"k{index}") for index in range(10)) == list(range(191, 201)))
    watching.cancel()
    assert seen == sorted(set(seen))


async def test_writes_keep_their_order_while_the_server_is_away(
    own_server: NatsServer, bus: Bus, stack: AsyncExitStack
) -> None:
    context = await attached(bus, stack)
    for value in range(5):
        context.set("a", value)
    await asyncio.sleep(0)  # the first is sent, and its ack may be lost
    own_server.kill()
    for value in range(5, 10):
        context.set("a", value)
    assert context.get("a") == 9
    own_server.start()
    async with asyncio.timeout(10):
        await context.flush()
        await context.refresh()
    assert [past.value for past in await context.history("a")] == list(range(10))


def reached(context: AgentContext, value: int) -> bool:
    return context.get("n", 0) >= value  # type: ignore[no-any-return]


async def read_values(watch: AsyncIterator[Change], seen: list[int]) -> None:
    async for change in watch:
        seen.append(change.value)  # noqa: PERF401 - read while it grows


async def test_close_leaves_nothing_behind(bus: Bus) -> None:
    before, subscriptions = asyncio.all_tasks(), len(bus._nc._subs)
    context = AgentContext()
    await context.attach(bus)
    for value in range(10):
        context.set("a", value)
    await context.update("b", increment)
    await context.close()
    assert asyncio.all_tasks() == before
    assert len(bus._nc._subs) == subscriptions
    assert await last_sequence(bus) == 11
    assert context.get("a") == 9
    await context.attach(bus)
    assert context.get("b") == 1
    await context.close()


async def test_a_close_that_is_cancelled_leaves_nothing_behind(
    own_server: NatsServer, bus: Bus, stack: AsyncExitStack
) -> None:
    before = asyncio.all_tasks()
    context = AgentContext()
    await context.attach(bus)
    own_server.kill()
    context.set("a", 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await context.close()
    assert {task for task in asyncio.all_tasks() - before if "natterjack" in task.get_name()} == set()
    assert context.get("a") is None
    own_server.start()
    await until(lambda: bus.connected)


# An agent's view


async def test_a_view_writes_as_its_agent(own_server: NatsServer, bus: Bus, stack: AsyncExitStack) -> None:
    context = await attached(bus, stack, AgentContext(write_permissions=PERMISSIONS))
    view = context.acting_as("researcher", await connect(own_server, stack, "researcher"))
    watch = view.watch("findings")
    view.set("findings", [1])
    assert view.get("findings") == context.get("findings") == [1]
    await view.settle()
    await view.refresh()
    async with asyncio.timeout(2.0):
        assert await anext(watch) == Change("findings", [1], 1, "researcher", deleted=False)
    assert await view.update("findings", lambda value: [*value, 2]) == [1, 2]
    await view.delete("findings")
    await view.reach(3)
    assert (view.keys(), view.revision) == ([], 3)
    assert [past.writer for past in await view.history("findings")] == ["researcher"] * 3


async def test_settle_concerns_the_views_own_unheard_failures(
    bus: Bus, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    context = await attached(bus, stack)
    failing, heard, fine = (context.acting_as("agent", bus) for _ in range(3))
    failing.set("a", 1, expected=5)
    failing.set("d", 1, expected=5)
    fine.set("b", 1)
    with pytest.raises(ConflictError):
        await heard.set("c", 1, expected=5)
    await fine.settle()
    await heard.settle()
    with pytest.raises(ConflictError):
        await failing.settle()
    await failing.settle()
    await context.flush()  # what a run heard of is not told again


# Narrow rights


def narrow_config() -> str:
    operator = 'user: operator, password: "operator"'
    rights = permissions("researcher", [Right("read", ">"), Right("write", "findings")])
    allowed = ", ".join(f'"{subject}"' for subject in rights.publish)
    heard = ", ".join(f'"{subject}"' for subject in (*rights.subscribe, *rights.serve))
    agent = f"publish: {{ allow: [{allowed}] }}, subscribe: {{ allow: [{heard}] }}"
    return f"""authorization {{ users: [
        {{ {operator} }},
        {{ user: researcher, password: "researcher", permissions: {{ {agent} }} }},
    ] }}"""


async def narrow(server: NatsServer, stack: AsyncExitStack) -> tuple[AgentContext, SharedContext, Bus]:
    operator = await connect(server, stack, "operator", "operator")
    await operator.api(f"STREAM.CREATE.{STREAM}", BUCKET)
    bus = await connect(server, stack, "researcher", "researcher")
    context = await attached(bus, stack)
    return context, context.acting_as("researcher", bus), operator


async def test_all_of_it_works_with_narrow_rights(stack: AsyncExitStack) -> None:
    server = stack.enter_context(NatsServer(narrow_config()))
    context, view, operator = await narrow(server, stack)
    await operator.store("$KV.context.draft", b'"theirs"')
    await view.set("findings", [1])
    assert await view.update("findings", lambda value: [*value, 2]) == [1, 2]
    await view.refresh()
    assert view.get("draft") == "theirs"
    await operator.store("$KV.context.findings", b"[]")
    assert await view.update("findings", lambda value: [*value, 3]) == [3]
    assert [past.value for past in await view.history("findings")] == [[1], [1, 2], [], [3]]
    await view.settle()
    await context.flush()


async def test_the_broker_refuses_in_milliseconds(stack: AsyncExitStack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    server = stack.enter_context(NatsServer(narrow_config()))
    _, view, operator = await narrow(server, stack)
    await operator.store("$KV.context.draft", b'"theirs"')
    await view.refresh()
    began = time.monotonic()
    write = view.set("draft", "mine")
    assert view.get("draft") == "mine"
    with pytest.raises(RefusedError, match="refuses 'researcher'"):
        await write
    assert time.monotonic() - began < 2  # at once, and not after a timeout of seconds; a busy machine may take its time
    assert view.get("draft") == "theirs"
    view.set("draft", "mine")
    with pytest.raises(RefusedError):
        await view.settle()
    with pytest.raises(RefusedError):
        await view.update("draft", str)
    assert await last_sequence(operator) == 1


def test_values_of_any_json_kind_are_kept() -> None:
    values: list[Any] = [None, True, 0, 1.5, "", "text", [], {}, {"a": [1, {"b": None}]}]
    context = AgentContext()
    for value in values:
        context.set("a", value)
        assert context.get("a", "default") == value
        assert type(context.get("a")) is type(value)
