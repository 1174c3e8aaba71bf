"""The embedded broker: a real nats-server that lives and dies with the process that started it.

`embed` starts one, or joins the one that another process runs on the same store. Nothing here opens a NATS
connection: a broker is a URL, and the news that its server has gone.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from natterjack.broker.natsserver import ServerProcess, check_version, find_server
from natterjack.broker.storelock import Owner, StoreLock, read_owner
from natterjack.errors import BrokerStartError, ConfigError
from natterjack.server import hidden

CONFIG = "development.conf"
DEFAULT_PORT = 4222
DEFAULT_STORE = Path(".natterjack")

JOIN_TIMEOUT = 40.0
"""Seconds to wait for another process that is starting or ending a server on the same store."""

_ELSEWHERE = "Start one in another folder with `natterjack broker run --store DIR`, and name it with --server."

_WATCH_SERVER, _WATCH_OWNER = 0.1, 0.25  # seconds between two looks


class Broker:
    """A nats-server that this process owns, or one on the same store that it joined.

    Attributes:
        url: Where it listens, e.g. `nats://127.0.0.1:4222`; contains the token if it wants one.
        owned: Whether it ends with this process.
        store: Its folder.
        lost: Set when the server died, or the owner of a joined one ended.
        lost_reason: Why, in one line; empty before.
    """

    def __init__(
        self, owner: Owner, store: Path, server: ServerProcess | None = None, lock: StoreLock | None = None
    ) -> None:
        self.url = owner.url
        self.owned = server is not None
        self.store = store
        self.lost = asyncio.Event()
        self.lost_reason = ""
        self._owner, self._server, self._lock = owner, server, lock
        self._watcher = asyncio.create_task(self._watch(), name="natterjack-broker-watch")

    def __repr__(self) -> str:
        return f"Broker({hidden(self.url)!r}, {'owned' if self.owned else 'joined'}, store={str(self.store)!r})"

    async def wait_lost(self) -> str:
        """Wait until the broker has gone, and return the reason."""
        await self.lost.wait()
        return self.lost_reason

    async def stop(self) -> None:
        """End an owned server (at most `natsserver.STOP_TIMEOUT` seconds, then it is killed); leave a joined one.

        May be called twice. Cancelled, it kills the server.
        """
        self._watcher.cancel()
        try:
            await asyncio.gather(self._watcher, return_exceptions=True)
        finally:
            await self._let_go()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _watch(self) -> None:
        reason = await (self._watch_owner() if self._server is None else self._watch_server(self._server))
        await self._let_go()
        self.lost_reason = reason
        self.lost.set()

    async def _watch_owner(self) -> str:
        while not self._owner_ended():  # noqa: ASYNC110 - another process sets no event of ours
            await asyncio.sleep(_WATCH_OWNER)
        return f"the broker's owner (pid {self._owner.pid}) has ended; start one with `natterjack broker run`"

    def _owner_ended(self) -> bool:
        with suppress(OSError):  # e.g. no descriptor left: that says nothing about the owner
            return read_owner(self.store) != self._owner
        return False

    async def _watch_server(self, server: ServerProcess) -> str:
        code = await server.exited(_WATCH_SERVER)
        return f"nats-server (pid {server.pid}) has ended with code {code}; its log is {str(server.log)!r}"

    async def _let_go(self) -> None:
        if self._server is None or self._lock is None:
            return
        self._lock.withdraw()
        try:
            await self._server.end()
        finally:
            _secret_config(self.store).unlink(missing_ok=True)
            self._lock.release()


def running_url(store: Path = DEFAULT_STORE) -> str | None:
    """Return where the broker of a store listens, or None if no living process owns one there.

    Raises:
        BrokerStartError: The store belongs to another user.
    """
    try:
        owner = read_owner(store)
    except OSError as error:
        raise _unusable(store, error) from error
    return owner.url if owner else None


async def embed(
    store: Path | None = None,
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    token: str | None = None,
    log: Path | None = None,
) -> Broker:
    """Start a broker on a store, or join the one that runs there.

    Args:
        store: Its folder; `.natterjack` if None.
        port: None for 4222 if free, else a random one; -1 or 0 for a random one.
        host: The address to listen on; off loopback needs a token.
        token: What clients must present. Letters, digits and `._~-`.
        log: The server's log; `broker.log` in the store if None.

    Who joins gets the broker as it runs: the options are its owner's.

    Raises:
        ConfigError: The host or token cannot be used.
        BrokerNotFoundError: There is no nats-server on this machine.
        BrokerStartError: It is too old, its port is taken, or it did not start; the end of its log says why.
    """
    _check_listen(host, token)
    path = (store or DEFAULT_STORE).resolve()
    try:
        _make_store(path)
        found = await _lock_or_owner(path)
        if isinstance(found, Owner):
            return Broker(found, path)
        return await _own(found, path, _Listen(host, port, token), log or path / "broker.log")
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(store: Path, error: OSError) -> BrokerStartError:
    message = f"no broker can run in {str(store)!r}: {error}. {_ELSEWHERE}"
    return BrokerStartError(message)


def _make_store(store: Path) -> None:
    with suppress(FileExistsError):
        store.mkdir(parents=True, mode=0o700)
        (store / ".gitignore").write_text("*\n")


async def _lock_or_owner(store: Path) -> StoreLock | Owner:
    """Become the owner, or find it. Between the two, somebody is starting, or a killed owner's server is ending."""
    try:
        async with asyncio.timeout(JOIN_TIMEOUT):
            while True:
                if owner := read_owner(store):
                    return owner
                if lock := StoreLock.acquire(store):
                    return lock
                await asyncio.sleep(0.01)
    except TimeoutError:
        message = (
            f"the broker's store {str(store)!r} is held by a process that serves nobody, for {JOIN_TIMEOUT:g} s now. "
            f"End the nats-server or natterjack that uses it. {_ELSEWHERE}"
        )
        raise BrokerStartError(message) from None


@dataclass(frozen=True)
class _Listen:
    """Where a new server shall listen, and what it asks of clients."""

    host: str
    port: int | None
    token: str | None

    def ports(self) -> list[int]:
        """The ports to try. nats-server takes -1 for a random one, and 0 for 4222."""
        return [DEFAULT_PORT, -1] if self.port is None else [self.port or -1]

    def url(self, port: int) -> str:
        wildcard = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - a client cannot dial a wildcard
        host = wildcard.get(self.host, self.host)
        return f"nats://{f'{self.token}@' if self.token else ''}{f'[{host}]' if ':' in host else host}:{port}"


async def _own(lock: StoreLock, store: Path, listen: _Listen, log: Path) -> Broker:
    server = None
    try:
        program = find_server()
        await asyncio.to_thread(check_version, program)
        argv = [str(program), "-c", str(_config(store, listen.token)), "-a", listen.host, "-js", "-sd", str(store)]
        server, port = await _start(argv, listen, ports=store / "ports", log=log, lock_fd=lock.fd)
        owner = Owner(os.getpid(), server.pid, listen.url(port))
        lock.publish(owner)
        return Broker(owner, store, server, lock)
    except BaseException:
        if server is not None:
            await server.end()
        _secret_config(store).unlink(missing_ok=True)
        lock.release()
        raise


async def _start(
    argv: list[str], listen: _Listen, *, ports: Path, log: Path, lock_fd: int
) -> tuple[ServerProcess, int]:
    for port in listen.ports():
        if not _free(listen.host, port):
            continue
        server = ServerProcess([*argv, "-p", str(port)], ports=ports, log=log, lock_fd=lock_fd)
        try:
            return server, await server.ready()
        except BaseException as error:
            await server.end()
            # Somebody may have taken the port since we looked.
            if not isinstance(error, BrokerStartError) or _free(listen.host, port):
                raise
    message = (
        f"port {listen.port} on {listen.host!r} is in use. Take another with --listen HOST:PORT, port -1 for a random "
        f"one; or use the server that has it with --server nats://{listen.host}:{listen.port}."
    )
    raise BrokerStartError(message)


def _free(host: str, port: int) -> bool:
    """Whether a server could listen there, as far as one can tell; what else is wrong, it says itself."""
    if port < 0:
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client, suppress(OSError):
        client.settimeout(0.2)
        client.connect((host, port))  # BSD lets one bind beside a wildcard listener, so look before
        return False
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections just closed do not count
        try:
            listener.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _check_listen(host: str, token: str | None) -> None:
    if token is None and not _is_loopback(host):
        message = (
            f"listening on {host!r} needs a token: without one, whoever reaches this machine commands the team. "
            "Give --token, or listen on 127.0.0.1."
        )
        raise ConfigError(message)
    if token is not None and not re.fullmatch(r"[A-Za-z0-9._~-]+", token):
        message = "the broker's token must consist of letters, digits and `._~-`, because it travels in URLs."
        raise ConfigError(message)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _config(store: Path, token: str | None) -> Path:
    """Return the configuration file; with a token a private copy, because every user can read command lines."""
    here = Path(__file__).resolve()
    places = [here.parents[above] / "brokerconf" / CONFIG for above in (1, 3)]  # a wheel, a checkout
    shared = next((path for path in places if path.is_file()), None)
    if shared is None:
        message = f"{CONFIG!r} is missing from this installation, looked for in {[str(p) for p in places]}. Reinstall."
        raise BrokerStartError(message)
    if token is None:
        return shared
    path = _secret_config(store)
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(f"{shared.read_text(encoding='utf-8')}\nauthorization {{ token: {json.dumps(token)} }}\n")
    return path


def _secret_config(store: Path) -> Path:
    return store / "broker.conf"
