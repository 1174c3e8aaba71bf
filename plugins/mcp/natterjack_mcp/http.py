"""Serving over Streamable HTTP: the SDK's application behind a door that knows callers."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Iterator
from typing import Final, NamedTuple

import uvicorn
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from natterjack import ConfigError, TokenError
from natterjack_mcp.auth import Auth
from natterjack_mcp.caller import Caller, calling
from natterjack_mcp.server import MCPServer

log = logging.getLogger("natterjack.tools")

PATH: Final = "/mcp"
BACKLOG: Final = 1024
KEEP_ALIVE: Final = 75
"""Seconds a connection may idle: longer than reverse proxies keep theirs, so that none sends into one that closes."""
MAX_HEADERS: Final = 2**21
"""Bytes of a request's headers that are read: enough to tell whoever shows a token of a megabyte what is wrong."""
AGAIN: Final = 2.0
"""Seconds between two looks whether who is being answered still would be let in."""
DRAIN: Final = 5
"""Seconds that calls under way have when the server stops."""
_PORTS: Final = range(2**16)


class Address(NamedTuple):
    """Where to listen: an IP address, and a port, 0 for one that is free."""

    host: str
    port: int

    @classmethod
    def read(cls, text: str) -> Address:
        """Read `HOST:PORT`.

        Raises:
            ConfigError: It is none.
        """
        try:
            host, _, port = text.rpartition(":")
            address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host.strip("[]"))
            return cls(str(address), _PORTS.index(int(port)))
        except ValueError as error:
            msg = f"{text!r} is no address; write an IP address and a port, e.g. '127.0.0.1:8080' or '[::1]:8080'"
            raise ConfigError(msg) from error

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def serve_http(server: MCPServer, address: Address) -> None:
    """Serve at an address until cancelled; calls under way then have five seconds.

    Raises:
        ConfigError: It cannot listen there, or others than this machine's programs could reach what nobody guards.
    """
    _check(server, address)
    listening = _bind(address)
    bound = Address(*listening.getsockname()[:2])
    application = server.lowlevel.streamable_http_app(streamable_http_path=PATH, host=address.host)
    http = _Server(_config(Door(server, application)))
    log.info("%s is served at http://%s%s", server.name, bound, PATH)
    serving = asyncio.create_task(http.serve(sockets=[listening]))
    try:
        await asyncio.shield(serving)
    finally:
        http.should_exit = True
        await serving


def _check(server: MCPServer, address: Address) -> None:
    if address.local:
        return
    if server.auth is None:
        msg = (
            f"{address} can be reached from other machines, and {server.name!r} does not know its callers: give it an "
            "AuthMiddleware, or serve it at 127.0.0.1"
        )
        raise ConfigError(msg)
    server.auth.check_exposed()


class Door:
    """Lets requests in whose caller is known (ASGI), for as long as it is; all, if the server does not care."""

    def __init__(self, server: MCPServer, application: ASGIApp) -> None:
        self._server, self._application = server, application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        auth = self._server.auth
        if scope["type"] != "http" or auth is None:
            await self._application(scope, receive, send)
            return
        try:
            token = shown(Headers(scope=scope))
            caller = await auth.caller(token) if token is not None else None
        except TokenError as error:
            await self._refusal("invalid_token", error.reason)(scope, receive, send)
            return
        if token is None or caller is None:
            await self._refusal("", auth.asks_for)(scope, receive, send)
            return
        # The SDK lets a session be used only by who began it.
        scope["user"] = _user(caller)
        answer = _Answer(send)
        with calling(caller):
            serving = asyncio.create_task(_awaited(self._application(scope, receive, answer.send)))
        try:
            problem = await _refused(auth, token, serving)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        if problem is None:
            serving.result()
            return
        log.info("%s: what %s was answered is cut off: %s", self._server.name, caller.name, problem)
        if not answer.begun:
            await self._refusal("invalid_token", problem.reason)(scope, receive, send)
        elif not answer.ended:
            await send({"type": "http.response.body", "body": b""})

    def _refusal(self, error: str, reason: str) -> Response:
        challenge = f'Bearer realm="{self._server.name}"'
        if error:
            challenge += f', error="{error}", error_description="{reason}"'
        body = {"error": error or "unauthorized", "error_description": reason}
        return JSONResponse(body, 401, {"WWW-Authenticate": challenge})


class _Answer:
    """Remembers how far an answer has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = self.ended = False

    async def send(self, message: Message) -> None:
        """Send a part of it."""
        self.begun = True
        self.ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)


async def _refused(auth: Auth, token: str, serving: asyncio.Task[None]) -> TokenError | None:
    """Return why who was let in would not be any more; None once it is served, if nothing changes before."""
    while not (await asyncio.wait([serving], timeout=AGAIN))[0]:
        try:
            await auth.caller(token)
        except TokenError as error:
            return None if serving.done() else error
    return None


async def _awaited(work: Awaitable[None]) -> None:
    await work


def shown(headers: Headers) -> str | None:
    """Return what a caller shows.

    Raises:
        TokenError: It shows two things.
    """
    given = headers.getlist("authorization")
    if len(given) > 1:
        msg = "there are two headers `Authorization`"
        raise TokenError(msg)
    scheme, _, token = (given[0] if given else "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")


def _user(caller: Caller) -> AuthenticatedUser:
    return AuthenticatedUser(
        AccessToken(
            token="",  # nobody needs it any more
            client_id=caller.name,
            scopes=sorted(caller.scopes),
            subject=caller.name,
            claims=dict(caller.claims),
        )
    )


def _bind(address: Address) -> socket.socket:
    """Return a socket that listens, so that a port that is taken is known at once."""
    listening = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        msg = f"this process cannot listen at {address}: {error.strerror}; choose another address"
        raise ConfigError(msg) from error
    return listening


# uvicorn, without what belongs to a program that is nothing but a web server


class _Server(uvicorn.Server):
    """Leaves signals to the process; cancelled, it drains."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=DRAIN,
        h11_max_incomplete_event_size=MAX_HEADERS,
    )
