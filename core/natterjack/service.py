"""NATS micro services: discovery and statistics; and `agents`, the one of an agent, with its heartbeats.

As ADR-32 and the Synadia Agent Protocol 0.3 (section 8 for heartbeats) want it.

Our own, because nats-py's service handles requests one by one and drops what is queued when it stops.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from natterjack import addresses, subjects
from natterjack.bus import Bus, Message, Subscription
from natterjack.codec import decode
from natterjack.errors import DisconnectedError, NoRespondersError, PayloadError, RefusedError, RequestTimeoutError

log = logging.getLogger("natterjack.service")

SERVICE: Final = "agents"
QUEUE: Final = "agents"
VERSION: Final = "0.1.0"
PROTOCOL: Final = "0.3"
"""Version of the Synadia Agent Protocol that the prompt endpoint speaks."""
INTERVAL: Final = 30
"""Seconds between two heartbeats."""
_FIND: Final = 1.0
LOAD: Final = ("slots", "busy", "answering", "waiting")


@dataclass(slots=True)
class Endpoint:
    """An endpoint of a micro service, and what it has done so far.

    Attributes:
        name: Its name.
        subject: Where it takes requests.
        metadata: What it tells about itself.
        num_requests: How many it had.
        num_errors: How many of these it refused, or failed with.
        last_error: Code and text of the last one.
        processing_time: Nanoseconds it worked, as ADR-32 wants; all the seconds of its requests together.
        queue: Queue group that shares its work.
    """

    name: str
    subject: str
    metadata: dict[str, str] = field(default_factory=dict)
    num_requests: int = 0
    num_errors: int = 0
    last_error: str = ""
    processing_time: int = 0
    queue: str = QUEUE

    def info(self) -> dict[str, Any]:
        """What it is."""
        return {"name": self.name, "subject": self.subject, "queue_group": self.queue, "metadata": self.metadata}

    def stats(self) -> dict[str, Any]:
        """What it did."""
        average = self.processing_time // self.num_requests if self.num_requests else 0
        counted = {name: value for name, value in asdict(self).items() if name not in ("metadata", "queue")}
        return {**counted, "queue_group": self.queue, "average_processing_time": average}


class MicroService:
    """Answers `$SRV.PING`, `INFO` and `STATS` (ADR-32) for a service in one process; the work is done elsewhere.

    Args:
        bus: Its connection.
        name: Of the service; letters, digits, `-` and `_`.
        endpoints: What it has.
        description: For humans.
        version: Semantic version.
        metadata: What else it tells about itself.

    Attributes:
        id: Of this instance.
        load: Returns how busy it is, the `data` of its statistics.
    """

    __slots__ = (
        *("_subscriptions", "bus", "description", "endpoints", "id", "load", "metadata", "name", "started", "version"),
    )  # there is one for each agent

    def __init__(
        self,
        bus: Bus,
        name: str,
        endpoints: Sequence[Endpoint],
        *,
        description: str = "",
        version: str = VERSION,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.bus, self.name, self.endpoints = bus, name, endpoints
        self.description, self.version, self.metadata = description, version, dict(metadata or {})
        self.id, self.started = secrets.token_hex(11), datetime.now(UTC)
        self.load: Callable[[], Mapping[str, int]] = dict
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Begin to answer."""
        self._subscriptions.append(await self.bus.listen(subjects.service(">"), self._receive))

    async def stop(self) -> None:
        """Answer no more."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()

    def _receive(self, message: Message) -> None:
        _, verb, *scope = message.subject.split(".")
        if scope not in ([], [self.name], [self.name, self.id]) or not _is_inbox(message.reply):
            return
        answer = self._answer(verb)
        if answer is not None:
            self.bus.send(message.reply, orjson.dumps(answer))

    def _answer(self, verb: str) -> dict[str, Any] | None:
        identity = {
            "name": self.name,
            "id": self.id,
            "version": self.version,
            "metadata": self.metadata,
            "type": f"io.nats.micro.v1.{verb.lower()}_response",
        }
        if verb == "PING":
            return identity
        if verb == "INFO":
            endpoints = [endpoint.info() for endpoint in self.endpoints]
            return identity | {"description": self.description, "endpoints": endpoints}
        if verb == "STATS":
            statistics = [{**endpoint.stats(), "data": self.load()} for endpoint in self.endpoints]
            return identity | {"started": self.started.isoformat(), "endpoints": statistics}
        return None


class Service(MicroService):
    """The service `agents` of one agent in one process.

    It tells on `agents.hb.…` now and then that it lives, and when asked on `agents.status.…`.
    """

    __slots__ = ("_beating", "agent", "team")

    def __init__(self, bus: Bus, team: str, agent: str, description: str, *, endpoints: Sequence[Endpoint]) -> None:
        self.team, self.agent = team, agent
        told = {**self.names, "description": description}
        super().__init__(bus, SERVICE, endpoints, description=description, metadata=told)
        self._beating: asyncio.Task[None] | None = None

    @property
    def names(self) -> dict[str, str]:
        """Who it is, as the protocol has it in metadata and heartbeats."""
        return {"agent": subjects.HARNESS, "owner": self.team, "session": self.agent, "protocol_version": PROTOCOL}

    async def start(self) -> None:
        """Begin to answer, with a first heartbeat at once."""
        await super().start()
        status = subjects.status(self.team, self.agent)
        self._subscriptions.append(await self.bus.listen(status, self._receive_status, queue=QUEUE))
        self._beating = asyncio.create_task(self._beat())

    async def stop(self) -> None:
        """Answer no more."""
        if self._beating is not None:
            self._beating.cancel()
        await super().stop()

    async def _beat(self) -> None:
        subject = subjects.heartbeat(self.team, self.agent)
        while True:
            try:
                await self.bus.publish(subject, self._heartbeat())
            except DisconnectedError as error:
                log.debug("%s cannot tell that it lives: %s", self.agent, error)
            await asyncio.sleep(INTERVAL)

    def _receive_status(self, message: Message) -> None:
        if _is_inbox(message.reply):
            self.bus.send(message.reply, self._heartbeat())

    def _heartbeat(self) -> bytes:
        prompts = [endpoint for endpoint in self.endpoints if endpoint.name == "prompt"]
        endpoints = {each.name: {"subject": each.subject, "metadata": each.metadata} for each in prompts}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        told: dict[str, Any] = {"instance_id": self.id, "ts": now, "interval_s": INTERVAL}
        return orjson.dumps({**self.names, **told, "endpoints": endpoints})


def _is_inbox(reply: str) -> bool:
    return reply.startswith(("_INBOX.", "_R_."))


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """One running agent, as discovered.

    Attributes:
        name: Its name, which replicas share; the address `agents://…` of one that Natterjack does not host.
        instance: Its process's own id.
        description: First line of its class's documentation.
        started: When, ISO 8601.
        asked: Asks it has taken so far.
        failed: Those it answered with an error.
        milliseconds: Average time of an answer.
        version: Version of its kernel.
        slots: Events, and as many questions, that it works on at once.
        busy: Slots that events take now.
        answering: Questions it answers now.
        waiting: Questions that wait for a slot.
    """

    name: str
    instance: str
    description: str
    started: str
    asked: int
    failed: int
    milliseconds: float
    version: str = ""
    slots: int = 0
    busy: int = 0
    answering: int = 0
    waiting: int = 0


async def discover(bus: Bus, agents: Iterable[str], *, window: float = 0.15) -> list[AgentInfo]:
    """Return the agents that answer within `window` seconds, by name.

    Args:
        bus: The connection of an operator.
        agents: Those of the team. Where each has an account, each is asked there, so that none answers for another;
            elsewhere all are asked at once, and strangers as well.
        window: Seconds to wait.
    """
    if bus.server.attests:
        found = [
            info for each in await asyncio.gather(*(_instances(bus, name, window) for name in agents)) for info in each
        ]
    else:
        replies = await bus.gather(subjects.service("STATS", SERVICE), window=window)
        found = [info for reply in replies if (info := _read_info(reply))]
    return sorted(found, key=lambda info: (info.name, info.instance))


async def _instances(bus: Bus, agent: str, window: float) -> list[AgentInfo]:
    replies = await bus.gather(subjects.service("STATS", SERVICE, of=agent), window=window)
    return [info for reply in replies if (info := _read_info(reply)) and info.name == agent]


def _read_info(message: Message) -> AgentInfo | None:
    """Read one answer; a stranger's service of the same name may say anything."""
    try:
        body = decode(message.data)
        endpoints = [each for each in body.get("endpoints") or [] if each["name"] in ("ask", "prompt")]
        asked = sum(int(endpoint.get("num_requests", 0)) for endpoint in endpoints)
        spent = sum(int(endpoint.get("processing_time", 0)) for endpoint in endpoints)
        told = (endpoints[0].get("data") or {}) if endpoints else {}
        load = {key: int(value) for key, value in told.items() if key in LOAD}
        return AgentInfo(
            name=_read_name(body["metadata"]),
            instance=str(body["id"]),
            description=str(body["metadata"].get("description", "")),
            started=str(body.get("started", "")),
            asked=asked,
            failed=sum(int(endpoint.get("num_errors", 0)) for endpoint in endpoints),
            milliseconds=round(spent / asked / 1e6, 3) if asked else 0.0,
            version=str(body.get("version", "")),
            **load,
        )
    except (PayloadError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None


def _read_name(metadata: Mapping[str, str]) -> str:
    agent, owner, session = metadata["agent"], metadata["owner"], metadata.get("session", "default")
    if agent == subjects.HARNESS:
        return subjects.check_name(session)
    address = f"agents://{agent}/{owner}/{session}"
    addresses.split_foreign(address)
    return address


async def prompt_subject(bus: Bus, address: str, *, timeout: float) -> str:
    """Return where an agent of an address `agents://…` takes prompts, as it registered (protocol section 4.3).

    Raises:
        NoRespondersError: No such agent answers within a second, or `timeout` seconds.
    """
    agent, owner, session = addresses.split_foreign(address)
    found: list[str] = []

    def last(message: Message) -> bool:
        found.extend(_read_prompt_subjects(message, address))
        return bool(found)

    info = subjects.service("INFO", SERVICE)
    try:
        await bus.request_many(info, timeout=min(max(timeout, 0.001), _FIND), until=last)
    except RequestTimeoutError as error:
        raise NoRespondersError(address) from error
    except RefusedError:  # who may not look around may still know the way
        return subjects.prompt(owner, session, agent)
    return found[0]


def _read_prompt_subjects(message: Message, address: str) -> list[str]:
    try:
        body = decode(message.data)
        if _read_name(body["metadata"]) != address:
            return []
        return [addresses.check_foreign(each["subject"]) for each in body["endpoints"] if each["name"] == "prompt"]
    except (PayloadError, LookupError, TypeError, ValueError, AttributeError):
        return []
