"""One hook: what comes to one path, checked, and stored as an event before it is answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from natterjack import BrokerError, NatterjackError, PayloadError, PlainMessage, StreamError, TriggerContext
from natterjack_webhook.bodies import BodyError, Media, media_of, read_body
from natterjack_webhook.senders import KEPT, UNWRAPPED, Naming, challenge, naming
from natterjack_webhook.signatures import Given, Hmac, Name, Verifier

READ_LIMIT: Final = 10.0
"""Seconds in which the body must have come."""
STORE_LIMIT: Final = 8.0
"""Seconds in which the event must be stored: GitHub waits for 10."""
SLACK_LIMIT: Final = 2.5
"""The same for Slack, which waits for 3."""
DRAIN_LIMIT: Final = 3.0
"""Seconds that requests under way have left when the agent stops."""
QUIET: Final = 60.0
"""Seconds for which a reason that was logged is not logged again."""
AWAY, FULL = "5", "30"
"""Seconds after which to try again: while the broker is away, and while the inbox is full."""


class Refused(Exception):
    """A request that is answered without an event; the text tells nothing about us."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.response = JSONResponse({"error": text}, status, headers)


def unavailable(text: str = "not now") -> Refused:
    """Return the answer to what should be sent again."""
    return Refused(503, text, {"retry-after": AWAY})


@dataclass(frozen=True, slots=True)
class HookSettings:
    """What a hook does with a request.

    Attributes:
        path: Where.
        scheme: How requests are signed; None: they are not.
        type: Type of all events; None: what the sender calls them.
        id_header: Header with the id of a delivery.
        kept: Headers that events keep.
        max_body: Bytes.
    """

    path: str
    scheme: Name | Hmac | None = None
    type: str | None = None
    id_header: str | None = None
    kept: tuple[str, ...] = ()
    max_body: int = 1_000_000


class Hook:
    """Answers the requests to one path.

    Args:
        settings: What it does with them.
        verifier: Holds signatures to the secrets; None: requests are not signed.
        ctx: Takes the events.

    Attributes:
        draining: Whether it takes nothing new.
    """

    def __init__(self, settings: HookSettings, verifier: Verifier | None, ctx: TriggerContext) -> None:
        self.settings, self._verifier, self._ctx = settings, verifier, ctx
        self.draining = False
        self._limits: set[asyncio.Timeout] = set()
        self._ends = float("inf")
        self._under_way, self._idle = 0, asyncio.Event()
        self._idle.set()
        self._told: dict[str, float] = {}

    @property
    def path(self) -> str:
        """Where it is reached."""
        return self.settings.path

    @property
    def agent(self) -> str:
        """Whom it wakes."""
        return self._ctx.agent

    async def answer(self, request: Request) -> Response:
        """Take one request; what it is answered is true of what is stored."""
        if self.draining:
            return unavailable("stopping").response
        with self._counted():
            try:
                return await self._take(request)
            except Refused as refused:
                return refused.response

    async def drain(self) -> None:
        """Refuse what comes, and return once all requests under way are answered: those that take long, with 503."""
        self.draining = True
        self._ends = asyncio.get_running_loop().time() + DRAIN_LIMIT
        for limit in self._limits:
            when = limit.when()
            limit.reschedule(self._ends if when is None else min(when, self._ends))
        await self._idle.wait()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    @asynccontextmanager
    async def _within(self, seconds: float, refused: Refused) -> AsyncIterator[None]:
        """Bound what is inside; a drain shortens it."""
        limit = asyncio.timeout_at(min(asyncio.get_running_loop().time() + seconds, self._ends))
        self._limits.add(limit)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise refused from None
        finally:
            self._limits.discard(limit)

    # One request

    async def _take(self, request: Request) -> Response:
        media, given = self._check_head(request)
        async with self._within(READ_LIMIT, Refused(408, "too slow", {"connection": "close"})):
            body = await self._body(request)
        if self._verifier is not None:
            reason = self._verifier.refusal(given, body, self._ctx.clock.now())
            if reason is not None:
                self._tell(reason, "forbidden")
                raise Refused(403, "forbidden")
        scheme = self.settings.scheme
        try:
            data, payload = read_body(body, media, unwrap=scheme in UNWRAPPED)
        except BodyError as error:
            raise Refused(400, str(error)) from None
        if (answer := challenge(scheme, data)) is not None:
            return PlainTextResponse(answer)
        named = naming(scheme, request.headers, data, body, given, self.settings.id_header)
        sequence = await self._store(request, named, payload)
        if scheme == "slack" and media == "form":  # it shows what a command is answered to its user
            return Response(status_code=200)
        return JSONResponse({"event": sequence}, 202)

    def _check_head(self, request: Request) -> tuple[Media, Given]:
        """Check all that can be known before the body is read."""
        if request.method != "POST":
            raise Refused(405, "use POST", {"allow": "POST"})
        given = self._verifier.read(request.headers) if self._verifier is not None else Given()
        if given is None:
            self._tell("it has no signature of the kind that is wanted here", "unauthorized")
            raise Refused(401, "unauthorized")
        if self._verifier is None and "origin" in request.headers:
            self._tell("a web page sent it, and requests to this hook need no signature", "page")
            raise Refused(403, "forbidden")
        if _length(request) > self.settings.max_body:
            raise self._too_large()
        content_type = request.headers.get("content-type", "")
        media = "text" if _length(request) == 0 else media_of(content_type)
        if media is None:
            raise Refused(415, "send application/json, application/x-www-form-urlencoded or text/plain, in UTF-8")
        return media, given

    def _too_large(self) -> Refused:
        return Refused(413, f"at most {self.settings.max_body:,} bytes")

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.settings.max_body:
                raise self._too_large()
        return bytes(body)

    async def _store(self, request: Request, named: Naming, payload: bytes) -> int:
        kind = self.settings.type or named.type or "webhook"
        wanted = (*KEPT.get(str(self.settings.scheme), ()), *self.settings.kept)
        kept = {name: request.headers[name] for name in wanted if name in request.headers}
        patience = SLACK_LIMIT if self.settings.scheme == "slack" else STORE_LIMIT
        try:
            async with self._within(patience, unavailable()):
                return await self._ctx.fire(PlainMessage(kind, payload, kept), type=kind, id=named.id)
        except PayloadError:
            raise self._too_large() from None
        except StreamError as error:
            self._tell(str(error), "full")
            raise Refused(429, "not now", {"retry-after": FULL}) from None
        except BrokerError as error:
            self._tell(str(error), "away")
            raise unavailable() from None
        except NatterjackError as error:
            self._tell(str(error), "fault")
            raise Refused(500, "internal error") from None

    def _tell(self, reason: str, kind: str) -> None:
        """Log why a request is refused; each kind once a minute, because anybody can send requests without end."""
        now = asyncio.get_running_loop().time()
        again = now - self._told.get(kind, float("-inf")) < QUIET
        self._ctx.log.log(logging.DEBUG if again else logging.WARNING, "refused on %s: %s", self.path, reason)
        if not again:
            self._told[kind] = now


def _length(request: Request) -> int:
    """Return the length that a request says it has; -1 where it says none."""
    found = request.headers.get("content-length", "")
    return int(found) if found.isascii() and found.isdigit() else -1
