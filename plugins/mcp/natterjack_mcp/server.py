"""A tool server: tools, resources and prompts for many callers, each of which it lets do what its guards say."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from natterjack import Bus, ConfigError
from natterjack_mcp.audit import AuditMiddleware
from natterjack_mcp.auth import Auth
from natterjack_mcp.caller import Caller
from natterjack_mcp.errors import CallError
from natterjack_mcp.guards import Check
from natterjack_mcp.limits import RateLimitMiddleware
from natterjack_mcp.middleware import AuthMiddleware, Middleware
from natterjack_mcp.wire import Message, Notify, result_of, value_of

if TYPE_CHECKING:
    from mcp.server import MCPServer as SDKServer
    from mcp.server.lowlevel.server import Server as LowLevelServer

    from natterjack_mcp.gate import Kind

# The SDK takes 30 MB and half a second. Every process of a team loads its plugins, and few of them serve tools: so
# it is imported where a server is made, not where this module is.

F = TypeVar("F", bound=Callable[..., Any])


class MCPServer:
    """Serves tools, resources and prompts over the Model Context Protocol.

    Example::

        server = MCPServer("team-tools")
        server.middleware = [AuthMiddleware(JWTAuth(secret=os.environ["SECRET"]))]


        @server.tool(guards=[HasRole("researcher")])
        async def web_search(query: str, ctx: ToolContext) -> list[str]:
            \"\"\"Search the web.\"\"\"

    With an `AuthMiddleware`, whatever has neither guards nor `public=True` is refused to all.

    Args:
        name: Of the server.
        version: Of the server.
        instructions: Tell models what it is good for.

    Attributes:
        name: Of the server.
        version: Of the server.
        changes: Where changes are told.
        middleware: What stands around each call of a tool, outermost first.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "",
        instructions: str | None = None,
    ) -> None:
        from mcp.server import MCPServer as SDKServer

        from natterjack_mcp.changes import Changes
        from natterjack_mcp.gate import Gate

        self.name, self.version = name, version
        self.changes = Changes()
        self._gate = Gate(name)
        self._sdk = _quiet(
            lambda: SDKServer(
                name,
                version=version,
                instructions=instructions,
                subscriptions=self.changes,
                middleware=[self._gate],
                log_level="WARNING",
            )
        )

    @property
    def middleware(self) -> Sequence[Middleware]:
        """What stands around each call of a tool, outermost first."""
        return self._gate.middleware

    @middleware.setter
    def middleware(self, middleware: Sequence[Middleware]) -> None:
        self._gate.middleware = tuple(middleware)

    @property
    def auth(self) -> Auth | None:
        """What knows callers: that of the `AuthMiddleware`, if there is one."""
        return self._gate.auth

    guards_all = True

    def refused(self, caller: Caller, message: Message, error: CallError) -> None:
        """Have the audit note a call that was refused before it came here; for transports."""
        from natterjack_mcp.gate import call_of

        for each in self._gate.middleware:
            if isinstance(each, AuditMiddleware):
                each.refused(call_of(self.name, message, caller), error)

    def share(self, bus: Bus, name: str) -> None:
        """Have limits counted with all who serve under this name, and the team's revocations heard; for transports."""
        for each in self._gate.middleware:
            if isinstance(each, RateLimitMiddleware | AuthMiddleware):
                each.share(bus, name)

    async def tool_names(self) -> frozenset[str]:
        """Return the names of its tools."""
        return self._gate.names("tool")

    @property
    def approves(self) -> frozenset[str]:
        """The tools each call of which a human must allow."""
        return self._gate.approves

    @property
    def lowlevel(self) -> LowLevelServer[Any]:
        """The SDK's server, for transports."""
        return self._sdk._lowlevel_server  # there is no other way to it, which is why the version of mcp is pinned

    # What it serves

    def tool(
        self,
        name: str | None = None,
        *,
        guards: Sequence[Check] = (),
        public: bool = False,
        title: str | None = None,
        description: str | None = None,
        structured_output: bool | None = None,
        idempotent: bool = False,
        approval: bool = False,
    ) -> Callable[[F], F]:
        """Make a function a tool, named and described as it is itself unless said otherwise.

        A plain `def` runs in a thread. A parameter `ctx`, or one annotated `ToolContext`, is injected, and no model
        sees it.

        Args:
            name: Of the tool.
            guards: All of them must let a caller pass.
            public: Whether it needs no guards, with an `AuthMiddleware`.
            title: For humans.
            description: For models.
            structured_output: Whether results have a schema; by default if the function says what it returns.
            idempotent: Whether calling it twice does no more than once: then a call is repeated whose server died.
            approval: Whether a human must allow each call, which is asked as by `ask_human`.

        Raises:
            ConfigError: There is a tool of that name, or the function cannot be one.
        """

        def register(function: F) -> F:
            from mcp_types import ToolAnnotations

            tool, annotations = _adapted(function), ToolAnnotations(idempotent_hint=True) if idempotent else None
            called = name or tool.__name__
            self._add(
                "tool",
                called,
                guards,
                public,
                lambda: self._sdk.add_tool(
                    tool, called, title, description, annotations, structured_output=structured_output
                ),
                approval=approval,
            )
            return function

        return register

    def remove_tool(self, name: str) -> None:
        """Serve a tool no more.

        Raises:
            ConfigError: There is none of that name.
        """
        self._gate.remove("tool", name)
        self._sdk.remove_tool(name)

    def resource(
        self,
        uri: str,
        *,
        guards: Sequence[Check] = (),
        public: bool = False,
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        mime_type: str | None = None,
    ) -> Callable[[F], F]:
        """Make a function a resource; one with `{…}` in its URI is a template, and these are its parameters.

        Raises:
            ConfigError: There is one of that URI, or the function cannot be one.
        """

        def register(function: F) -> F:
            resource = _adapted(function, before=lambda: self._gate.check("resource", uri))
            decorate = self._sdk.resource(uri, name=name, title=title, description=description, mime_type=mime_type)
            self._add("resource", uri, guards, public, lambda: decorate(resource))
            return function

        return register

    def prompt(
        self,
        name: str | None = None,
        *,
        guards: Sequence[Check] = (),
        public: bool = False,
        title: str | None = None,
        description: str | None = None,
    ) -> Callable[[F], F]:
        """Make a function a prompt.

        Raises:
            ConfigError: There is one of that name, or the function cannot be one.
        """

        def register(function: F) -> F:
            called = name or function.__name__
            prompt = _adapted(function, before=lambda: self._gate.check("prompt", called))
            decorate = self._sdk.prompt(called, title=title, description=description)
            self._add("prompt", called, guards, public, lambda: decorate(prompt))
            return function

        return register

    def _add(
        self,
        kind: Kind,
        name: str,
        guards: Sequence[Check],
        public: bool,
        register: Callable[[], object],
        *,
        approval: bool = False,
    ) -> None:
        self._gate.add(kind, name, guards, public=public, approval=approval)
        try:
            register()
        except (TypeError, ValueError, RuntimeError) as error:  # of the SDK and of pydantic
            self._gate.remove(kind, name)
            msg = f"the {kind} {name!r} cannot be served: {error}"
            raise ConfigError(msg) from error

    # Changes

    async def tools_changed(self) -> None:
        """Tell clients that listen that the list of tools is another."""
        from mcp.shared.subscriptions import ToolsListChanged

        await self.changes.publish(ToolsListChanged())

    async def resources_changed(self) -> None:
        """Tell clients that listen that the list of resources is another."""
        from mcp.shared.subscriptions import ResourcesListChanged

        await self.changes.publish(ResourcesListChanged())

    async def resource_updated(self, uri: str) -> None:
        """Tell clients that listen to it that a resource is another."""
        from mcp.shared.subscriptions import ResourceUpdated

        await self.changes.publish(ResourceUpdated(uri=uri))

    # Serving

    async def handle(self, message: Message, caller: Caller, notify: Notify | None = None) -> Message | None:
        """Answer one JSON-RPC message of a transport without sessions; cancel this call to cancel the request.

        Args:
            message: A request of the protocol 2026-07-28, or one without an envelope (`_meta`); or a notification.
            caller: Who sent it, as the transport knows.
            notify: Takes notifications that come before the answer: progress, and events that were asked for.

        Returns:
            The answer; None to a notification.
        """
        from natterjack_mcp.exchange import answer

        return await answer(self.lowlevel, message, caller, notify)

    def run(self, *, stdio: bool = False, http: str | None = None, nats: bool = False, name: str | None = None) -> None:
        """Serve until stopped, in one way or several, as the main part of a program.

        Args:
            http: Serve at this IP address and port, e.g. `127.0.0.1:8080`, path `/mcp`.
            stdio: Serve the process that started this one; it shows a token in NATTERJACK_TOKEN, if it must.
            nats: Serve the team on the NATS server of NATS_URL, or on the broker that runs in this folder.
            name: What it is called there; by default as it is itself.

        Raises:
            ConfigError: It cannot be served like that.
        """
        from natterjack_mcp.serving import run

        run(self, stdio=stdio, http=http, nats=nats, name=name)

    async def call(
        self, tool: str, arguments: Mapping[str, Any] | None = None, *, as_caller: Caller | None = None
    ) -> Any:
        """Call a tool without a transport, as a test does, and return its result as JSON.

        Raises:
            ToolError: The tool or its arguments are wrong.
            CallError: It was not called; the kind says why.
        """
        params = {"name": tool, "arguments": dict(arguments or {})}
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        found = await self.handle(request, as_caller or Caller()) or {}
        return value_of(result_of(found))


def _adapted(function: Callable[..., Any], before: Callable[[], Awaitable[None]] | None = None) -> Any:
    from natterjack_mcp.functions import adapted

    return adapted(function, before)


def _quiet(make: Callable[[], SDKServer[Any]]) -> SDKServer[Any]:
    """Make the SDK's server, which takes a process's log for its own unless somebody has."""
    taken = logging.NullHandler()
    logging.root.addHandler(taken)
    try:
        return make()
    finally:
        logging.root.removeHandler(taken)
