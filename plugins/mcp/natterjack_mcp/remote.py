"""Tools of a server elsewhere, as an agent calls them, and as a team is served them over NATS (the bridge)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

from mcp import MCPError
from mcp.server.lowlevel.server import Server
from mcp.server.subscriptions import ListenHandler
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CONNECTION_CLOSED, REQUEST_TIMEOUT, Request
from mcp_types.version import LATEST_MODERN_VERSION
from pydantic import RootModel

from natterjack import Bus, Envelope, ToolInfo
from natterjack_mcp.caller import Caller
from natterjack_mcp.changes import Changes
from natterjack_mcp.connection import Connection, Open, shared
from natterjack_mcp.errors import CallError, ToolTimeoutError, ToolUnavailableError, call_error
from natterjack_mcp.exchange import answer
from natterjack_mcp.upstream import Upstream
from natterjack_mcp.wire import CALL, Message, value_of

START_WAIT: Final = 20.0
"""Seconds for the first connection: a child may have much to import."""
LONGEST: Final = 86_400.0
_PAGES: Final = 100
_LISTEN, _DISCOVER = "subscriptions/listen", "server/discover"


log = logging.getLogger("natterjack.tools")


class _Result(RootModel[dict[str, Any]]):
    """Any result, as it is on the wire."""


class Remote:
    """Sends requests to a server elsewhere.

    Args:
        name: What it is called here.
        key: Equal for all that share its connection.
        what: What it is, for messages.
        opens: Connects.
    """

    def __init__(self, name: str, key: Any, what: str, opens: Open) -> None:
        self._name, self._stack = name, AsyncExitStack()
        self._sharing = partial(shared, key, f"the tool server {name!r} ({what})", opens)
        self._connection: Connection | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            ToolUnavailableError: It is not there.
        """
        connection = self._connection = await self._stack.enter_async_context(self._sharing())
        try:
            await connection.client(START_WAIT)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let go of it."""
        await self._stack.aclose()

    async def ask(
        self, method: str, params: Mapping[str, Any], *, timeout: float, progress: ProgressFnT | None = None
    ) -> Message:
        """Send a request and return its result.

        Raises:
            CallError: It came to nothing; the kind says why.
        """
        if self._connection is None:
            msg = f"the tool server {self._name!r} is not connected yet"
            raise ToolUnavailableError(msg, {"begun": False})
        client = await self._connection.client(timeout)
        request = Request[dict[str, Any], str](method=method, params=dict(params))
        try:
            found = await client.session.send_request(
                request, _Result, request_read_timeout_seconds=timeout, progress_callback=progress
            )
        except MCPError as error:
            raise self._error(error, method, timeout) from error
        return found.root

    def _error(self, error: MCPError, method: str, timeout: float) -> CallError:
        if error.code == CONNECTION_CLOSED:
            return ToolUnavailableError(f"the tool server {self._name!r} went away before it answered", {"begun": True})
        if error.code == REQUEST_TIMEOUT:
            return ToolTimeoutError(f"{method!r} of {self._name!r} did not answer within {timeout:g} s")
        return call_error(error.code, error.message, error.data)

    async def tools(self, timeout: float) -> Sequence[Message]:
        """Return all tools, as on the wire."""
        found: list[Message] = []
        cursor: Mapping[str, Any] = {}
        for _ in range(_PAGES):
            result = await self.ask("tools/list", cursor, timeout=timeout)
            found += result["tools"]
            if not result.get("nextCursor"):
                break
            cursor = {"cursor": result["nextCursor"]}
        return found

    async def discover(self) -> Message:
        """Return what it can, as `server/discover` tells it; older servers tell it otherwise."""
        if self._connection is None:
            return {}
        session = (await self._connection.client(START_WAIT)).session
        told = session.server_capabilities
        capabilities = told.model_dump(mode="json", by_alias=True, exclude_none=True) if told else {}
        return {"supportedVersions": [LATEST_MODERN_VERSION], "capabilities": capabilities}


class RemoteTools(Remote):
    """The tools of a server elsewhere, as an agent calls them (`ToolClient`)."""

    async def call(self, tool: str, arguments: Mapping[str, Any], *, timeout: float, envelope: Envelope) -> Any:
        """Call a tool; see `ToolClient.call`. One that is idempotent is called again where its server went away.

        Raises:
            ToolError: The tool, or the schema of its arguments, says what is wrong.
            CallError: It was not called, or nothing came of it; the kind says why.
        """
        del envelope
        loop = asyncio.get_running_loop()
        ends, params = loop.time() + timeout, {"name": tool, "arguments": dict(arguments)}
        try:
            return value_of(await self.ask(CALL, params, timeout=timeout))
        except ToolUnavailableError as error:
            if not error.data.get("begun") or not await self._is_idempotent(tool, ends - loop.time()):
                raise
        return value_of(await self.ask(CALL, params, timeout=max(ends - loop.time(), 0.001)))

    async def _is_idempotent(self, tool: str, timeout: float) -> bool:
        try:
            hints = [each.get("annotations") or {} for each in await self.tools(timeout) if each["name"] == tool]
        except CallError:  # it is not back yet
            return False
        return any(each.get("idempotentHint") or each.get("readOnlyHint") for each in hints)

    async def list(self, *, timeout: float) -> Sequence[ToolInfo]:
        """Return the tools that the agent may call."""
        return [
            ToolInfo(self._name, each["name"], each["name"], each.get("description", ""), each["inputSchema"])
            for each in await self.tools(timeout)
        ]


class Bridge(Remote):
    """A server elsewhere, as `NatsService` serves one (`Served`). It sees no caller, so the team's `roles` decide."""

    auth = None
    approves: frozenset[str] = frozenset()
    guards_all = False

    def refused(self, caller: Caller, message: Message, error: CallError) -> None:
        """Log it: there is no audit of what is elsewhere."""
        log.warning("%s refuses %s of %s: %s", self.name, message["method"], caller, error)

    def __init__(self, name: str, key: Any, what: str, opens: Open) -> None:
        super().__init__(name, key, what, opens)
        self.name, self.version, self.changes = name, "", Changes()
        self._listening = Server[Any](name, on_subscriptions_listen=ListenHandler(self.changes))
        self._upstream: Upstream | None = None

    async def start(self) -> None:
        """Connect, and follow what changes there; see `Remote.start`."""
        await super().start()
        if self._connection is not None:
            self._upstream = Upstream(self._connection, self.changes.publish)
            await self._upstream.start()

    async def close(self) -> None:
        """Let go of it."""
        if self._upstream is not None:
            await self._upstream.close()
            self._upstream = None
        await super().close()

    def share(self, bus: Bus, name: str) -> None:
        """Do nothing: what it limits, it counts elsewhere."""

    async def tool_names(self) -> frozenset[str]:
        """Return the names of its tools."""
        return frozenset(each["name"] for each in await self.tools(START_WAIT))

    async def handle(self, message: Message, caller: Caller, notify: Any = None) -> Message | None:
        """Pass a request on, and return its answer."""
        method, params = str(message["method"]), dict(message.get("params") or {})
        token = (params.pop("_meta", None) or {}).get("progressToken")
        if method == _LISTEN and self._upstream is not None:
            uris = (params.get("notifications") or {}).get("resourceSubscriptions") or ()
            async with self._upstream.following(uris):
                return await answer(self._listening, message, caller, notify)

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            told = {"progressToken": token, "progress": progress, "total": total, "message": message}
            params = {key: value for key, value in told.items() if value is not None}
            await notify({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})

        if method == _DISCOVER:
            result = await self.discover()
        else:
            tells = tell if token is not None and notify is not None else None
            result = await self.ask(method, params, timeout=LONGEST, progress=tells)
        later = {"resultType": "complete", **({} if method == CALL else {"ttlMs": 0, "cacheScope": "private"})}
        return {"jsonrpc": "2.0", "id": message["id"], "result": {**later, **result}}
