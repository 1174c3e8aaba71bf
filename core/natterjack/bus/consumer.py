"""A continuous pull from a durable consumer, for free slots only.

nats-py offers `fetch`, which waits between batches. This keeps requests open at the server, asks again as slots
become free, tells the server about every message it holds (`+WPI`), and comes back after restarts and lost requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import orjson

from natterjack.bus.connection import Bus
from natterjack.bus.mailbox import Message
from natterjack.bus.subscription import Subscription
from natterjack.errors import BrokerError, DisconnectedError, NotProvisionedError
from natterjack.specs import ConsumerSpec

log = logging.getLogger("natterjack.consumer")

HEARTBEAT: Final = 5.0
EXPIRES: Final = 60.0
RETRY_PAUSE: Final = 0.25
"""Seconds before asking again where the server had no answer, e.g. while it elects a leader."""

_ACK: Final = b"+ACK"
_NAK: Final = b"-NAK"
_PROGRESS: Final = b"+WPI"


class Place(NamedTuple):
    """Where a delivered message stands, read from its ack subject.

    Attributes:
        stream: Its stream.
        delivered: How often the server has delivered it; no measure of attempts [R2].
        sequence: Its stream sequence.
        time: When it was stored, Unix nanoseconds.
        pending: How many more wait.
    """

    stream: str
    delivered: int
    sequence: int
    time: int
    pending: int


def place_of(message: Message) -> Place:
    """Read `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<sequence>.<…>.<time>.<pending>[.<…>]`."""
    parts = message.reply.split(".")
    if len(parts) > 9:
        del parts[2:4]
    return Place(parts[2], int(parts[4]), int(parts[5]), int(parts[7]), int(parts[8]))


def consumer_sequence(message: Message) -> int:
    """Return the number of a delivery among all of its consumer; see `place_of` for where it stands."""
    parts = message.reply.split(".")
    return int(parts[6 if len(parts) == 9 else 8])


class Consumer:
    """Pulls from one durable consumer, at most `slots` messages at a time.

    Args:
        bus: Connection of the agent.
        spec: Which consumer.
        deliver: Called with each message; must not block. The message counts as held until `ack` or `nak`.
        slots: How many messages may be held at once.
        heartbeat: Seconds between the server's signs of life while it has nothing to deliver.
        group: Priority group of a consumer that delivers to one client at a time (ADR-42).
    """

    def __init__(
        self,
        bus: Bus,
        spec: ConsumerSpec,
        deliver: Callable[[Message], None],
        *,
        slots: int,
        heartbeat: float = HEARTBEAT,
        group: str = "",
    ) -> None:
        self._bus, self.spec, self._deliver, self._slots = bus, spec, deliver, slots
        self._window = slots
        self.progress_every, self._heartbeat = HEARTBEAT, heartbeat  # the first until the server's ack wait is known
        self._group, self._pin = group, ""
        self._held: dict[str, Message] = {}
        self._busy: set[str] = set()
        self._asked = 0
        self._heard = self._told = time.monotonic()
        self._wake = asyncio.Event()
        self._stopping = False
        self._gone: NotProvisionedError | None = None
        self._doubted = False
        self._inbox = f"_INBOX.{bus.principal}.{bus.new_id()}"
        self._next = f"{bus.server.prefix}.CONSUMER.MSG.NEXT.{spec.stream}.{spec.name}"

    async def run(self) -> None:
        """Pull until cancelled; then no message is taken any more, and those held may still be finished.

        Raises:
            NotProvisionedError: The consumer does not exist, or was removed.
        """
        subscription = await self._begin()
        try:
            async with self._bus.reconnects(self._start_over):
                while self._gone is None:
                    await self._step()
                raise self._gone
        finally:
            self._stopping = True
            await asyncio.shield(subscription.drain())  # what still arrives goes back at once, for another replica

    async def _begin(self) -> Subscription:
        """Look for the consumer and listen; a server that goes away meanwhile is waited for."""
        while True:
            try:
                await self._check()
                return await self._bus.listen(self._inbox, self._receive)
            except BrokerError as error:
                if not error.retry or self._bus.closed.is_set():
                    raise
                log.debug("%s: cannot begin with %s, trying again: %s", self._bus.principal, self.spec.name, error)
            await asyncio.sleep(RETRY_PAUSE)

    async def _step(self) -> None:
        if time.monotonic() - self._told >= self.progress_every:
            self.tell_progress()
        if self._doubted:
            await self._check_again()
        if self._asked and time.monotonic() - self._heard > 2 * self._heartbeat + 1:
            log.info("%s: the server is silent about %s, asking again", self._bus.principal, self.spec.name)
            self._start_over()
        self._pull()
        self._wake.clear()
        try:
            async with asyncio.timeout(min(self._heartbeat, self.progress_every)):
                await self._wake.wait()
        except TimeoutError:
            return  # time to look around

    async def _check(self) -> None:
        found = await self._bus.api(f"CONSUMER.INFO.{self.spec.stream}.{self.spec.name}")
        self.progress_every = found["config"]["ack_wait"] / 3e9

    async def outstanding(self) -> int:
        """Ask how many messages the server has delivered, to whomever, that are not acknowledged; make room for all.

        Else what waits here for one that is elsewhere could fill all the slots, and that one never come.
        """
        info = await self._bus.api(f"CONSUMER.INFO.{self.spec.stream}.{self.spec.name}")
        count = int(info["num_ack_pending"])
        self._slots = max(self._window, count)
        self._wake.set()
        return count

    async def _check_again(self) -> None:
        """Nobody answered a pull: the consumer is gone, or its leader is being elected."""
        self._doubted = False
        try:
            await self._check()
        except NotProvisionedError:
            raise
        except BrokerError as error:
            log.debug("%s: cannot look for consumer %s: %s", self._bus.principal, self.spec.name, error)

    def _pull(self) -> None:
        free = self._slots - len(self._busy) - self._asked
        few = self._slots // 8 if self._asked else 0  # the server lets a few hundred requests wait
        if free <= few or self._asked > self._slots // 2 or not self._bus.connected:
            return
        body: dict[str, object] = {
            "batch": free,
            "expires": int(EXPIRES * 1e9),
            "idle_heartbeat": int(self._heartbeat * 1e9),
        }
        if self._group:
            body |= {"group": self._group, **({"id": self._pin} if self._pin else {})}
        self._asked += free
        self._heard = time.monotonic()
        self._send(self._next, orjson.dumps(body), reply=self._inbox)

    def _receive(self, message: Message) -> None:
        self._heard = time.monotonic()
        status = (message.headers or {}).get("Status") if not message.reply else None
        if status is not None:
            self._on_status(status, message)
            return
        self._asked = max(0, self._asked - 1)
        if self._group:
            self._pin = (message.headers or {}).get("Nats-Pin-Id", "")
        if self._stopping or len(self._busy) >= self._slots:  # it answers a request from before a reconnect
            self._send(message.reply, _NAK)
            return
        self._held[message.reply] = message
        self._busy.add(message.reply)
        self._deliver(message)
        if self._asked <= self._slots // 2:
            self._pull()

    def _on_status(self, status: str, message: Message) -> None:
        if status == "100":  # idle heartbeat
            return
        headers = message.headers or {}
        description = headers.get("Description", "").lower()
        if "consumer deleted" in description:
            self._gone = NotProvisionedError(f"consumer {self.spec.name!r} of stream {self.spec.stream!r}")
            self._wake.set()
            return
        # What this request will no longer deliver: 408 it expired, 409 a leader changed or the server stops.
        self._asked = max(0, self._asked - int(headers.get("Nats-Pending-Messages", self._asked)))
        self._doubted = self._doubted or status == "503"
        if status == "423":  # another client is pinned now: wait for one's turn, without the old pin
            self._pin = ""
        if status in ("408", "423"):
            self._wake.set()
        else:
            asyncio.get_running_loop().call_later(RETRY_PAUSE, self._wake.set)

    def _start_over(self) -> None:
        """Forget requests that a restart or a lost connection has ended."""
        self._asked = 0
        self._wake.set()

    def tell_progress(self) -> None:
        """Tell the server that what is held is still worked on; `run` does so by itself."""
        self._told = time.monotonic()
        for reply in list(self._held):
            self._send(reply, _PROGRESS)

    def release(self, message: Message) -> None:
        """Free the slot of a message whose verdict follows; the server still hears that it is held."""
        self._busy.discard(message.reply)
        if self._asked <= self._slots // 2 and not self._stopping:
            self._wake.set()

    def ack(self, message: Message) -> None:
        """Tell the server that the message is done with."""
        self._finish(message, _ACK)

    def nak(self, message: Message, delay: float = 0.0) -> None:
        """Give the message back, to be delivered again after `delay` seconds."""
        self._finish(message, _NAK + (b' {"delay": %d}' % int(delay * 1e9) if delay else b""))

    def drop(self, message: Message) -> None:
        """Let go of a message that another replica took over."""
        self._held.pop(message.reply, None)
        self.release(message)

    def _finish(self, message: Message, verdict: bytes) -> None:
        if self._held.pop(message.reply, None) is not None:
            self._send(message.reply, verdict)
        if message.reply in self._busy:
            self.release(message)

    def _send(self, subject: str, data: bytes, reply: str = "") -> None:
        try:
            self._bus.send(subject, data, reply=reply)
        except DisconnectedError as error:  # the server will deliver again; nothing is lost
            log.debug("%s: %s", self._bus.principal, error)
