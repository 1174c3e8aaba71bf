"""Writes of the shared context that are sent at once: in order, stored once, and heard of when they fail."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import pytest

from natterjack import codec
from natterjack.bus import Bus, Message
from natterjack.context import CAUSE, AgentContext, Transaction
from natterjack.context.state import STREAM
from natterjack.errors import DisconnectedError, NotProvisionedError, PayloadError, StreamError
from natterjack.messages import Envelope
from natterjack.stores import STREAMS
from natterjack.testing import NatsServer, until

BUCKET = {"name": STREAM, **STREAMS[STREAM], "max_msg_size": 1000}
REFUSED = "x" * 2000
"""A value that is sent, and that the bucket's stream does not take."""


@pytest.fixture
async def bus(bus: Bus) -> Bus:
    """The operator's connection to a server that has the bucket."""
    await bus.api(f"STREAM.CREATE.{STREAM}", BUCKET)
    return bus


@pytest.fixture
async def context(bus: Bus, stack: AsyncExitStack) -> AgentContext:
    """A context on it."""
    context = AgentContext()
    await context.attach(bus)
    stack.push_async_callback(context.close)
    return context


@pytest.fixture
async def other(bus: Bus, stack: AsyncExitStack) -> Bus:
    """Another connection, which sees what is stored."""
    other = await Bus.connect(bus.server, principal="other")
    stack.push_async_callback(other.close)
    return other


class Deaf:
    """Loses what the server answers on a connection, as a network does that fails in one direction."""

    def __init__(self, bus: Bus) -> None:
        self.lost: list[Message] = []
        self._listeners = bus._nc._listeners
        self._inbox = next(sid for sid, listener in self._listeners.items() if listener == bus._mailbox.receive)
        self._listeners[self._inbox], self._hear = self.lost.append, self._listeners[self._inbox]

    def end(self) -> None:
        self._listeners[self._inbox] = self._hear


def increment(value: int | None) -> int:
    return (value or 0) + 1


def increment_a(tx: Transaction) -> int:
    tx.set("a", increment(tx.get("a")))
    return int(tx.get("a"))


def writing() -> list[str]:
    """Return the names of all tasks that write."""
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("natterjack write")]


async def stored(bus: Bus) -> list[tuple[str, Any]]:
    """Return all that was ever written, in the server's order."""
    found = [message async for message in bus.read(STREAM, "$KV.context.>")]
    return [((message.headers or {})["Nats-Subject"].split(".", 2)[2], codec.decode(message.data)) for message in found]


# Without a task


async def test_what_has_nothing_to_wait_for_takes_no_task(context: AgentContext) -> None:
    write = context.set("a", 1)
    assert writing() == []
    assert await write == 1
    updating: list[asyncio.Task[Any] | None] = []
    await context.update("a", lambda _: updating.append(asyncio.current_task()))
    assert updating == [asyncio.current_task()]
    first, second = context.set("a", 2), context.set("a", 3)
    assert writing() == ["natterjack write a"]
    assert (await second, await first) == (4, 3)
    await until(lambda: not writing())


async def test_a_write_tells_what_it_follows_from_however_it_is_sent(context: AgentContext, bus: Bus) -> None:
    run = SimpleNamespace(effect=Envelope(cause="event-7", depth=2))
    token = CAUSE.set(run)
    context.set("a", 1)
    context.set("a", 2)
    CAUSE.reset(token)
    await context.set("a", 3)
    found = [(message.headers or {})[codec.HEADER] async for message in bus.read(STREAM, "$KV.context.a")]
    assert found == ["s=operator;c=event-7;d=2", "s=operator;c=event-7;d=2", "s=operator"]


async def test_outside_the_event_loop_nothing_is_written_and_nothing_shows(context: AgentContext, bus: Bus) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        await asyncio.to_thread(context.set, "a", 1)
    assert context.get("a") is None
    await context.flush()
    assert await stored(bus) == []


# In order, and once


async def test_what_comes_after_a_write_under_way_waits_for_it_and_its_retry(
    context: AgentContext, bus: Bus, other: Bus
) -> None:
    deaf = Deaf(bus)
    first, second, beside = context.set("a", 1), context.set("a", 2), context.set("b", "beside")
    updating = asyncio.create_task(context.update("a", increment))
    await until(lambda: len(deaf.lost) == 2)
    last = asyncio.create_task(context.transact(increment_a))
    assert await stored(other) == [("a", 1), ("b", "beside")]
    assert context.get("a") == 2
    deaf.end()
    await bus._nc.force_reconnect()
    async with asyncio.timeout(10):
        assert (await first, await beside, await second, await updating, await last) == (1, 2, 3, 3, 4)
    assert await stored(other) == [("a", 1), ("b", "beside"), ("a", 2), ("a", 3), ("a", 4)]  # and nothing twice [R5]
    assert context.get("a") == 4


async def test_an_update_comes_after_the_writes_before_it(context: AgentContext) -> None:
    context.set("a", 1)
    context.set("a", 2)  # its task has not begun yet
    assert await context.update("a", increment) == 3


async def test_an_acknowledgement_that_does_not_come_is_asked_for_again(
    context: AgentContext, bus: Bus, other: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack.bus.streams.REPLY", 0.3)
    deaf = Deaf(bus)
    write = context.set("a", 1)
    await until(lambda: bool(deaf.lost))
    deaf.end()
    assert await write == 1
    assert await stored(other) == [("a", 1)]


@pytest.mark.parametrize("failing", [0, 1, 2])
async def test_a_failure_in_between_keeps_nobody_and_changes_no_order(
    context: AgentContext, bus: Bus, failing: int
) -> None:
    values: list[Any] = [1, 2, 3]
    values[failing] = REFUSED
    writes = [context.set("a", value) for value in values]
    updating = asyncio.create_task(context.update("a", increment))
    assert context.get("a") == values[-1]
    revisions = await asyncio.gather(*writes, return_exceptions=True)
    assert isinstance(revisions.pop(failing), StreamError)
    assert revisions == [1, 2]
    kept = [value for value in values if value != REFUSED]
    assert await updating == kept[-1] + 1
    assert [value for _, value in await stored(bus)] == [*kept, kept[-1] + 1]
    assert context.get("a") == kept[-1] + 1


async def test_order_holds_while_the_connection_comes_and_goes(context: AgentContext, bus: Bus, other: Bus) -> None:
    await other.api(f"STREAM.UPDATE.{STREAM}", {**BUCKET, "max_msgs_per_subject": 1000})
    written: list[tuple[str, int]] = []
    for number in range(20):
        deaf = Deaf(bus)
        for at in range(10):
            written.append((f"k{(number + at * at) % 4}", 10 * number + at))
            context.set(*written[-1])
            await asyncio.sleep(0)
            if at == number % 7:  # what comes later is answered
                deaf.end()
        await bus._nc.force_reconnect()
    async with asyncio.timeout(20):
        await context.flush()
    found = await stored(other)
    for key in ("k0", "k1", "k2", "k3"):
        assert [value for name, value in found if name == key] == [value for name, value in written if name == key]


# Failures


async def settle_view(context: AgentContext, bus: Bus) -> None:
    view = context.acting_as("operator", bus)
    view.set("a", REFUSED)
    await view.settle()


async def flush(context: AgentContext, _bus: Bus) -> None:
    context.set("a", REFUSED)
    await context.flush()


async def close(context: AgentContext, _bus: Bus) -> None:
    context.set("a", REFUSED)
    await context.close()


@pytest.mark.parametrize("end", [settle_view, flush, close])
async def test_what_nobody_awaited_is_logged_and_raised_by_whoever_settles(
    context: AgentContext,
    bus: Bus,
    caplog: pytest.LogCaptureFixture,
    end: Callable[[AgentContext, Bus], Awaitable[None]],
) -> None:
    await context.set("a", 1)
    with pytest.raises(StreamError):
        await end(context, bus)
    assert context.get("a") == 1
    assert [record.message.partition(",")[0] for record in caplog.records] == ["operator could not write 'a'"]
    await context.flush()  # it was heard of


@pytest.mark.parametrize("value", [REFUSED, "x" * 2_000_000], ids=["by the stream", "before it is sent"])
async def test_what_is_awaited_somehow_is_not_logged(
    context: AgentContext, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    context.set("a", 1)
    writes = [context.set(key, value) for key in ("a", "b")]
    errors = await asyncio.gather(*writes, return_exceptions=True)
    assert all(isinstance(error, StreamError | PayloadError) for error in errors)
    await context.flush()
    assert caplog.text == ""


async def test_a_bucket_that_is_gone_is_named(context: AgentContext, bus: Bus) -> None:
    await bus.api(f"STREAM.DELETE.{STREAM}")
    with pytest.raises(NotProvisionedError, match="context"):
        await context.set("a", 1)
    assert context.get("a") is None


async def test_a_connection_that_is_closed_meanwhile_fails_the_write(
    own_server: NatsServer, bus: Bus, other: Bus
) -> None:
    context = AgentContext()
    await context.attach(other)
    own_server.kill()
    write = context.set("a", 1)
    await other.close()
    with pytest.raises(DisconnectedError):
        await write
    assert context.get("a") is None
    await context.close()


async def test_a_close_that_is_cancelled_gives_up_what_was_sent(
    own_server: NatsServer, context: AgentContext, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    deaf = Deaf(bus)
    awaited, unheard, waiting = context.set("a", 1), context.set("b", 1), context.set("b", 2)
    waiters = [asyncio.create_task(awaiting(write)) for write in (awaited, waiting)]
    await until(lambda: len(deaf.lost) == 2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await context.close()
    for waiter in waiters:
        with pytest.raises(DisconnectedError, match="closed before the broker had it"):
            await waiter
    assert (context.get("a"), context.get("b"), unheard.ended) == (1, 1, True)  # as the feed has brought it
    assert caplog.text.count("could not write") == 1
    own_server.kill()
    await until(lambda: not bus.connected)
    assert writing() == []  # nobody tries again what was given up


async def awaiting(write: Awaitable[int]) -> int:
    return await write
