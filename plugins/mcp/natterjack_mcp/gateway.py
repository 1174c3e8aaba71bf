"""The gateway: all tool servers of a team behind one endpoint, and its agents, events and context as tools."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from mcp import MCPError
from mcp.server.context import HandlerResult, ServerRequestContext
from mcp.shared.subscriptions import PromptsListChanged, ResourcesListChanged, ServerEvent, ToolsListChanged
from mcp_types import INVALID_PARAMS, PROTOCOL_VERSION_META_KEY
from pydantic import BaseModel

from natterjack import (
    Admission,
    BrokerError,
    DisconnectedError,
    Envelope,
    InvalidNameError,
    NatterjackError,
    TeamClient,
    ToolSubjects,
    connect,
)
from natterjack import Message as NatsMessage
from natterjack_mcp.auth import Auth, TeamAuth
from natterjack_mcp.caller import ANYONE, who_calls
from natterjack_mcp.catalog import Item, by_name, by_uri
from natterjack_mcp.changes import unpacked
from natterjack_mcp.client import LONGEST, NatsTools
from natterjack_mcp.errors import CallError, ToolTimeoutError, ToolUnavailableError
from natterjack_mcp.http import Address, serve_http, shown
from natterjack_mcp.looking import running
from natterjack_mcp.middleware import AuthMiddleware
from natterjack_mcp.server import MCPServer
from natterjack_mcp.serving import until_stopped
from natterjack_mcp.teamtools import SCOPES, TeamTools
from natterjack_mcp.wire import Message

log = logging.getLogger("natterjack.tools")

EVERY: Final = 2.0
"""Seconds between two looks at which tool servers run."""
WINDOW: Final = 1.0
"""Seconds in which they answer."""
LIST_WAIT: Final = 5.0
"""Seconds for the list of one server; one that is slower is left out."""
FRESH: Final = 5.0
"""Seconds in which the names of a list lead to their servers without another look."""
MAX_CALLERS: Final = 1000
INSTRUCTIONS: Final = "The tools of a team of agents, and the agents themselves: `ask_peer` asks one of them."
_CHANGES: Final = (ToolsListChanged(), PromptsListChanged(), ResourcesListChanged())
_FIELDS: Final = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}

Own = Callable[[], Awaitable[HandlerResult]]
"""Asks the gateway's own server."""
_Context = ServerRequestContext[Any, Any]


class _Asker(NamedTuple):
    """Who calls, as tool servers are told: what it has shown, and its name for those that know no tokens."""

    token: str | None
    name: str


class Gateway:
    """Serves a team's tool servers as one.

    Args:
        team: The team.
        auth: Knows callers; None: whoever reaches it is nobody to the tool servers, and may use the team's own tools
            where the broker is not secured.

    Attributes:
        server: What clients speak to.
    """

    def __init__(self, team: TeamClient, auth: Auth | None = None) -> None:
        self.server = MCPServer("gateway", instructions=INSTRUCTIONS)
        self._admission = Admission(team.bus)
        self.server.middleware = [AuthMiddleware(TeamAuth(auth, self._admission))] if auth else []
        self._team, self._auth = team, auth
        self._servers, self._answered = frozenset[str](), frozenset[str]()
        self._hearing: dict[str, Any] = {}
        self._known: dict[tuple[str, _Asker], tuple[Mapping[str, Item], float]] = {}
        TeamTools(team, self._admission).give(self.server)
        for method in _FIELDS:
            self._relay(method, self._list)
        self._relay("tools/call", partial(self._use, "tools/list"))
        self._relay("prompts/get", partial(self._use, "prompts/list"))
        self._relay("resources/read", self._read)
        self._relay("subscriptions/listen", self._listen)
        # The SDK would list all tools before each call, to look whether headers repeat arguments rightly.
        self.server.lowlevel.get_tool_input_schema = _no_schema

    def _relay(self, method: str, handle: Callable[[_Context, Own], Awaitable[HandlerResult]]) -> None:
        entry = self.server.lowlevel.get_request_handler(method)
        if entry is None:  # pragma: no cover - the SDK has them all
            return

        async def relayed(ctx: _Context, params: Any) -> HandlerResult:
            try:
                return await handle(ctx, partial(entry.handler, ctx, params))
            except CallError:  # the gate knows how to tell it
                raise
            except NatterjackError as error:
                code = 403 if isinstance(error, PermissionError) else 400
                raise MCPError(code=code, message=str(error)) from error

        self.server.lowlevel.add_request_handler(method, entry.params_type, relayed)

    # Which servers there are

    async def follow(self) -> None:
        """Keep up with the servers that come and go, until cancelled.

        Raises:
            DisconnectedError: The connection is gone for good.
        """
        bus = self._team.bus
        closed = asyncio.ensure_future(bus.closed.wait())
        try:
            while not closed.done():
                try:
                    await self.look()
                except BrokerError as error:
                    log.info("which tool servers run cannot be seen now: %s", error)
                await asyncio.wait([closed], timeout=EVERY)
        finally:
            closed.cancel()
        raise DisconnectedError(bus.reason)

    async def look(self, window: float = WINDOW) -> None:
        """Look once which servers run; those that answer late once are not gone."""
        answered = frozenset(filter(_is_name, await running(self._team.bus, window)))
        there, self._answered = answered | (self._servers & self._answered), answered
        if there == self._servers:
            return
        for name in sorted(there - self._servers):
            log.info("the tool server %s is there", name)
            self._hearing[name] = await self._team.bus.subscribe(ToolSubjects(name).changes, self._hear)
        for name in sorted(self._servers - there):
            log.info("the tool server %s is gone", name)
            await self._hearing.pop(name).unsubscribe()
        self._servers = there
        for event in _CHANGES:
            await self._tell(event)

    async def _hear(self, message: NatsMessage) -> None:
        try:
            told = unpacked(message.data)
        except ValueError as error:
            log.warning("%s: %s", message.subject, error)
            return
        if told is not None:
            await self._tell(told[0])

    async def _tell(self, event: ServerEvent) -> None:
        self._known.clear()
        await self.server.changes.tell(event)

    # What they have for a caller

    def _asker(self, ctx: _Context) -> _Asker:
        token = shown(ctx.request.headers) if self._auth is not None and ctx.request is not None else None
        return _Asker(token, who_calls().name)

    def _tools(self, server: str, asker: _Asker) -> NatsTools:
        return NatsTools(server, self._team.bus, asker.token, source=asker.name)

    async def _found(self, method: str, asker: _Asker, *, fresh: bool = False) -> Mapping[str, Item]:
        """Return what a caller finds in a list of all servers, by the names that it knows them by."""
        found, since = self._known.get((method, asker), ({}, 0.0))
        if not fresh and since and time.monotonic() - since < FRESH:
            return found
        lists = await asyncio.gather(*(self._items(method, each, asker) for each in await self._open(asker)))
        items = [each for items in lists for each in items]
        if method in ("tools/list", "prompts/list"):
            found = by_name(items, SCOPES if method == "tools/list" else ())
        else:
            found = by_uri(items, "uri" if method == "resources/list" else "uriTemplate")
        if len(self._known) >= MAX_CALLERS:
            self._known.clear()
        self._known[method, asker] = found, time.monotonic()
        return found

    async def _open(self, asker: _Asker) -> list[str]:
        """Return the servers of which the team lets a caller use something."""
        wanted = {f"{each}/*": each for each in sorted(self._servers)}
        return [wanted[each] for each in await self._admission.allowed(asker.name or ANYONE, "call", wanted)]

    async def _items(self, method: str, server: str, asker: _Asker) -> Sequence[Item]:
        try:
            told = await self._tools(server, asker).items(method, _FIELDS[method], timeout=LIST_WAIT)
        except (ToolUnavailableError, ToolTimeoutError) as error:
            log.warning("%s is left out of %r: %s", server, method, error)
            return ()
        except (CallError, BrokerError) as error:  # it has no such list, or none for this caller
            log.debug("%s is left out of %r: %s", server, method, error)
            return ()
        return [Item(server, each) for each in told]

    # As the SDK calls it

    async def _list(self, ctx: _Context, own: Own) -> HandlerResult:
        result, field = _dumped(await own()), _FIELDS[ctx.method]
        found = await self._found(ctx.method, self._asker(ctx), fresh=True)
        if ctx.method == "tools/list":
            found = await self._callable(found, self._asker(ctx))
        named = ctx.method in ("tools/list", "prompts/list")
        items = [{**each.told, "name": name} if named else each.told for name, each in found.items()]
        return {**result, field: [*result.get(field, ()), *items]}

    async def _callable(self, found: Mapping[str, Item], asker: _Asker) -> dict[str, Item]:
        """Return the tools that the team lets a caller call."""
        wanted = dict.fromkeys(_right(each) for each in found.values())
        allowed = frozenset(await self._admission.allowed(asker.name or ANYONE, "call", wanted))
        return {name: each for name, each in found.items() if _right(each) in allowed}

    async def _use(self, listed: str, ctx: _Context, own: Own) -> HandlerResult:
        """Call a tool, or get a prompt, of whichever server has it."""
        params, asker = dict(ctx.params or {}), self._asker(ctx)
        name = params["name"]
        if listed == "tools/list" and name in SCOPES:
            return await own()
        found = await self._found(listed, asker)
        item = found.get(name) or _by_full_name(found, name)
        if item is None:
            raise _nothing(asker, listed.partition("s/")[0], name)
        params = {**_relayed(params), "name": item.told["name"]}
        tools = self._tools(item.server, asker)
        if listed == "tools/list":
            await self._admission.check(asker.name or ANYONE, "call", _right(item))
            return await tools.result(params, timeout=LONGEST, envelope=Envelope(), notify=partial(_notify, ctx))
        return await tools.ask(ctx.method, params, timeout=LONGEST)

    async def _read(self, ctx: _Context, own: Own) -> HandlerResult:
        """Read a resource from the server that lists it, or from the first with templates that has it."""
        del own
        params, asker = _relayed(ctx.params or {}), self._asker(ctx)
        refused: CallError | None = None
        for server in await self._having(params["uri"], asker):
            try:
                return await self._tools(server, asker).ask(ctx.method, params, timeout=LONGEST)
            except CallError as error:
                refused = error if refused is None or error.code == 403 else refused
        if refused is not None:
            raise refused
        raise _nothing(asker, "resource", params["uri"])

    async def _listen(self, ctx: _Context, own: Own) -> HandlerResult:
        """Listen, and have servers look after resources that they only tell of while somebody listens."""
        wanted = (dict(ctx.params or {}).get("notifications") or {}).get("resourceSubscriptions") or ()
        asker = self._asker(ctx)
        servers = [(server, uri) for uri in wanted for server in await self._having(uri, asker)]
        tasks = [asyncio.create_task(self._keep_told(server, uri, asker)) for server, uri in servers]
        try:
            return await own()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_told(self, server: str, uri: str, asker: _Asker) -> None:
        """Listen to a resource; what is told comes to all replicas and the gateway, too, and so is left alone here."""
        wanted = {"notifications": {"resourceSubscriptions": [uri]}}
        while True:
            try:
                await self._tools(server, asker).ask("subscriptions/listen", wanted, timeout=LONGEST)
            except NatterjackError as error:
                log.debug("%s does not tell of %r: %s", server, uri, error)
            await asyncio.sleep(EVERY)

    async def _having(self, uri: str, asker: _Asker) -> Sequence[str]:
        """Return the server that lists a resource, or else all that have templates."""
        item = (await self._found("resources/list", asker)).get(uri)
        if item is not None:
            return [item.server]
        templates = await self._found("resources/templates/list", asker)
        return sorted({each.server for each in templates.values()})


async def serve_gateway(address: Address, auth: Auth | None, server: str | None = None) -> None:
    """Serve a team's tool servers at an address until stopped; calls under way then have five seconds.

    Args:
        address: Where.
        auth: Knows callers.
        server: URL of the NATS server; NATS_URL by default.

    Raises:
        ConfigError: It cannot listen there, or others than this machine's programs could reach what nobody guards.
        ConnectError: The NATS server cannot be reached.
        NotProvisionedError: No team has been provisioned there.
    """
    async with connect(server) as team:
        gateway = Gateway(team, auth)
        await gateway.look(WINDOW / 2)
        await until_stopped(gateway.server, [partial(serve_http, gateway.server, address), gateway.follow])


def _is_name(name: str) -> bool:
    try:
        ToolSubjects(name)
    except InvalidNameError:  # of a stranger
        return False
    return True


def _no_schema(name: str) -> None:
    del name


def _dumped(result: HandlerResult) -> Message:
    if isinstance(result, BaseModel):
        return result.model_dump(by_alias=True, mode="json", exclude_none=True)
    return dict(result or {})


def _right(tool: Item) -> str:
    """Return what the team's rules call a tool."""
    return f"{tool.server}/{tool.told['name']}"


def _nothing(asker: _Asker, kind: str, name: object) -> MCPError:
    text = f"there is no {kind} {name!r} that {asker.name or 'nobody'} may use; the list shows those that there are"
    return MCPError(code=INVALID_PARAMS, message=text)


def _by_full_name(found: Mapping[str, Item], name: str) -> Item | None:
    """Return what is called so by its full name, though nothing clashes with it now.

    Raises:
        MCPError: Several servers have that name.
    """
    full = [each for each in found.values() if name == f"{each.server}_{each.told['name']}"]
    several = [key for key, each in found.items() if each.told["name"] == name]
    if full or not several:
        return full[0] if full else None
    msg = f"{name!r} is of several servers; say {' or '.join(several)}"
    raise MCPError(code=INVALID_PARAMS, message=msg)


def _relayed(params: Mapping[str, Any]) -> Message:
    """Return parameters as a tool server takes them; what clients of older protocols say of themselves stays here."""
    meta = params.get("_meta") or {}
    if PROTOCOL_VERSION_META_KEY not in meta:
        meta = {key: value for key, value in meta.items() if key == "progressToken"}
    return {**params, "_meta": dict(meta)}


async def _notify(ctx: _Context, message: Message) -> None:
    if message.get("method") == "notifications/progress":
        told = message["params"]
        await ctx.session.report_progress(told["progress"], told.get("total"), told.get("message"))
