"""The door: what each request is answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Final

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from natterjack import AnswerStream, NatterjackError, TriggerContext
from natterjack_http import events
from natterjack_http.asks import Ask, Asked, Asks, gone, read_asked
from natterjack_http.callers import Callers
from natterjack_http.problems import MEDIA, Problem, problem_of

ASK: Final = "/ask"
"""Where questions go; `/ask/<id>` is one that is under way."""
HEALTH: Final = "/health"
MAX_UNDER_WAY: Final = 512
"""Requests at once, which bounds the memory that questions take."""
AT_ONCE: Final = 0.25
"""Seconds for which a stream waits before it begins: what fails in them has a status of its own."""
SILENCE: Final = 15.0
"""Seconds after which a stream without news says that it lives."""
LAST_WORDS: Final = 1.0
"""Seconds in which somebody who reads slowly is told that the answer is cut."""
_FRESH: Final = {"cache-control": "no-store"}
_STREAM: Final = {**_FRESH, "content-type": events.MEDIA, "x-accel-buffering": "no"}


class Door:
    """Passes questions on to the agent, and the answers back (ASGI).

    Args:
        ctx: Asks the agent.
        callers: Knows who calls.
        max_body: Bytes of a question.

    Attributes:
        draining: Whether it takes nothing new.
        idle: Set while no request is under way.
    """

    def __init__(self, ctx: TriggerContext, callers: Callers, max_body: int) -> None:
        self._ctx, self._callers, self._max_body = ctx, callers, max_body
        self._asks, self._under_way = Asks(), 0
        self.draining, self.idle = False, asyncio.Event()
        self.idle.set()

    def end_all(self) -> None:
        """Answer all that is under way, now."""
        self._asks.end_all()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        with self._counted():
            response = await self._respond(request, send)
            if response is not None:
                await response(scope, receive, send)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self.idle.set()

    async def _respond(self, request: Request, send: Send) -> Response | None:
        """Return the answer, whatever happens; None if it was sent, or nobody is left to read it."""
        try:
            return await self._answer(request, send)
        except Problem as problem:
            return _response(problem)
        except NatterjackError as error:
            return _response(problem_of(error))
        except ClientDisconnect:
            return None
        except Exception:  # whatever it is, the asker hears no more than that
            self._ctx.log.exception("a request to %s failed", request.scope["path"])
            return _response(Problem(500, "internal error; the agent's log says more"))

    async def _answer(self, request: Request, send: Send) -> Response | None:
        """Return the answer; None if it was sent."""
        path, method = request.scope["path"], request.method
        if path == HEALTH:
            _allow(method, "GET", "HEAD")
            return self._health()
        if path == ASK:
            _allow(method, "POST")
            return await self._ask(request, send)
        if path.startswith(f"{ASK}/"):
            _allow(method, "DELETE")
            return await self._cancel(request, path.removeprefix(f"{ASK}/"))
        raise Problem(404, f"nothing is here; POST {ASK} asks the agent, GET {HEALTH} tells how it is")

    def _health(self) -> Response:
        if self.draining:
            raise Problem(503, "the agent stops")
        if not self._ctx.connected:
            raise Problem(503, "the broker is away; questions wait for it, as long as they have time")
        return JSONResponse({"status": "ok", "agent": self._ctx.agent}, headers=_FRESH)

    async def _cancel(self, request: Request, id: str) -> Response:
        caller = await self._callers.name(request.headers)
        if not self._asks.cancel(caller, id):
            raise Problem(404, "you have no ask of this id here; it is over, or was asked of another replica")
        return Response(status_code=204, headers=_FRESH)

    async def _ask(self, request: Request, send: Send) -> Response | None:
        if self.draining:
            raise Problem(503, "the agent stops; ask again", {"connection": "close"})
        if self._under_way > MAX_UNDER_WAY:
            raise Problem(503, f"more than {MAX_UNDER_WAY} requests are under way; ask again")
        caller = await self._callers.asker(request.headers)
        asked = await read_asked(request, self._max_body)
        with (
            self._asks.begun(caller, asked.id) as ask,
            ask.ended_by(gone(request), self._callers.refusal(request.headers)),
        ):
            if events.MEDIA in request.headers.get("accept", ""):
                await self._stream(ask, asked, caller, send)
                return None
            answer = await ask.first(self._ctx.ask(asked.question, caller=caller, timeout=asked.timeout))
            return JSONResponse({"answer": answer, "agent": self._ctx.agent, "run": answer.run_id}, headers=_FRESH)

    # Streams

    async def _stream(self, ask: Ask, asked: Asked, caller: str, send: Send) -> None:
        """Send the answer as it comes. What goes wrong before it has begun is raised, later it is an event."""
        stream = self._ctx.ask_stream(asked.question, caller=caller, timeout=asked.timeout)
        out = _Events(send)
        try:
            async with asyncio.timeout(asked.timeout + LAST_WORDS):  # the agent knows its limit, a slow reader none
                await ask.first(self._pass_on(stream, out, asked))
        except (Problem, NatterjackError, TimeoutError) as error:
            if not out.begun:
                raise
            await out.cut(_told(error))

    async def _pass_on(self, stream: AnswerStream, out: _Events, asked: Asked) -> None:
        async with aclosing(_news(stream)) as news:
            async for chunk in news:
                await out.begin(asked)
                await out.send(events.KEEP_ALIVE if chunk is None else events.write(events.CHUNK, {"text": chunk}))
        await out.begin(asked)
        await out.send(events.write(events.DONE, {"agent": self._ctx.agent, "run": stream.run_id}), more=False)


async def _news(stream: AnswerStream) -> AsyncGenerator[str | None, None]:
    """Yield chunks as they come; and None first after a moment, then each time that nothing has come for long."""
    async with stream:
        patience = AT_ONCE
        while True:
            reading = asyncio.ensure_future(anext(stream, None))
            try:
                while not (await asyncio.wait([reading], timeout=patience))[0]:
                    patience = SILENCE
                    yield None
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            patience, chunk = SILENCE, reading.result()
            if chunk is None:
                return
            yield chunk


class _Events:
    """The stream as it goes out."""

    def __init__(self, send: Send) -> None:
        self._send, self.begun = send, False

    async def begin(self, asked: Asked) -> None:
        """Tell the id, once."""
        if not self.begun:
            self.begun = True
            headers = [(name.encode(), value.encode()) for name, value in _STREAM.items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self.send(events.write(events.ASKED, {"id": asked.id}))

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send some of it; it waits for readers that are slow."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def cut(self, problem: Problem) -> None:
        """Tell why there is no more, if that is read soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self.send(events.write(events.PROBLEM, problem.body), more=False)


def _told(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    return problem_of(error) if isinstance(error, NatterjackError) else Problem(504, "the answer was not read in time")


def _response(problem: Problem) -> Response:
    return Response(orjson.dumps(problem.body), problem.status, problem.headers, MEDIA)


def _allow(method: str, *methods: str) -> None:
    if method not in methods:
        raise Problem(405, f"use {methods[0]} here", {"allow": ", ".join(methods)})
