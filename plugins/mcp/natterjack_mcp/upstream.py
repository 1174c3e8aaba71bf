"""Changes that a server elsewhere tells, told on.

One of the protocol 2026-07-28 tells them to who listens; an older one tells its lists to everybody, and a resource to
who has subscribed to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import anyio
from mcp import Client, MCPError
from mcp.shared.subscriptions import PromptsListChanged, ResourcesListChanged, ToolsListChanged
from mcp_types import CONNECTION_CLOSED, EmptyResult, Request
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from natterjack import NatterjackError
from natterjack_mcp.changes import Relay
from natterjack_mcp.connection import FIRST_PAUSE, Connection

log = logging.getLogger("natterjack.tools")

READY_WAIT: Final = 5.0
"""Seconds in which a server should agree to tell changes; what it tells later is told on as well."""
_LISTS: Final = (ToolsListChanged(), PromptsListChanged(), ResourcesListChanged())


@dataclass(slots=True, eq=False)
class _Followed:
    """The lists, or one resource, and how many want to hear of it."""

    task: asyncio.Task[None]
    ready: asyncio.Event
    users: int = 1


class Upstream:
    """Follows a server's lists, and each of its resources that somebody wants to hear of.

    Args:
        connection: To it.
        tell: Takes its changes.
    """

    def __init__(self, connection: Connection, tell: Relay) -> None:
        self._connection, self._tell = connection, tell
        self._followed: dict[str, _Followed] = {}

    async def start(self) -> None:
        """Begin with the lists."""
        self._connection.hearers.append(self._tell)
        self._want({""})
        await self._agreed({""})

    async def close(self) -> None:
        """End all."""
        self._connection.hearers.remove(self._tell)
        await self._leave(set(self._followed))

    @asynccontextmanager
    async def following(self, uris: Iterable[str]) -> AsyncIterator[None]:
        """Within the context, updates of these resources are told, too."""
        wanted = set(uris)
        self._want(wanted)
        try:
            await self._agreed(wanted)
            yield
        finally:
            await self._leave(wanted)

    def _want(self, wanted: Collection[str]) -> None:
        for uri in wanted:
            if uri in self._followed:
                self._followed[uri].users += 1
            else:
                ready = asyncio.Event()
                self._followed[uri] = _Followed(asyncio.create_task(self._follow(uri, ready)), ready)

    async def _agreed(self, wanted: Collection[str]) -> None:
        """Return once the server has agreed to tell, or is slow to."""
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_WAIT):
                for uri in wanted:
                    await self._followed[uri].ready.wait()

    async def _leave(self, wanted: Collection[str]) -> None:
        tasks = list[asyncio.Task[None]]()
        for each in [self._followed[uri] for uri in wanted]:
            each.users -= 1
            if not each.users:
                each.task.cancel()
                tasks.append(each.task)
        self._followed = {uri: each for uri, each in self._followed.items() if each.users}
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, uri: str, ready: asyncio.Event) -> None:
        """Follow the lists, or one resource, over all connections that there will be."""
        while True:
            try:
                client = await self._connection.client(READY_WAIT)
                if ready.is_set() and not uri:
                    for event in _LISTS:  # a server that is back may have others
                        await self._tell(event)
                await self._listen(client, uri, ready)
            except MCPError as error:
                if error.code != CONNECTION_CLOSED:
                    log.debug("%s does not tell changes of %r: %s", self._connection.what, uri or "its lists", error)
                    ready.set()
                    return
            except (NatterjackError, RuntimeError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
                log.debug("changes of %s are not told now: %s", self._connection.what, error)
            await asyncio.sleep(FIRST_PAUSE)

    async def _listen(self, client: Client, uri: str, ready: asyncio.Event) -> None:
        """Have changes told until the connection has gone."""
        gone = self._connection.gone
        if client.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            async with _subscribed(client, uri):
                ready.set()
                await gone.wait()
            return
        every = not uri
        async with client.listen(
            tools_list_changed=every,
            prompts_list_changed=every,
            resources_list_changed=every,
            resource_subscriptions=[uri] if uri else [],
        ) as events:
            ready.set()
            async for _ in events:  # the connection hears them, too
                pass


@asynccontextmanager
async def _subscribed(client: Client, uri: str) -> AsyncIterator[None]:
    """Within the context, an older server tells a resource's updates, which the connection hears; lists it tells so."""
    if not uri:
        yield
        return
    await _ask(client, "resources/subscribe", uri)
    try:
        yield
    finally:
        with suppress(MCPError, RuntimeError, anyio.ClosedResourceError, anyio.BrokenResourceError):
            await _ask(client, "resources/unsubscribe", uri)


async def _ask(client: Client, method: str, uri: str) -> None:
    request = Request[dict[str, Any], str](method=method, params={"uri": uri})
    await client.session.send_request(request, EmptyResult, request_read_timeout_seconds=READY_WAIT)
