"""A server elsewhere, over HTTP or the pipes of a child: connected once for a whole process, and again when it went."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final
from weakref import WeakKeyDictionary

from mcp import Client
from mcp.client.session import IncomingMessage, MessageHandlerFnT
from mcp.shared.subscriptions import event_from_wire

from natterjack_mcp.changes import Relay
from natterjack_mcp.errors import CallError, ToolUnavailableError

log = logging.getLogger("natterjack.tools")

FIRST_PAUSE: Final = 0.5
"""Seconds before it is connected again; twice as many for each further failure, up to `MAX_PAUSE`."""
MAX_PAUSE: Final = 30.0
STEADY: Final = 60.0
"""Seconds after which a connection that then goes is no longer one that fails again and again."""
CLOSE_WAIT: Final = 5.0

Open = Callable[[asyncio.Event, MessageHandlerFnT], AbstractAsyncContextManager[Client]]
"""Connects; sets the event once nothing more can come, and has notifications heard."""


class Connection:
    """One connection, kept up while anybody uses it.

    Args:
        what: What it is connected to, for messages.
        opens: Connects.

    Attributes:
        hearers: Take the changes that the server tells.
    """

    def __init__(self, what: str, opens: Open) -> None:
        self.what, self._opens, self.users = what, opens, 0
        self.hearers: list[Relay] = []
        self._client: Client | None = None
        self._attempt: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._why = "it was never connected"
        self._gone, self._closing = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._keep())

    async def client(self, timeout: float) -> Client:
        """Return the client, once it is connected.

        Raises:
            ToolUnavailableError: It cannot be connected now.
        """
        if self._client is None:
            await asyncio.wait([self._attempt], timeout=timeout)
        if self._client is None:
            msg = f"{self.what} cannot be reached: {self._why}"
            raise ToolUnavailableError(msg, {"begun": False, "absent": True})
        return self._client

    @property
    def gone(self) -> asyncio.Event:
        """Set once the connection that there is now has gone."""
        return self._gone

    async def _hear(self, message: IncomingMessage) -> None:
        if not isinstance(message, Exception):
            told = message.model_dump(mode="json", by_alias=True)
            if event := event_from_wire(told["method"], told.get("params")):
                for hear in self.hearers:
                    await hear(event)

    async def close(self) -> None:
        """Disconnect; a child ends."""
        self._closing.set()
        self._gone.set()
        # Cancelled while a child is started or ended, the SDK would leave it behind.
        await asyncio.wait([self._task], timeout=CLOSE_WAIT)
        self._task.cancel()
        await asyncio.wait([self._task], timeout=CLOSE_WAIT)

    async def _keep(self) -> None:
        """Connect again and again, in one task: the SDK's scopes are left where they were entered."""
        loop, pause = asyncio.get_running_loop(), FIRST_PAUSE
        while not self._closing.is_set():
            began, self._gone = loop.time(), asyncio.Event()
            try:
                async with self._opens(self._gone, self._hear) as self._client:
                    self._settle()
                    if not self._closing.is_set():
                        await self._gone.wait()
                self._why = "it went away"
            except Exception as error:  # of the SDK, of its libraries, of the operating system
                self._why = _cause(error)
            finally:
                self._client = None
                self._settle()
            if self._closing.is_set():
                return
            pause = FIRST_PAUSE if loop.time() - began > STEADY else pause
            log.warning("%s: %s; it is connected again in %g s", self.what, self._why, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
            self._attempt, pause = loop.create_future(), min(MAX_PAUSE, 2 * pause)

    def _settle(self) -> None:
        if not self._attempt.done():
            self._attempt.set_result(None)


def _cause(error: BaseException) -> str:
    """Return the first cause in groups of errors, as a sentence; of ours the text alone."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, CallError) else f"{type(error).__name__}: {error}"


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Connection]] = WeakKeyDictionary()


@asynccontextmanager
async def shared(key: Any, what: str, opens: Open) -> AsyncIterator[Connection]:
    """Give the connection for a key; all who use it at a time have the same, and the last one closes it."""
    connections = _shared.setdefault(asyncio.get_running_loop(), {})
    connection = connections.get(key) or connections.setdefault(key, Connection(what, opens))
    connection.users += 1
    try:
        yield connection
    finally:
        connection.users -= 1
        if not connection.users:
            del connections[key]
            await connection.close()


class Watched:
    """A stream of the SDK that tells when it ends."""

    def __init__(self, stream: Any, gone: asyncio.Event) -> None:
        self._stream, self._gone = stream, gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __aiter__(self) -> Watched:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._stream.__anext__()
        except BaseException:
            self._gone.set()
            raise

    async def __aenter__(self) -> Watched:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> Any:
        self._gone.set()
        return await self._stream.__aexit__(*error)


@asynccontextmanager
async def watched(transport: Any, gone: asyncio.Event) -> AsyncIterator[Any]:
    """Give a transport's streams, of which the one that is read tells when it ends."""
    async with transport as (incoming, outgoing):
        yield Watched(incoming, gone), outgoing
