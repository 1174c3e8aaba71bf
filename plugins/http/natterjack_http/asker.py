"""Asking agents that are served over HTTP; apart from the schemes, because only those need its library who ask."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import orjson

from natterjack import (
    Answer,
    ConfigError,
    PeerError,
    PeerTimeoutError,
    PeerUnavailableError,
)
from natterjack_http import events
from natterjack_http.problems import error_of

log = logging.getLogger("natterjack.peers")

TOKEN: Final = "env:NATTERJACK_TOKEN"  # noqa: S105 - where it is
"""Where the token is that is shown, unless an address says otherwise."""
CONNECT_LIMIT: Final = 5.0
"""Seconds for a connection."""
MAX_PORT: Final = 65_535
PER_CLIENT: Final = 8
"""Asks at once by one client: what httpx does for each request grows with the connections that it has."""
MAX_ANSWER: Final = 64 * 1024 * 1024
"""Bytes of an answer."""
_LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=100)


class Target(NamedTuple):
    """Where an agent is asked.

    Attributes:
        name: How errors name it.
        url: Where questions go.
        token: Where the token is.
        exposed: Whether others could read a token on the way.
    """

    name: str
    url: str
    token: str
    exposed: bool

    @classmethod
    def read(cls, address: str) -> Target:
        """Read an address such as `http://localhost:9001` or `https://host/researcher?token=env:NAME`.

        Raises:
            ConfigError: It is none.
        """
        try:
            url = httpx.URL(address)
        except httpx.InvalidURL as error:
            msg = f"{address!r} is no address: {error}; write e.g. 'http://localhost:9001'"
            raise ConfigError(msg) from None
        token = url.params.get("token", TOKEN)
        more = url.userinfo or url.fragment or set(url.params) - {"token"}
        if not url.host or (url.port or 0) > MAX_PORT or more or not token.startswith(("env:", "file:")):
            msg = (
                f"the address at {url.host!r} is not understood: it has a host, perhaps a port and a path, and as "
                "`?token=env:NAME` or `?token=file:PATH` where the token is, never the token itself"
            )
            raise ConfigError(msg)
        path = url.path.rstrip("/")
        name = url.netloc.decode() + path
        return cls(name, f"{url.scheme}://{name}/ask", token, url.scheme == "http" and not _is_local(url.host))

    def shown(self) -> dict[str, str]:
        """Return the header that shows the token; none where there is none to show by default.

        Raises:
            ConfigError: It is not where the address says.
        """
        kind, _, where = self.token.partition(":")
        try:
            found = os.environ.get(where, "") if kind == "env" else Path(where).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"the token for {self.name} in the file {where!r} cannot be read: {type(error).__name__}"
            raise ConfigError(msg) from error
        if found.strip():
            return {"authorization": f"Bearer {found.strip()}"}
        if self.token == TOKEN:
            return {}
        msg = f"there is no token for {self.name} at {self.token!r}; put one there, e.g. of `natterjack token mint`"
        raise ConfigError(msg)


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Asker:
    """Asks agents that are served over HTTP; connections are kept."""

    def __init__(self) -> None:
        self._busy: dict[httpx.AsyncClient, int] = {}
        self._targets: dict[str, Target] = {}

    async def ask(self, address: str, question: str, timeout: float) -> Answer:
        """Ask the agent at an address."""
        target = self.target(address)
        async with self._asking(target, question, timeout, "application/json") as response:
            content = await _read(target, response)
        try:
            body = orjson.loads(content)
            return Answer(body["answer"], agent=str(body["agent"]), run_id=str(body["run"]))
        except (ValueError, KeyError, TypeError) as error:
            raise _strange(target) from error

    async def stream(self, address: str, question: str, timeout: float) -> AsyncGenerator[str, None]:
        """Ask, and yield the chunks of the answer as they come."""
        target = self.target(address)
        async with self._asking(target, question, timeout, events.MEDIA) as response:
            try:
                async for name, data in events.read(response.aiter_bytes()):
                    if name == events.CHUNK:
                        yield str(data["text"])
                    elif name == events.PROBLEM:
                        raise error_of(target.name, data["status"], orjson.dumps(data))
                    elif name == events.DONE:
                        return
            except (ValueError, KeyError, TypeError) as error:
                raise _strange(target) from error
        raise PeerUnavailableError(target.name, 503, "it went away in the middle of its answer")

    async def close(self) -> None:
        """Close all connections."""
        for client in self._busy:
            await client.aclose()

    @contextmanager
    def _client(self) -> Iterator[httpx.AsyncClient]:
        """Give a client that is not too busy."""
        client = next((each for each, asks in self._busy.items() if asks < PER_CLIENT), None) or _client()
        self._busy[client] = self._busy.get(client, 0) + 1
        try:
            yield client
        finally:
            self._busy[client] -= 1

    def target(self, address: str) -> Target:
        """Return what an address means; raise `ConfigError` if that is nothing."""
        target = self._targets.get(address)
        if target is None:
            target = self._targets[address] = Target.read(address)
            if target.exposed and target.shown():
                log.warning("the token for %s goes over the network in the clear; use https there", target.name)
        return target

    @asynccontextmanager
    async def _asking(self, target: Target, question: str, timeout: float, media: str) -> AsyncIterator[httpx.Response]:
        """Give the answer to a question; errors are those of asking."""
        body = orjson.dumps({"question": question, "timeout": timeout})
        headers = {"accept": media, "content-type": "application/json", **target.shown()}
        limit = asyncio.timeout(timeout)
        try:
            with self._client() as client:
                async with limit, client.stream("POST", target.url, content=body, headers=headers) as response:
                    if response.status_code != httpx.codes.OK:
                        raise error_of(target.name, response.status_code, await _read(target, response))
                    yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise PeerUnavailableError(target.name, 503, f"nobody answers there; is it running? ({error})") from error
        except httpx.HTTPError as error:
            msg = f"it went away before it had answered ({type(error).__name__})"
            raise PeerUnavailableError(target.name, 503, msg) from error
        except TimeoutError as error:
            if not limit.expired() or isinstance(error, PeerError):
                raise
            raise PeerTimeoutError(target.name, 408, "no answer within the deadline") from error


@cache
def _trusted() -> ssl.SSLContext:
    """Return whom `https` trusts; reading that takes long."""
    return httpx.create_ssl_context()


def _client() -> httpx.AsyncClient:
    logger = logging.getLogger("httpx")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)  # else it tells of each request
    times = httpx.Timeout(None, connect=CONNECT_LIMIT)
    return httpx.AsyncClient(verify=_trusted(), timeout=times, limits=_LIMITS)


async def _read(target: Target, response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER:
            msg = f"its answer has more than {MAX_ANSWER:,} bytes"
            raise PeerError(target.name, 500, msg)
    return bytes(content)


def _strange(target: Target) -> PeerError:
    return PeerError(target.name, 500, "its answer cannot be read; is it an agent of natterjack-http?")
