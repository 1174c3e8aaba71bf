"""The socket it listens on, and uvicorn without what belongs to a program that is only a web server."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from natterjack import ConfigError
from natterjack_http.address import Address

BACKLOG: Final = 1024
KEEP_ALIVE: Final = 75
"""Seconds a connection may idle: longer than reverse proxies keep theirs, so that none sends into one that closes."""

MAX_HEADERS: Final = 2**21
"""Bytes of a request's headers that are read: enough to tell whoever shows a token of a megabyte what is wrong."""


def bind(address: Address, *, shared: bool) -> socket.socket:
    """Return a socket that listens, so that a port that is taken is known at once.

    Raises:
        ConfigError: It cannot listen there.
    """
    listening = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        advice = "choose another address"
        if error.errno == errno.EADDRINUSE and not shared:
            advice = "choose another port; replicas of one agent on one machine can have `shared = true`"
        msg = f"this process cannot listen at {address}: {error.strerror}; {advice}"
        raise ConfigError(msg) from error
    return listening


class Server(uvicorn.Server):
    """Serves until it is told to stop; leaves signals and loggers to the process.

    Args:
        app: Answers requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            h11_max_incomplete_event_size=MAX_HEADERS,
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    def abort(self) -> None:
        """Close connections whatever they still have to send."""
        self.force_exit = True
        for connection in list(self.server_state.connections):
            if (transport := getattr(connection, "transport", None)) is not None:
                transport.abort()
