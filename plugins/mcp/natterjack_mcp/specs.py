"""Where tool servers are, for `AgentProcess(servers={…})`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from natterjack import Bus, ConfigError, ToolClient, ToolSubjects
from natterjack_mcp.client import NatsTools
from natterjack_mcp.errors import UnauthenticatedError

if TYPE_CHECKING:
    from mcp import Client
    from mcp.client.session import MessageHandlerFnT

    from natterjack_mcp.remote import Bridge

# The SDK is imported where a connection is made: most processes of a team need none of it.

PATH: Final = "/mcp"
CONNECT_WAIT: Final = 10.0
"""Seconds to connect; an answer may take as long as its call may."""


@dataclass(frozen=True, slots=True)
class NatsServerSpec:
    """A tool server on the team's own NATS server.

    Attributes:
        server: Its name there.
        bearer_token: What the agent shows.

    Raises:
        InvalidNameError: The name is malformed.
    """

    server: str
    bearer_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        ToolSubjects(self.server)

    def client(self, server: str, bus: Bus) -> ToolClient:
        """Return what calls it; the agent does not start where it is not there."""
        del server
        return NatsTools(self.server, bus, self.bearer_token, check=True)


@dataclass(frozen=True, slots=True)
class HttpServerSpec:
    """A tool server behind Streamable HTTP. The agents of a process that name the same one share its connection.

    Attributes:
        url: Its URL; without a path, that is `/mcp`.
        bearer_token: What the agent shows.

    Raises:
        ConfigError: It is no URL.
    """

    url: str
    bearer_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"{self.url!r} is no URL of a tool server; write e.g. 'http://localhost:8080'"
            raise ConfigError(msg)
        if parts.path in ("", "/"):
            object.__setattr__(self, "url", urlunsplit(parts._replace(path=PATH)))

    def client(self, server: str, bus: Bus) -> ToolClient:
        """Return what calls it; the agent does not start where it is not there."""
        del bus
        from natterjack_mcp.remote import RemoteTools

        return RemoteTools(server, self, self.url, self.connect)

    def bridge(self, name: str) -> Bridge:
        """Return what serves it to others."""
        from natterjack_mcp.remote import Bridge

        return Bridge(name, self, self.url, self.connect)

    @asynccontextmanager
    async def connect(self, gone: asyncio.Event, hear: MessageHandlerFnT) -> AsyncIterator[Client]:
        """Connect; see `connection.Open`."""
        import httpx2
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client

        from natterjack_mcp.connection import watched

        refusals: list[str] = []

        async def look(response: Any) -> None:
            if response.status_code in (401, 403):
                refusals.append(response.headers.get("WWW-Authenticate", f"status {response.status_code}"))

        headers = {"Authorization": f"Bearer {self.bearer_token}"} if self.bearer_token else {}
        timeout = httpx2.Timeout(CONNECT_WAIT, read=None)
        hooks = {"response": [look]}
        try:
            async with (
                httpx2.AsyncClient(headers=headers, timeout=timeout, event_hooks=hooks) as http,
                Client(
                    watched(streamable_http_client(self.url, http_client=http), gone), message_handler=hear
                ) as client,
            ):
                yield client
        except Exception as error:
            if not refusals:
                raise
            msg = f"it wants to know who calls, and answers: {refusals[-1]}"
            raise UnauthenticatedError(msg) from error


@dataclass(frozen=True, slots=True, eq=False)
class StdioServerSpec:
    """A tool server that is started as a child, and speaks over its pipes.

    The agents of a process that have the same object, or an equal one, share one child. One that ends is started again,
    with growing pauses.

    Attributes:
        command: What to start; `python` is the Python that runs.
        args: Its arguments.
        env: Variables beside `PATH`, `HOME` and their like, which are all that it gets of this process.
        cwd: Its folder; by default this process's.
    """

    command: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None

    def _key(self) -> tuple[Any, ...]:
        return (self.command, *self.args, self.cwd, *sorted(self.env.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StdioServerSpec) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __str__(self) -> str:
        return " ".join([self.command, *self.args])

    def client(self, server: str, bus: Bus) -> ToolClient:
        """Return what calls it; the agent does not start where it does not."""
        del bus
        from natterjack_mcp.remote import RemoteTools

        return RemoteTools(server, self, str(self), self.connect)

    def bridge(self, name: str) -> Bridge:
        """Return what serves it to others."""
        from natterjack_mcp.remote import Bridge

        return Bridge(name, self, str(self), self.connect)

    @asynccontextmanager
    async def connect(self, gone: asyncio.Event, hear: MessageHandlerFnT) -> AsyncIterator[Client]:
        """Start it and connect; see `connection.Open`."""
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client

        from natterjack_mcp.connection import watched

        command = sys.executable if self.command == "python" else self.command
        child = StdioServerParameters(command=command, args=[*self.args], env={**self.env}, cwd=self.cwd)
        async with Client(watched(stdio_client(child), gone), message_handler=hear) as client:
            yield client
