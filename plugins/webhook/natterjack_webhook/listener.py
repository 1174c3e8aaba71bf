"""The listener: one HTTP server for all hooks of this process at one address."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from natterjack import ConfigError, StartError
from natterjack_webhook.address import HEALTH, Address
from natterjack_webhook.hook import Hook, Refused, unavailable

log = logging.getLogger("natterjack.webhook")

MAX_UNDER_WAY: Final = 256
"""Requests at once, which bounds the memory that their bodies take."""
BACKLOG: Final = 1024
KEEP_ALIVE: Final = 75
"""Seconds a connection may idle: longer than reverse proxies keep theirs, so that none sends into one that closes."""
CLOSE_LIMIT: Final = 3
"""Seconds in which the last answers must be sent before connections are closed."""


_listeners: dict[tuple[asyncio.AbstractEventLoop, Address], Listener] = {}


@contextlib.asynccontextmanager
async def served(hook: Hook, address: Address) -> AsyncIterator[Listener]:
    """Within the context, serve a hook at an address, together with all others of this process there.

    Raises:
        ConfigError: The port or the path is taken, or it cannot listen there.
    """
    key = (asyncio.get_running_loop(), address)
    listener = _listeners.setdefault(key, Listener(address))
    listener.users += 1
    try:
        await listener.add(hook)
        try:
            yield listener
        finally:
            await listener.remove(hook)
    finally:
        listener.users -= 1
        if not listener.users:
            del _listeners[key]


class Listener:
    """Serves hooks; listens from the first to the last.

    Attributes:
        users: How many have, or wait for, a hook here.
        url: Where it is reached while it listens.
    """

    def __init__(self, address: Address) -> None:
        self.users, self.url = 0, ""
        self._address, self._lock = address, asyncio.Lock()
        self._hooks: dict[str, Hook] = {}
        self._open: set[Hook] = set()
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._under_way = 0

    async def add(self, hook: Hook) -> None:
        """Serve a hook, and listen if it is the first; errors as for `served`."""
        async with self._lock:
            other = self._hooks.get(hook.path)
            if other in self._open and not other.draining:
                agents = f"{other.agent!r} and {hook.agent!r}"
                msg = f"the path {hook.path!r} at {self._address} is there twice, for {agents}; choose another"
                raise ConfigError(msg)
            if self._serving is None:
                self._listen()
            self._hooks[hook.path] = hook
            self._open.add(hook)

    async def remove(self, hook: Hook) -> None:
        """Answer what is under way to a hook, and close if it is the last; until then its path is answered 503."""
        await hook.drain()
        async with self._lock:
            self._open.discard(hook)
            if not self._open:
                await self._close()

    async def ended(self) -> StartError:
        """Return, should the server end by itself, what to raise."""
        if self._serving is not None:
            await asyncio.wait([self._serving])
        return StartError(f"the HTTP server at {self._address} ended by itself")

    def _listen(self) -> None:
        listening = _bind(self._address)
        host, port = listening.getsockname()[:2]
        self.url = f"http://{Address(host, port)}"
        self._server = _Server(_config(self))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listening]))
        log.info("webhooks are taken at %s", self.url)

    async def _close(self) -> None:
        server, self._server = self._server, None
        serving, self._serving = self._serving, None
        self._hooks.clear()
        if server is not None and serving is not None:
            server.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)

    # Requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        request = Request(scope, receive)
        self._under_way += 1
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        except Exception:  # whatever it is, the sender hears no more than that
            log.exception("a request to %s failed", request.url.path)
            response = JSONResponse({"error": "internal error"}, 500)
        finally:
            self._under_way -= 1
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path = request.scope["path"]
        if path == HEALTH:
            return self._health(request)
        hook = self._hooks.get(path)
        if hook is None:
            return Refused(404, "nothing is here").response
        if self._under_way > MAX_UNDER_WAY:
            return unavailable().response
        return await hook.answer(request)

    def _health(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return Refused(405, "use GET", {"allow": "GET, HEAD"}).response
        if all(hook.draining for hook in self._hooks.values()):
            return unavailable("stopping").response
        return JSONResponse({"status": "ok"})


def _bind(address: Address) -> socket.socket:
    """Return a socket that listens, so that a port that is taken is known at once."""
    listening = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((address.host, address.port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            msg = (
                f"the port of {address} is taken, perhaps by another agent of the team: each process needs its own; "
                'choose one, e.g. listen = "127.0.0.1:8081", or NATTERJACK_WEBHOOK_LISTEN'
            )
            raise ConfigError(msg) from error
        msg = f"this process cannot listen at {address}: {error.strerror}"
        raise ConfigError(msg) from error
    return listening


# uvicorn, without what belongs to a program that is nothing but a web server


class _Protocol(H11Protocol):
    """Writes no access log, wherever the loggers' handlers are."""

    @property
    def access_log(self) -> bool:
        """Whether each request is logged."""
        return False

    @access_log.setter
    def access_log(self, value: bool) -> None:
        del value


class _Config(uvicorn.Config):
    """Leaves the process's loggers as they are."""

    def configure_logging(self) -> None:
        """Have uvicorn's own words only where it complains, unless somebody has set its level."""
        logger = logging.getLogger("uvicorn.error")
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)


class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def _config(app: Listener) -> _Config:
    return _Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=CLOSE_LIMIT,
    )
