"""The bus: replies and refusals in milliseconds, reconnecting for ever, closing that never hangs."""

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from natterjack.bus import Bus, Message, error_of, login
from natterjack.bus.mailbox import status_of
from natterjack.errors import (
    DisconnectedError,
    NoRespondersError,
    PayloadError,
    RefusedError,
    RequestTimeoutError,
)
from natterjack.server import Server
from natterjack.testing import NatsServer, until

pytestmark = pytest.mark.open_mode(reason="on subjects of which no right speaks")

NARROW = """
authorization { users: [
    { user: "agent", password: "x", permissions: {
        publish: { allow: ["open.>", "$JS.API.STREAM.INFO.OPEN"] }, subscribe: { allow: ["_INBOX.agent.>", "open.>"] }
    } }
    { user: "free", password: "x" }
] }
"""

CLUSTERED = """
server_name: "n1"
cluster { name: "some", listen: "127.0.0.1:-1", routes: ["nats://127.0.0.1:1"] }
"""


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    async with connected(nats_server) as bus:
        yield bus


@asynccontextmanager
async def connected(server: NatsServer, principal: str = "agent", user: str | None = None) -> AsyncIterator[Bus]:
    password = "x" if user else None
    bus = await Bus.connect(Server(server.url, user=user, password=password), principal=principal)
    try:
        yield bus
    finally:
        await bus.close()


async def echo(bus: Bus, subject: str) -> None:
    async def answer(message: Message) -> None:
        await bus.publish(message.reply, message.data, headers={"X": "1"})

    await bus.subscribe(subject, answer)


def faster_than(seconds: float) -> AbstractAsyncContextManager[None]:
    """Fail if it took longer: less than the timeout that would have ended it, and more than a busy machine needs."""

    @asynccontextmanager
    async def timed() -> AsyncIterator[None]:
        began = time.monotonic()
        yield
        assert time.monotonic() - began < seconds

    return timed()


# Requests


async def test_request_and_reply(bus: Bus) -> None:
    await echo(bus, "bus.echo")
    reply = await bus.request("bus.echo", b"hello", timeout=2)
    assert (reply.data, reply.headers) == (b"hello", {"X": "1"})
    assert status_of(reply) == ""
    assert error_of(reply) is None


async def test_many_requests_at_once_keep_apart(bus: Bus) -> None:
    await echo(bus, "bus.many")
    replies = await asyncio.gather(*(bus.request("bus.many", b"%d" % n, timeout=5) for n in range(500)))
    assert [int(reply.data) for reply in replies] == list(range(500))


async def test_absent_responder_is_known_at_once(bus: Bus) -> None:
    async with faster_than(1.0):
        with pytest.raises(NoRespondersError, match=r"nobody answers on 'bus\.nobody'"):
            await bus.request("bus.nobody", timeout=5)
        with pytest.raises(NoRespondersError):
            await bus.request_many("bus.nobody", timeout=5, until=lambda _: True)
        assert await bus.gather("bus.nobody", window=5) == []


async def test_silent_responder_times_out(bus: Bus) -> None:
    async def silent(_: Message) -> None: ...

    await bus.subscribe("bus.silent", silent)
    with pytest.raises(RequestTimeoutError, match=r"no reply on 'bus\.silent' within 0\.05 s") as caught:
        await bus.request("bus.silent", timeout=0.05)
    assert isinstance(caught.value, TimeoutError)


async def test_request_many_and_gather(bus: Bus) -> None:
    async def count(message: Message) -> None:
        for n in range(3):
            await bus.publish(message.reply, b"%d" % n)

    await bus.subscribe("bus.count", count)
    replies = await bus.request_many("bus.count", timeout=2, until=lambda reply: reply.data == b"2")
    assert [reply.data for reply in replies] == [b"0", b"1", b"2"]
    assert len(await bus.gather("bus.count", window=0.1)) == 3
    with pytest.raises(RequestTimeoutError):
        await bus.request_many("bus.count", timeout=0.1, until=lambda _: False)


async def test_service_errors_are_read_leniently(bus: Bus) -> None:
    async def fail(message: Message) -> None:
        await bus.publish(message.reply, headers={"Nats-Service-Error-Code": message.data.decode()})

    await bus.subscribe("bus.fail", fail)
    for sent, code in ((b"429", 429), (b"many", 500), (b"-1", 500)):
        assert error_of(await bus.request("bus.fail", sent, timeout=2)) == (code, "")


async def test_late_and_stray_replies_do_no_harm(bus: Bus) -> None:
    for _ in range(3):
        await bus.publish(f"{bus._mailbox.prefix}.1", b"stray")
        await bus.publish(f"{bus._mailbox.prefix}.zzz", b"stray")
    await echo(bus, "bus.after")
    assert (await bus.request("bus.after", b"fine", timeout=2)).data == b"fine"


# Refusals


async def test_a_refused_subject_is_known_at_once() -> None:
    with NatsServer(NARROW) as server:
        async with connected(server, user="agent") as bus:
            calls: list[Callable[[], object]] = [
                lambda: bus.request("Forbidden.Ask", timeout=5),
                lambda: bus.request_many("forbidden.many", timeout=5, until=lambda _: True),
                lambda: bus.store("forbidden.store", b""),
                lambda: bus.request("forbidden.subscription.made", timeout=5),
                lambda: bus.api("STREAM.INFO.SECRET"),
                lambda: bus.subscribe("forbidden.feed", nothing),
                lambda: bus.subscribe("forbidden.feed", nothing, queue="q"),
            ]
            for call in calls:
                async with faster_than(1.0):
                    with pytest.raises(RefusedError, match="the broker refuses 'agent' to") as caught:
                        await call()  # type: ignore[misc]
                assert isinstance(caught.value, PermissionError)
            await bus.subscribe("open.feed", nothing)
            assert bus.connected
            assert len(bus._nc._subs) == 2  # its inbox and the one allowed


async def nothing(_: Message) -> None: ...


async def test_a_refused_publish_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with NatsServer(NARROW) as server:
        async with connected(server, user="agent") as bus:
            await bus.publish("forbidden.say", b"")
            await bus.flush()
    assert "refuses 'agent' to publish on 'forbidden.say'" in caplog.text


async def test_a_refusal_names_the_subject_as_it_is_and_fails_no_other() -> None:
    with NatsServer(NARROW) as server:
        async with connected(server, user="free") as free, connected(server, user="agent") as bus:
            await echo(free, "open.door")
            asked = bus.ask("open.door", b"please", timeout=5, headers=b"", fails_on_disconnect=False)
            with pytest.raises(RefusedError, match=r"to publish on 'Open\.door'$"):
                await bus.request("Open.door", timeout=5)
            assert (await asked).data == b"please"
            with pytest.raises(RefusedError, match=r"to subscribe to 'Open\.door'$"):
                await bus.subscribe("Open.door", nothing)


async def test_a_subscription_lost_after_a_reconnect_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with NatsServer(NARROW) as server:
        async with connected(server, user="agent") as bus:
            await bus.subscribe("open.feed", nothing)
            server.config = NARROW.replace('"_INBOX.agent.>", "open.>"', '"_INBOX.agent.>"')
            server.kill()
            server.start()
            await until(lambda: "refuses 'agent' to subscribe to 'open.feed'" in caplog.text)


async def test_a_close_that_is_cancelled_closes_all_the_same(nats_server: NatsServer) -> None:
    async with connected(nats_server) as hearing:
        await hearing.listen("audit.agent.guard.refuse", lambda _: None)  # and acknowledges nothing
        bus = await Bus.connect(Server(nats_server.url), principal="agent")
        bus.audit.refused("emit", "x", "no")
        closing = asyncio.create_task(bus.close())
        await asyncio.sleep(0)
        assert not bus.closed.is_set()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert bus.closed.is_set()
        assert not bus.connected


# Sizes


async def test_too_large_is_refused_before_it_is_sent(bus: Bus) -> None:
    await echo(bus, "bus.large")
    with pytest.raises(PayloadError, match="payload and headers have 1,048,577 bytes, but the server takes 1,048,576"):
        await bus.publish("bus.large", b"x" * (bus.max_payload + 1))
    with pytest.raises(PayloadError):
        await bus.publish("bus.large", b"", headers={"X": "y" * bus.max_payload})
    with pytest.raises(PayloadError):
        await bus.publish("bus.large", b"x" * (bus.max_payload - 17_000), headers={"X": "y" * 17_000})
    with pytest.raises(PayloadError):
        await bus.request("bus.large", b"x" * (bus.max_payload - 17), headers={"X": "y"}, timeout=2)
    for data, headers in ((b"x" * bus.max_payload, None), (b"x" * (bus.max_payload - 18), {"X": "y"})):
        await bus.publish("bus.large", data, headers=headers)
    await bus.flush()
    assert bus.connected


# Sending


async def test_what_is_sent_in_one_turn_goes_together_when_it_ends(bus: Bus) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await bus.listen("bus.turn", heard.put_nowait)
    over = asyncio.Event()
    for number in range(5):
        bus.send("bus.turn", b"%d" % number)
    asyncio.get_running_loop().call_soon(over.set)
    assert len(bus._nc._pending) == 5
    await over.wait()
    assert bus._nc._pending == []
    assert [(await asyncio.wait_for(heard.get(), 2)).data for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]


async def test_who_sends_to_a_server_that_does_not_read_has_to_wait(own_server: NatsServer) -> None:
    async with connected(own_server) as bus, connected(own_server, "other") as other:
        heard: asyncio.Queue[Message] = asyncio.Queue()
        await other.listen("bus.stuck", heard.put_nowait)
        own_server.freeze()
        counter = itertools.count()
        sending = asyncio.create_task(send_on(bus, "bus.stuck", counter))
        await until(lambda: unsent(bus) > 1_000_000)
        assert next(counter) < 200  # a few megabytes: what the transport and the system took
        own_server.thaw()
        await until(lambda: heard.qsize() > 300)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        numbers = [int(heard.get_nowait().data) for _ in range(300)]
        assert numbers == sorted(set(numbers))


def unsent(bus: Bus) -> int:
    """Return how many bytes the transport holds, because the server does not read."""
    return int(bus._nc._transport._io_writer.transport.get_write_buffer_size())  # type: ignore[union-attr]


async def send_on(bus: Bus, subject: str, counter: Iterator[int]) -> None:
    for number in counter:
        await bus.publish(subject, b"%d" % number + b" " * 100_000)


async def test_who_waits_to_send_is_told_when_the_connection_is_closed(own_server: NatsServer) -> None:
    async with connected(own_server) as bus:
        own_server.freeze()
        sending = [asyncio.create_task(send_on(bus, "bus.stuck", itertools.count())) for _ in range(3)]
        await until(lambda: unsent(bus) > 1_000_000 and bus._nc._flush_queue.qsize() > 1)
        await bus.close(0.1)
        for each in sending:
            with pytest.raises(DisconnectedError, match=r"the connection (is|was) closed"):
                await asyncio.wait_for(each, 2)
        assert unsent(bus) == 0  # what cannot be sent does not keep the transport open


async def test_what_is_sent_as_the_connection_breaks_is_kept(own_server: NatsServer) -> None:
    async with connected(own_server) as bus:
        heard: asyncio.Queue[Message] = asyncio.Queue()
        await bus.listen("bus.broken", heard.put_nowait)
        bus._nc._transport._io_writer.transport.abort()  # type: ignore[union-attr]
        assert bus.connected  # nats-py has yet to see it
        bus.send("bus.broken", b"kept")
        assert (await asyncio.wait_for(heard.get(), 5)).data == b"kept"


# Subscriptions and flush


async def test_flush_confirms_subscriptions(nats_server: NatsServer, bus: Bus) -> None:
    async with connected(nats_server, "other") as other:
        for n in range(50):
            await echo(bus, f"bus.confirmed.{n}")
            assert (await other.request(f"bus.confirmed.{n}", b"x", timeout=1)).data == b"x"


async def test_cancelled_flush_leaves_the_connection_alive(bus: Bus) -> None:
    await echo(bus, "bus.alive")
    for _ in range(20):
        task = asyncio.create_task(bus.flush())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        subscribing = asyncio.create_task(bus.subscribe("bus.never", nothing))
        await asyncio.sleep(0)
        subscribing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await subscribing
    assert (await bus.request("bus.alive", b"yes", timeout=2)).data == b"yes"
    assert len(bus._nc._subs) == 2


async def test_a_header_that_is_no_text_does_not_deafen(bus: Bus) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()

    async def hear(message: Message) -> None:
        heard.put_nowait(message)

    await bus.subscribe("bus.raw", hear)
    for header in (
        b"NATS/1.0 \xff\xff\xff\r\n\r\n",
        b"NATS/1.0 503 \xff\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\xff: \xff\r\n\r\n",
    ):
        await bus._nc._send_command(b"HPUB bus.raw %d %d\r\n%s\r\n" % (len(header), len(header), header))
    await bus.publish("bus.raw", b"after")
    await bus.flush()
    messages = [await asyncio.wait_for(heard.get(), 2) for _ in range(4)]
    assert messages[3].data == b"after"


async def test_a_subject_that_is_no_text_does_not_deafen(nats_server: NatsServer, bus: Bus) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await bus.subscribe("odd.>", heard.put)
    reader, writer = await asyncio.open_connection("127.0.0.1", nats_server.port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false}\r\nPUB odd.\xff\xfe 1\r\n1\r\nPUB odd.x _INBOX.\xff 1\r\n2\r\nPING\r\n')
    assert await reader.readline() == b"PONG\r\n"
    writer.close()
    messages = [await asyncio.wait_for(heard.get(), 2) for _ in range(2)]
    assert [message.data for message in messages] == [b"1", b"2"]
    await bus.flush(2)


async def test_one_subject_is_subscribed_several_times_at_once(bus: Bus) -> None:
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await asyncio.gather(*(bus.subscribe("several.one", heard.put) for _ in range(3)))
    await bus.publish("several.one", b"1")
    await until(lambda: heard.qsize() == 3)
    assert bus._subscribing == []


async def test_drain_handles_what_has_arrived_and_unsubscribe_does_not(bus: Bus) -> None:
    handled: list[bytes] = []

    async def slow(message: Message) -> None:
        await asyncio.sleep(0)
        handled.append(message.data)

    subscription = await bus.subscribe("bus.drain", slow)
    for n in range(50):
        await bus.publish("bus.drain", b"%d" % n)
    await subscription.drain()
    assert len(handled) == 50
    await subscription.drain()
    await subscription.unsubscribe()
    await bus.publish("bus.drain", b"late")
    await bus.flush()
    assert len(handled) == 50


async def test_a_slow_subscriber_is_told(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    lost, gate = asyncio.Event(), asyncio.Event()

    async def wait(_: Message) -> None:
        await gate.wait()

    subscription = await bus.subscribe("bus.slow", wait, on_lost=lost.set)
    subscription.raw._pending_queue._maxsize = 5  # type: ignore[attr-defined]  # nats-py takes half a million before it complains
    for _ in range(20):
        await bus.publish("bus.slow", b"")
    await asyncio.wait_for(lost.wait(), 2)
    assert "came faster than they were handled" in caplog.text
    gate.set()
    await subscription.unsubscribe()
    assert not bus._on_slow


# Closing


async def test_close_fails_what_is_outstanding_at_once(nats_server: NatsServer) -> None:
    async with connected(nats_server) as bus:
        await bus.subscribe("bus.open", nothing)
        waiting = asyncio.create_task(bus.request("bus.open", timeout=30))
        await bus.flush()
        async with faster_than(0.5):
            await bus.close()
            with pytest.raises(DisconnectedError, match="the connection was closed"):
                await waiting
        await bus.close()
        assert bus.closed.is_set()
        for call in (bus.publish("x"), bus.request("x", timeout=5), bus.subscribe("x", nothing), bus.flush()):
            async with faster_than(1.0):
                with pytest.raises(DisconnectedError, match="the connection was closed"):
                    await call


async def test_close_sends_what_is_buffered(nats_server: NatsServer, bus: Bus) -> None:
    heard: list[bytes] = []

    async def hear(message: Message) -> None:
        heard.append(message.data)

    await bus.subscribe("bus.last", hear)
    other = await Bus.connect(Server(nats_server.url), principal="other")
    for n in range(1000):
        await other.publish("bus.last", b"%d" % n)
    await other.close()
    await until(lambda: len(heard) == 1000)
    assert heard == [b"%d" % n for n in range(1000)]


async def test_nothing_is_left_after_close(nats_server: NatsServer) -> None:
    before = asyncio.all_tasks()
    async with connected(nats_server) as bus:
        await bus.subscribe("bus.tasks", nothing)
    await until(lambda: asyncio.all_tasks() == before, 1)


async def test_close_while_the_server_is_away(own_server: NatsServer) -> None:
    before = asyncio.all_tasks()
    bus = await Bus.connect(Server(own_server.url), principal="agent")
    own_server.kill()
    await until(lambda: not bus.connected)
    await bus.publish("anything", b"buffered")
    async with faster_than(1):
        await bus.close()
    await until(lambda: asyncio.all_tasks() == before, 1)


# Reconnecting


async def test_a_connection_that_falls_silent_is_given_up(
    own_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 3 * login.PING_INTERVAL < 30  # a team is healthy again within 30 s, whatever happened
    monkeypatch.setattr(login, "PING_INTERVAL", 0.1)
    async with connected(own_server) as bus:
        own_server.freeze()
        await until(lambda: not bus.connected, 5)
        own_server.thaw()
        await bus.until_connected(10)


async def test_it_reconnects_and_goes_on(own_server: NatsServer) -> None:
    async with connected(own_server) as bus, connected(own_server, "other") as other:
        heard: list[bytes] = []
        reconnects: list[float] = []

        async def hear(message: Message) -> None:
            heard.append(message.data)

        await other.subscribe("bus.on", hear)
        async with bus.reconnects(lambda: reconnects.append(time.monotonic())):
            for expected in ([b"0"], [b"0", b"1"]):
                own_server.kill()
                await until(lambda: not bus.connected and not other.connected)
                with pytest.raises(DisconnectedError, match=r"away since more than 0\.01 s"):
                    await bus.flush(0.01)
                own_server.start()
                await other.until_connected(5)
                await bus.publish("bus.on", expected[-1])
                await until(partial(heard.__eq__, expected))
        assert len(reconnects) == 2


async def test_what_is_published_meanwhile_arrives(own_server: NatsServer) -> None:
    async with connected(own_server) as bus:
        heard: list[int] = []

        async def hear(message: Message) -> None:
            heard.append(int(message.data))

        await bus.subscribe("bus.while", hear)
        own_server.kill()
        await until(lambda: not bus.connected)
        for n in range(100):
            await bus.publish("bus.while", b"%d" % n)
        own_server.start()
        await until(lambda: len(heard) == 100)
        assert heard == list(range(100))


async def test_a_full_buffer_is_an_error(own_server: NatsServer) -> None:
    async with connected(own_server) as bus:
        own_server.kill()
        await until(lambda: not bus.connected)
        for _ in range(2):
            await bus.publish("bus.full", b"x" * 1_000_000)
        with pytest.raises(DisconnectedError, match="the buffer for it is full"):
            await bus.publish("bus.full", b"x" * 1_000_000)


async def test_what_may_be_repeated_fails_with_the_connection(own_server: NatsServer) -> None:
    async with connected(own_server) as bus:
        await bus.subscribe("bus.gone", nothing)
        waiting = asyncio.create_task(bus.request("bus.gone", timeout=30, fails_on_disconnect=True))
        patient = asyncio.create_task(bus.request("bus.gone", timeout=0.5))
        flushing = asyncio.create_task(stuck_flush(bus, own_server))
        with pytest.raises(DisconnectedError, match="went before a reply came"):
            await asyncio.wait_for(waiting, 2)
        with pytest.raises(RequestTimeoutError):
            await patient
        await flushing


async def stuck_flush(bus: Bus, server: NatsServer) -> None:
    """A flush that the server never answers fails when the connection goes, not after its timeout."""
    await bus.flush()
    server.freeze()
    flush = asyncio.create_task(bus.flush(30))
    await asyncio.sleep(0)
    server.kill()
    with pytest.raises(DisconnectedError, match="did not confirm: the connection went"):
        await asyncio.wait_for(flush, 2)


async def test_a_server_that_stores_nothing_is_left_for_another_and_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.bus.streams.REPLY", 0.1)
    monkeypatch.setattr("natterjack.bus.silence.APART", 0.05)
    with NatsServer() as cut_off, NatsServer() as other:

        def shuffle(servers: list[Any]) -> None:
            servers.sort(key=lambda server: server.uri.port != cut_off.port)

        monkeypatch.setattr("nats.aio.client.shuffle", shuffle)
        async with connected(cut_off) as silent, connected(other) as storing:
            await silent.subscribe("work.x", nothing)
            await silent.flush()
            await storing.api("STREAM.CREATE.WORK", {"name": "WORK", "subjects": ["work.>"]})
            bus = await Bus.connect(Server(f"{cut_off.url},{other.url}"), principal="agent")
            assert port_of(bus) == cut_off.port
            assert (await bus.store("work.x", b"1")).sequence == 1
            await storing.api("STREAM.DELETE.WORK")
            await storing.subscribe("work.x", nothing)
            await storing.flush()
            with pytest.raises(RequestTimeoutError):
                await bus.store("work.x", b"2", budget=0.5)
            assert port_of(bus) == other.port
            await bus.close()


def port_of(bus: Bus) -> int | None:
    """Return at which server it is."""
    return bus._nc.connected_url.port if bus._nc.connected_url else None


async def test_the_only_server_is_not_left(monkeypatch: pytest.MonkeyPatch, own_server: NatsServer) -> None:
    monkeypatch.setattr("natterjack.bus.streams.REPLY", 0.1)
    monkeypatch.setattr("natterjack.bus.silence.APART", 0.05)
    again: list[bool] = []
    async with connected(own_server) as bus, bus.reconnects(lambda: again.append(True)):
        await bus.subscribe("work.x", nothing)
        with pytest.raises(RequestTimeoutError):
            await bus.store("work.x", b"1", budget=0.5)
        await bus.flush()
    assert again == []


async def test_changed_credentials_are_reported_once_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "natterjack")
    with NatsServer('authorization { token: "x" }') as server:
        bus = await Bus.connect(Server(server.url, token="x"), principal="agent")
        try:
            server.kill()
            server.config = 'authorization { token: "y" }'
            server.start()
            await until(lambda: caplog.text.count("lets 'agent' in no more") == 1)
            server.kill()
            server.config = 'authorization { token: "x" }'
            server.start()
            await bus.until_connected(10)
            assert caplog.text.count("in no more") == 1
            assert caplog.text.count("cannot reconnect") <= 1  # to the server that was away
        finally:
            await bus.close()


async def test_a_user_who_is_thrown_out_knows_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "natterjack")
    me, you = '{ user: "me", password: "x" }', '{ user: "you", password: "x" }'
    with NatsServer(f"authorization {{ users: [ {me}, {you} ] }}") as server:
        bus = await Bus.connect(Server(server.url, user="me", password="x"), principal="agent")
        server.reload(f"authorization {{ users: [ {you} ] }}")
        await until(lambda: "lets 'agent' in no more (Authorization Violation)" in caplog.text)
        await bus.close()


# A cluster


async def test_who_answers_may_be_heard_of_a_moment_later_in_a_cluster(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that was just made: the server of who asks may not know yet where it is."""
    tries: list[str] = []

    async def request(self: Bus, subject: str, *args: Any, **kwargs: Any) -> Message:
        tries.append(subject)
        return await asked(self, subject, *args, **kwargs)

    asked = Bus.request
    monkeypatch.setattr(Bus, "request", request)
    with NatsServer(CLUSTERED) as server:
        async with connected(server) as bus, connected(server, "other") as other, asyncio.TaskGroup() as tasks:
            last = tasks.create_task(bus.last("LOG", "log.x"))
            await until(lambda: len(tries) > 1)  # nobody answered the first
            await echo(other, tries[0])
            found = await last
            assert found is not None
            assert found.headers == {"X": "1"}
            with pytest.raises(NoRespondersError):
                await bus.last("LOG", "log.y")
    tries.clear()
    async with connected(nats_server) as bus:
        with pytest.raises(NoRespondersError):
            await bus.last("LOG", "log.y")
    assert len(tries) == 1  # there is no other server
