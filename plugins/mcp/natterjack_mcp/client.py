"""Calling a tool server over NATS: as an agent does, and as the transport of the official client."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from natterjack import Bus, Envelope, NatterjackError, ToolInfo, find_server
from natterjack_mcp.errors import CallError, ToolUnavailableError
from natterjack_mcp.wire import CALL, Line, Message, Notify, failure, value_of

if TYPE_CHECKING:
    from mcp.client._transport import TransportStreams

log = logging.getLogger("natterjack.tools")

LONGEST: Final = 86_400.0
"""Seconds for one request of the official client, which has deadlines of its own."""
PAUSE: Final = 0.05
"""Seconds before a request is repeated that a replica did not begin with, because it stops."""
RELOADING: Final = 8
"""Times to ask again where nobody is there: a server that reads its accounts anew has all log in once more."""
_PAGES: Final = 100


class NatsTools:
    """The tools of one server, over NATS (`ToolClient`).

    Args:
        server: Its name.
        bus: The agent's connection.
        token: What the agent shows.
        source: Who calls, as it says itself; by default whose connection it is. Empty: nobody knows.
        check: Whether the server must be there when the agent starts.
    """

    def __init__(
        self, server: str, bus: Bus, token: str | None = None, *, source: str | None = None, check: bool = False
    ) -> None:
        self._line, self._check = Line(server, bus, token, source=source), check
        self._patience = RELOADING if bus.server.attests else 0

    async def start(self) -> None:
        """Look whether the server is there, if it must be.

        Raises:
            ToolUnavailableError: It is not.
        """
        if self._check:
            await self.ask("server/discover", {}, timeout=10.0)

    async def call(self, tool: str, arguments: Mapping[str, Any], *, timeout: float, envelope: Envelope) -> Any:
        """Call a tool; see `ToolClient.call`. One that is idempotent is called again where its server died.

        Raises:
            ToolError: The tool, or the schema of its arguments, says what is wrong.
            CallError: It was not called, or nothing came of it; the kind says why.
        """
        params = {"name": tool, "arguments": dict(arguments)}
        return value_of(await self.result(params, timeout=timeout, envelope=envelope))

    async def result(
        self, params: Mapping[str, Any], *, timeout: float, envelope: Envelope, notify: Notify | None = None
    ) -> Message:
        """Call a tool as `call` does, with parameters and a result as on the wire; `notify` takes its progress."""
        ends, tool = asyncio.get_running_loop().time() + timeout, params["name"]
        try:
            return await self.ask(CALL, params, timeout=timeout, envelope=envelope, notify=notify)
        except ToolUnavailableError as error:
            left = ends - asyncio.get_running_loop().time()
            if not error.data.get("begun") or left <= 0 or not await self._is_idempotent(tool, left):
                raise
            log.warning("%s; %r is called again", error, tool)
            return await self.ask(CALL, params, timeout=left, envelope=envelope, notify=notify)

    async def list(self, *, timeout: float) -> Sequence[ToolInfo]:
        """Return the tools that the agent may call."""
        return [
            ToolInfo(self._line.server, each["name"], each["name"], each.get("description", ""), each["inputSchema"])
            for each in await self.items("tools/list", "tools", timeout=timeout)
        ]

    async def close(self) -> None:
        """Do nothing: the connection is the agent's."""

    async def items(self, method: str, field: str, *, timeout: float) -> Sequence[Message]:
        """Return all that a list of the server has, e.g. `tools` of `tools/list`, as on the wire.

        Raises:
            CallError: It cannot be had; the kind says why.
        """
        found: list[Message] = []
        cursor: Mapping[str, Any] = {}
        for _ in range(_PAGES):
            result = await self.ask(method, cursor, timeout=timeout)
            found += result[field]
            if not result.get("nextCursor"):
                break
            cursor = {"cursor": result["nextCursor"]}
        return found

    async def _is_idempotent(self, tool: str, timeout: float) -> bool:
        try:
            tools = await self.items("tools/list", "tools", timeout=timeout)
            hints = [each.get("annotations") or {} for each in tools if each["name"] == tool]
        except CallError:  # nobody is left who knows
            return False
        return any(each.get("idempotentHint") or each.get("readOnlyHint") for each in hints)

    async def ask(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        timeout: float,
        envelope: Envelope | None = None,
        notify: Notify | None = None,
    ) -> Message:
        """Send a request; again, while a replica answers that it stops and has not begun. See `Line.ask`."""
        loop = asyncio.get_running_loop()
        ends, absent = loop.time() + timeout, 0
        while True:
            try:
                left = max(ends - loop.time(), 0.001)
                return await self._line.ask(
                    method, params, timeout=left, envelope=envelope or Envelope(), notify=notify
                )
            except ToolUnavailableError as error:
                absent += bool(error.data.get("absent"))
                if error.data.get("begun") is not False or absent > self._patience or loop.time() + PAUSE > ends:
                    raise
            await asyncio.sleep(PAUSE)


@asynccontextmanager
async def nats_client(
    server: str, bus: Bus | None = None, *, token: str | None = None
) -> AsyncIterator[TransportStreams]:
    """Connect the official client to a tool server of the team.

    Example::

        async with Client(nats_client("team-tools")) as client:
            print(await client.list_tools())

    Args:
        server: Its name.
        bus: A connection; by default one of its own to the server of NATS_URL, or the broker that runs in this folder.
        token: What the caller shows.

    Raises:
        ConfigError: No NATS server is named, and none runs in this folder.
        ConnectError: It cannot be reached.
    """
    async with AsyncExitStack() as stack:
        if bus is None:
            bus = await Bus.connect(find_server(), principal="operator")
            stack.push_async_callback(bus.close)
        async with _Transport(Line(server, bus, token)) as streams:
            yield streams


class _Transport:
    """The two streams of the SDK, with a task for each request that is under way."""

    def __init__(self, line: Line) -> None:
        from mcp.shared._context_streams import create_context_streams
        from mcp.shared.message import SessionMessage

        self._line, self._tasks = line, dict[object, asyncio.Task[None]]()
        self._send, self._incoming = create_context_streams[SessionMessage | Exception](64)
        self._outgoing, self._take = create_context_streams[SessionMessage](64)
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> TransportStreams:
        self._reading = asyncio.create_task(self._read())
        return self._incoming, self._outgoing

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._tasks.values(), *([self._reading] if self._reading else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in (self._send, self._incoming, self._outgoing, self._take):
            await stream.aclose()

    async def _read(self) -> None:
        async for each in self._take:
            message = each.message.model_dump(mode="json", by_alias=True, exclude_unset=True)
            if "id" in message and "method" in message:
                task = asyncio.create_task(self._talk(message))
                self._tasks[message["id"]] = task
                task.add_done_callback(lambda _, id=message["id"]: self._tasks.pop(id, None))  # type: ignore[misc]
            elif message.get("method") == "notifications/cancelled":
                cancelled = self._tasks.get((message.get("params") or {}).get("requestId"))
                if cancelled is not None:
                    cancelled.cancel()

    async def _talk(self, message: Message) -> None:
        try:
            async with aclosing(self._line.talk(message, timeout=LONGEST)) as answers:
                async for each in answers:
                    await self._give(each)
        except CallError as error:
            await self._give(failure(message["id"], error.code, str(error), error.data))
        except NatterjackError as error:
            code = 403 if isinstance(error, PermissionError) else 400
            await self._give(failure(message["id"], code, str(error)))

    async def _give(self, message: Message) -> None:
        from mcp.shared.message import SessionMessage
        from mcp_types import jsonrpc_message_adapter

        await self._send.send(SessionMessage(jsonrpc_message_adapter.validate_python(message, by_name=False)))
