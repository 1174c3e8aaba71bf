"""A tool server over NATS: a micro service, whose replicas share the work. The wire is in `wire`."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

import orjson
from mcp.shared.subscriptions import ServerEvent

from natterjack import (
    Bus,
    Endpoint,
    Envelope,
    MicroService,
    PayloadError,
    Quota,
    TokenError,
    ToolSubjects,
    is_approved,
)
from natterjack import Message as NatsMessage
from natterjack_mcp.approval import APPROVAL_LASTS, approval_needed, question
from natterjack_mcp.auth import Auth
from natterjack_mcp.caller import Attested, Caller
from natterjack_mcp.changes import Changes, packed, unpacked
from natterjack_mcp.errors import CallError, ToolRefusedError, UnauthenticatedError
from natterjack_mcp.wire import (
    ALIVE,
    AUTHORIZATION,
    CALL,
    INVALID_REQUEST,
    KEEP_ALIVE,
    NOBODY,
    Message,
    Notify,
    arguments_of,
    failure,
    misplaced,
)

log = logging.getLogger("natterjack.tools")

QUEUE: Final = "tools"
CONCURRENCY: Final = 64
"""Requests that one process works on at once; four times as many may wait."""
BACKLOG: Final = 4
TRUST: Final = 5.0
"""Seconds for which a token counts that was found valid; never beyond its own end."""
MAX_KNOWN: Final = 1000
TIMEOUT: Final = 60.0
"""Seconds for a request that names no deadline."""
_INBOXES: Final = ("_INBOX.", "_R_.")
READS: Final = {each: each.partition("/")[0] for each in ("resources/read", "prompts/get", "completion/complete")}
"""Methods that `roles` must name of a server that sees no caller: `resources`, `prompts` and `completion`."""
_REFUSED: Final = (401, 403)
"""Codes of what the audit of the team keeps."""
_LASTING: Final = "subscriptions/listen"


class Served(Protocol):
    """What can be served: an `MCPServer`, or what stands for a server elsewhere.

    Attributes:
        name: Its own name.
        version: Its version.
        changes: Where it tells changes.
    """

    name: str
    version: str
    changes: Changes

    @property
    def auth(self) -> Auth | None:
        """What knows callers, if anything does."""

    @property
    def approves(self) -> frozenset[str]:
        """The tools of which it says itself that a human must allow each call."""

    def share(self, bus: Bus, name: str) -> None:
        """Have limits counted together with all who serve under this name."""

    @property
    def guards_all(self) -> bool:
        """Whether it decides itself who reads its resources and gets its prompts."""

    def refused(self, caller: Caller, message: Message, error: CallError) -> None:
        """Take note that a request was refused before it came here."""

    async def tool_names(self) -> frozenset[str]:
        """Return the names of its tools."""

    async def handle(self, message: Message, caller: Caller, notify: Notify | None = None) -> Message | None:
        """Answer one request; see `MCPServer.handle`."""


@dataclass(slots=True, eq=False)
class _Request:
    """One that came in; its time is the event loop's."""

    endpoint: Endpoint
    subject: str
    data: bytes
    headers: dict[str, str]
    reply: str
    envelope: Envelope
    arrived: float
    id: object = None
    task: asyncio.Task[None] | None = field(default=None)


class NatsService:
    """Serves one server to whoever may reach its subjects.

    Args:
        served: The server.
        bus: Its connection.
        name: What the team calls it; its own name by default.
        roles_of: Returns the roles of a caller that shows no token.
        admits: Tells whether a caller of this name and these roles may call a tool, whatever the server itself says.
        approve: Tools each call of which a human must allow, beside those of which the server says so.
        concurrency: Requests worked on at once.
    """

    def __init__(
        self,
        served: Served,
        bus: Bus,
        name: str | None = None,
        *,
        roles_of: Callable[[str], frozenset[str]] = lambda name: frozenset({name}),
        admits: Callable[[str, str, frozenset[str]], bool] = lambda *_: True,
        approve: Collection[str] = (),
        concurrency: int = CONCURRENCY,
    ) -> None:
        self._served, self._bus, self._roles_of, self._admits = served, bus, roles_of, admits
        self._approve, self._uses = frozenset(approve), Quota(bus, name or served.name)
        self.name = name or served.name
        self._own = ToolSubjects(self.name)
        self._calls = Endpoint("call", self._own.calls, queue=QUEUE)
        self._methods = Endpoint("other", self._own.methods, queue=QUEUE)
        version = served.version if served.version.count(".") == 2 else "0.0.0"
        told = {"natterjack": "tools", "protocol": "mcp", "server": served.name, "server_version": served.version}
        self._service = MicroService(
            bus,
            self.name,
            [self._calls, self._methods],
            description="A tool server (MCP)",
            version=version,
            metadata=told,
        )
        self._service.load = lambda: {"slots": concurrency, "busy": len(self._requests)}
        self._slots, self._limit = asyncio.Semaphore(concurrency), concurrency * (1 + BACKLOG)
        self._requests: set[_Request] = set()
        self._cancellable: dict[str, _Request] = {}
        self._replica, self._draining = secrets.token_hex(8), False
        self._known: dict[str, tuple[Caller | None, float]] = {}
        self._taking: list[Any] = []
        self._hearing: list[Any] = []
        self._beating: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to serve."""
        self._served.share(self._bus, self.name)
        self._served.changes.relays.append(self._relay)
        self._hearing.append(await self._bus.subscribe(self._own.changes, self._hear))
        self._hearing.append(await self._bus.listen(self._own.cancels, self._cancel))
        for endpoint in (self._calls, self._methods):
            receive = partial(self._receive, endpoint)
            self._taking.append(await self._bus.listen(endpoint.subject, receive, queue=QUEUE))
        await self._service.start()
        self._beating = asyncio.create_task(self._beat())
        log.info("%s is served over NATS at %s", self.name, self._bus.server)

    async def drain(self, timeout: float) -> None:
        """Take nothing new, finish what runs within `timeout` seconds, and answer the rest with 503."""
        if self._draining:
            return
        self._draining = True
        await self._service.stop()
        for subscription in self._taking:
            await subscription.drain()
        self._served.changes.relays.remove(self._relay)
        for request in [each for each in self._requests if each.subject == self._own.method(_LASTING)]:
            self._stop(request)
        tasks = {each.task for each in self._requests if each.task}
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=max(timeout, 0.01))
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        for subscription in self._hearing:
            await subscription.unsubscribe()
        if self._beating is not None:
            self._beating.cancel()

    # Requests

    def _receive(self, endpoint: Endpoint, message: NatsMessage) -> None:
        if not message.reply.startswith(_INBOXES):
            log.warning("%s: a request without a usable reply subject (%r) is ignored", self.name, message.reply)
            return
        endpoint.num_requests += 1
        loop = asyncio.get_running_loop()
        headers = message.headers or {}
        try:
            envelope, wrong = self._bus.envelope_of(message), None
        except PayloadError as error:
            envelope, wrong = Envelope(), str(error)
        request = _Request(endpoint, message.subject, message.data, headers, message.reply, envelope, loop.time())
        if wrong:
            self._send(request, failure(None, INVALID_REQUEST, wrong))
        elif self._draining:
            self._send(request, failure(_id(message.data), 503, f"{self.name} is draining", {"begun": False}))
        elif len(self._requests) >= self._limit:
            text = f"{self.name} is at its limit of {self._limit} requests; try later, or start a replica"
            self._send(request, failure(_id(message.data), 429, text))
        else:
            self._requests.add(request)
            if envelope.request:
                self._cancellable[envelope.request] = request
            request.task = loop.create_task(self._work(request))

    async def _work(self, request: _Request) -> None:
        try:
            async with asyncio.timeout(request.envelope.timeout or TIMEOUT) as limit:
                if request.subject == self._own.method(_LASTING):
                    answer = await self._answer(request)
                else:
                    async with self._slots:
                        answer = await self._answer(request)
        except TimeoutError:
            text = "it did not end in time" if limit.expired() else "it failed with TimeoutError"
            answer = failure(request.id, 408, text)
        except asyncio.CancelledError:
            if self._draining:
                self._send(request, failure(request.id, 503, f"{self.name} has stopped", {"begun": True}))
            raise
        except Exception:
            log.exception("%s: a request failed", self.name)
            answer = failure(request.id, 500, "it failed; the server's log says more")
        finally:
            self._requests.discard(request)
            self._cancellable.pop(request.envelope.request, None)
            spent = asyncio.get_running_loop().time() - request.arrived
            request.endpoint.processing_time += int(spent * 1e9)
        if answer is not None:
            self._send(request, answer)

    async def _answer(self, request: _Request) -> Message | None:
        message = _read(request.data)
        if message is None:
            return failure(None, -32700, "the payload is no JSON-RPC message")
        request.id = message.get("id")
        if wrong := misplaced(self._own, request.subject, message):
            return failure(request.id, INVALID_REQUEST, wrong)
        try:
            caller = await self._caller(request)
        except TokenError as error:
            self._served.refused(Caller(), message, UnauthenticatedError(str(error)))
            return failure(request.id, 401, str(error))
        if refusal := self._refusal(message, caller):
            self._served.refused(caller, message, refusal)
            return failure(request.id, refusal.code, str(refusal), refusal.data)
        if message["method"] == CALL:
            tool = message["params"]["name"]
            caller = await self._approved(request, message, caller)
            if tool in self._approve and not caller.approved:
                needed = approval_needed(self._served.name, tool, arguments_of(message), caller.name)
                return failure(request.id, needed.code, str(needed), needed.data)
        try:
            answer = await self._served.handle(message, caller, partial(self._notify, request))
        except CallError as error:  # of what is served from elsewhere
            return failure(request.id, error.code, str(error), error.data)
        return self._listed(answer, caller) if message["method"] == "tools/list" and answer else answer

    async def _caller(self, request: _Request) -> Caller:
        scheme, _, shown = request.headers.get(AUTHORIZATION, "").partition(" ")
        if shown and scheme.lower() == "bearer" and self._served.auth is not None:
            return await self._knows(self._served.auth, shown)
        name = request.envelope.source
        known: Attested = "broker" if self._bus.server.attests else "claim"
        return Caller() if name in ("", NOBODY) else Caller(name, self._roles_of(name), attested=known)

    def _refusal(self, message: Message, caller: Caller) -> ToolRefusedError | None:
        """Return why the team's table lets a caller not do this; nothing, if it does or leaves it to the server."""
        if message["method"] == CALL:
            what, named = message["params"]["name"], f"the tool {message['params']['name']!r}"
        elif not self._served.guards_all and message["method"] in READS:
            what, named = READS[message["method"]], f"the {READS[message['method']]}"
        else:
            return None
        if self._admits(what, caller.name, caller.roles):
            return None
        msg = f"{caller} may not use {named} of {self.name}: the team's `roles` do not name it"
        return ToolRefusedError(msg, {"guard": "roles"})

    async def _approved(self, request: _Request, message: Message, caller: Caller) -> Caller:
        """Return a caller that a human allowed this call, if it shows where one did."""
        shown = request.envelope.approval
        if not shown:
            return caller
        asked = question(self._served.name, message["params"]["name"], arguments_of(message), caller.name)
        approved = await is_approved(self._bus, shown, request.envelope.source, asked)
        if approved and await self._uses.take(f"approval {shown}", 1, per=APPROVAL_LASTS):
            log.warning("%s shows %s a human's yes a second time", caller, self.name)
            approved = False
        return replace(caller, approved=approved)

    async def _knows(self, auth: Auth, shown: str) -> Caller:
        """Return who shows this; for a moment it is remembered, as looking closely costs a third of a call."""
        now = time.time()
        caller, until = self._known.get(shown, (None, 0.0))
        if caller is None or until <= now:
            caller = await auth.caller(shown)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[shown] = caller, min(now + TRUST, float(caller.claims.get("exp", now + TRUST)))
        return caller

    def _listed(self, answer: Message, caller: Caller) -> Message:
        result = answer.get("result")
        if not isinstance(result, dict):
            return answer
        kept = [each for each in result.get("tools", ()) if self._admits(each["name"], caller.name, caller.roles)]
        return {**answer, "result": {**result, "tools": kept}}

    async def _notify(self, request: _Request, message: Message) -> None:
        await self._bus.publish(request.reply, orjson.dumps(message))

    def _send(self, request: _Request, answer: Message) -> None:
        if "error" in answer:
            if answer["error"]["code"] in _REFUSED:
                who, what = request.envelope.source or "somebody unknown", request.subject
                self._bus.audit.note("tools", "refuse", who=who, what=what, reason=answer["error"]["message"])
            request.endpoint.num_errors += 1
            request.endpoint.last_error = f"{answer['error']['code']}:{answer['error']['message']}"
        data = orjson.dumps(answer)
        try:
            self._bus.send(request.reply, data)
        except PayloadError as error:
            log.warning("%s: an answer cannot be sent: %s", self.name, error)
            text = (
                f"the result has {len(data):,} bytes, more than a message may have; return less, or a reference to it"
            )
            self._bus.send(request.reply, orjson.dumps(failure(request.id, 413, text)))

    def _cancel(self, message: NatsMessage) -> None:
        request = self._cancellable.get(message.subject.rpartition(".")[2])
        if request is not None:
            self._stop(request)

    def _stop(self, request: _Request) -> None:
        if request.task is not None:
            request.task.cancel()

    async def _beat(self) -> None:
        """Tell those who wait that this replica lives."""
        while True:
            await asyncio.sleep(KEEP_ALIVE)
            for request in list(self._cancellable.values()):
                if self._bus.connected:
                    self._bus.send(request.reply, ALIVE)

    # Changes

    async def _relay(self, event: ServerEvent) -> None:
        await self._bus.publish(self._own.changes, packed(event, self._replica))

    async def _hear(self, message: NatsMessage) -> None:
        try:
            told = unpacked(message.data)
        except ValueError as error:
            log.warning("%s: %s", self.name, error)
            return
        if told is not None and told[1] != self._replica:
            await self._served.changes.tell(told[0])


def _read(data: bytes) -> Message | None:
    try:
        message = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return message if isinstance(message, dict) else None


def _id(data: bytes) -> object:
    return (_read(data) or {}).get("id")
