"""One ask that is under way, and all that are."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.requests import Request

from natterjack_http.problems import CANCELLED, Problem

T = TypeVar("T")

READ_LIMIT: Final = 10.0
"""Seconds in which the question must have come."""
PATIENCE: Final = 4_000_000
"""Bytes beyond the limit that are still read, and forgotten: who is cut off while it sends may not see the answer."""
LONGEST: Final = 86_400.0
"""Seconds that an ask may take: as over NATS."""
_ID: Final = r"^[A-Za-z0-9_-]{1,64}$"
_SHAPE: Final = 'send JSON such as {"question": "What is new?", "timeout": 30}, or the question as text/plain'
_PLAIN: Final = re.compile(r'text/plain\s*(;\s*charset="?utf-8"?\s*)?', re.IGNORECASE)


class Asked(BaseModel):
    """What a request asks.

    Attributes:
        question: Text.
        timeout: Seconds for the whole answer.
        id: By which it can be cancelled, if the asker chooses it; unique among the asker's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: Annotated[str, StringConstraints(strict=True, min_length=1)]
    timeout: Annotated[float, Field(strict=True, gt=0, le=LONGEST, allow_inf_nan=False)] = 60.0
    id: Annotated[str, Field(pattern=_ID)] = Field(default_factory=lambda: secrets.token_hex(16))


async def read_asked(request: Request, limit: int) -> Asked:
    """Read what a request asks.

    Args:
        request: Whose body has not been read.
        limit: Bytes.

    Raises:
        Problem: It is no question, too large, or too slow.
        ClientDisconnect: It was not sent to its end.
    """
    kind = request.headers.get("content-type", "")
    is_json = kind.partition(";")[0].strip().lower() == "application/json"
    if not is_json and not _PLAIN.fullmatch(kind.strip()):
        raise Problem(415, f"{kind or 'no content-type'} is not understood; {_SHAPE}")
    try:
        async with asyncio.timeout(READ_LIMIT):
            body = await _body(request, limit)
    except TimeoutError:
        raise Problem(408, f"the question did not come within {READ_LIMIT:g} s", {"connection": "close"}) from None
    try:
        return Asked.model_validate(orjson.loads(body) if is_json else {"question": body.decode()})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise Problem(400, f"`{where}`: {first['msg']}; {_SHAPE}") from None
    except ValueError:  # of JSON, or of UTF-8
        raise Problem(400, f"the body is not what its content-type says; {_SHAPE}") from None


async def _body(request: Request, limit: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > limit + PATIENCE:
        raise _too_large(limit)
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= limit:
            body += chunk
        elif size > limit + PATIENCE:
            break
    if size > limit:
        raise _too_large(limit)
    return bytes(body)


async def gone(request: Request) -> Problem:
    """Return that whoever sent a request, whose body was read, went away, once that is so."""
    while (await request.receive())["type"] != "http.disconnect":
        continue
    return Problem(CANCELLED, "the asker went away")


def _too_large(limit: int) -> Problem:
    return Problem(413, f"a question may have {limit:,} bytes; ask less, or raise `max_body`", {"connection": "close"})


class Ask:
    """One ask that is under way.

    Attributes:
        end: Why it is over before it is answered, once it is.
    """

    def __init__(self) -> None:
        self.end: asyncio.Future[Problem] = asyncio.get_running_loop().create_future()

    def stop(self, problem: Problem) -> None:
        """End it; the first reason counts."""
        if not self.end.done():
            self.end.set_result(problem)

    async def first(self, work: Awaitable[T]) -> T:
        """Return what the work comes to; raise the problem that ends it before, once it is cancelled."""
        task = asyncio.ensure_future(work)
        either: tuple[asyncio.Future[Any], ...] = (task, self.end)
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise self.end.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @contextmanager
    def ended_by(self, *problems: Coroutine[Any, Any, Problem]) -> Iterator[None]:
        """Within the context, the first of these problems ends it, once there is one."""
        watching = [asyncio.create_task(problem) for problem in problems]
        for each in watching:
            each.add_done_callback(lambda done: None if done.cancelled() else self.stop(done.result()))
        try:
            yield
        finally:
            for each in watching:
                each.cancel()


class Asks:
    """All that are under way, by who asked and the id."""

    def __init__(self) -> None:
        self._asks: dict[tuple[str, str], Ask] = {}

    def __len__(self) -> int:
        return len(self._asks)

    @contextmanager
    def begun(self, caller: str, id: str) -> Iterator[Ask]:
        """Within the context, an ask is under way.

        Raises:
            Problem: The caller has one of this id.
        """
        key = (caller, id)
        if key in self._asks:
            raise Problem(409, f"you have an ask with the id {id!r} already; choose another, or leave it out")
        ask = self._asks[key] = Ask()
        try:
            yield ask
        finally:
            del self._asks[key]

    def cancel(self, caller: str, id: str) -> bool:
        """Cancel an ask of this caller; tell whether there was one."""
        ask = self._asks.get((caller, id))
        if ask is not None:
            ask.stop(Problem(CANCELLED, "it was cancelled"))
        return ask is not None

    def end_all(self) -> None:
        """End all, because the agent's time to drain is over."""
        for ask in self._asks.values():
            ask.stop(Problem(503, "the agent stops; ask again"))
