"""Requests end at their deadlines, though all share one timer."""

import asyncio
import math
import time

import pytest

from natterjack.bus import Bus
from natterjack.bus.mailbox import Mailbox, Message
from natterjack.errors import DisconnectedError, RequestTimeoutError
from natterjack.server import Server
from natterjack.testing import NatsServer, until


def silence(*_: object) -> None:
    """Send nothing."""


async def test_each_request_ends_at_its_own_deadline() -> None:
    mailbox = Mailbox("_INBOX.x", silence)
    ends: dict[float, float] = {}
    began = time.perf_counter()

    async def ask(timeout: float) -> None:
        with pytest.raises(RequestTimeoutError, match=r"x\.y"):
            await mailbox.request("x.y", b"", timeout=timeout)
        ends[timeout] = time.perf_counter() - began

    await asyncio.gather(*map(ask, [0.3, 0.05, 0.2, 0.1, 0.15]))
    assert all(timeout - 0.002 <= taken < timeout + 1 for timeout, taken in ends.items()), ends
    assert mailbox._waiting == {}


async def test_a_shorter_request_after_a_longer_one_does_not_wait_for_it() -> None:
    mailbox = Mailbox("_INBOX.x", silence)
    long = asyncio.create_task(mailbox.request("long", b"", timeout=60))
    await asyncio.sleep(0)
    with pytest.raises(RequestTimeoutError):
        async with asyncio.timeout(5):
            await mailbox.request("short", b"", timeout=0.02)
    assert not long.done()
    mailbox.disconnected(DisconnectedError("gone"), for_good=True)
    with pytest.raises(DisconnectedError, match="gone"):
        await long
    assert mailbox._alarm._due == math.inf


@pytest.mark.open_mode(reason="a subject of no right")
async def test_answered_requests_leave_no_timer_behind_once_it_is_closed(nats_server: NatsServer) -> None:
    bus = await Bus.connect(Server(nats_server.url), principal="mailbox")

    async def reply(message: Message) -> None:
        await bus.publish(message.reply, message.data)

    await bus.subscribe("mailbox.echo", reply)
    replies = await asyncio.gather(*(bus.request("mailbox.echo", b"%d" % n, timeout=1 + n) for n in range(50)))
    assert [int(message.data) for message in replies] == list(range(50))
    mailbox = bus._mailbox
    assert mailbox._waiting == {}
    await bus.close()
    assert mailbox._alarm._timer is not None
    assert mailbox._alarm._timer.cancelled()


async def test_the_timer_comes_back_only_while_somebody_waits() -> None:
    mailbox = Mailbox("_INBOX.x", silence)
    with pytest.raises(RequestTimeoutError):
        await mailbox.request("x", b"", timeout=0.01)
    await until(lambda: mailbox._alarm._due == math.inf)
    assert mailbox._alarm._timer is not None
