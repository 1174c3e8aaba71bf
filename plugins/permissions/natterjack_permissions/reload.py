"""Have a running server read its configuration again, by its own interface for that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

from natterjack import (
    BrokerError,
    Bus,
    ConfigError,
    DisconnectedError,
    Message,
    NoRespondersError,
    RequestTimeoutError,
    Server,
)

log = logging.getLogger(__name__)

_PATIENCE: Final = 60.0
"""Seconds a server may take to read its configuration: one of hundreds of accounts, on a busy machine, takes ten."""
_ANSWER: Final = 5.0
"""Seconds until a server that does not say that it is there is taken for away."""
_CLOCKS: Final = 2.0
"""Seconds by which the clocks of machines may differ."""
_ROUNDS: Final = 2
"""What an account imports that a reload has added is dead until the next reload (nats-server 2.15)."""


class NotTakenError(ConfigError):
    """A server does not take its configuration, and goes on as it was.

    Attributes:
        taken_by: The names of those that have taken it before.
    """

    def __init__(self, name: str, problem: object, taken_by: Collection[str]) -> None:
        self.taken_by = sorted(taken_by)
        others = f", while {', '.join(self.taken_by)} took it: mend that, and do this again" if taken_by else ""
        super().__init__(
            f"the server {name} does not take the new configuration, and goes on with the old one{others}: {problem}"
        )


@asynccontextmanager
async def reloading(url: str, keys: Path) -> AsyncIterator[Callable[[], Awaitable[list[str]]]]:
    """Within the context, give what has all servers of a cluster read their configuration, and returns their names.

    Args:
        url: Where one of them is.
        keys: Folder with the key of `sys`, as the servers know it: it may become another one within the context.

    Raises:
        ConnectError: None answers, or the key is none of theirs.
        NotTakenError: One does not take its configuration.
        BrokerError: One does not say in a minute that it did, or all went away.
    """
    bus = await Bus.connect(Server(url, keys=str(keys)), principal="sys")
    try:
        yield lambda: _reload(bus)
    finally:
        await bus.close()


async def reload(url: str, keys: Path) -> list[str]:
    """Do that at once, and return the servers' names. Errors as above."""
    async with reloading(url, keys) as reloaded:
        return await reloaded()


async def _reload(bus: Bus) -> list[str]:
    servers, taken = await servers_of(bus), set[str]()
    for _ in range(_ROUNDS):
        for id, name in list(servers.items()):
            try:
                problem = (await _answer(bus, f"$SYS.REQ.SERVER.{id}.RELOAD")).get("error")
            except NoRespondersError:
                log.warning("the server %s went away; it takes it when it is back", name)
                del servers[id]
            except TimeoutError as error:
                msg = (
                    f"the server {name} did not say within {_PATIENCE:g} s that it has read its configuration;"
                    " look into its log, and do this again"
                )
                raise BrokerError(msg) from error
            if problem:
                raise NotTakenError(name, str(problem.get("description", problem)).strip(), taken)
            taken.add(name)
    if not servers:
        msg = "all servers went away before they had read their configuration; do this again when they are back"
        raise BrokerError(msg)
    return sorted(servers.values())


async def _answer(bus: Bus, subject: str) -> dict[str, Any]:
    """Ask, and ask again when a server that has read another key of `sys` has hung up."""
    async with asyncio.timeout(_PATIENCE):
        while True:
            await bus.until_connected(_PATIENCE)
            try:
                # Fails as soon as the connection goes, which `request` would wait for.
                (reply,) = await bus.request_many(subject, timeout=_PATIENCE, until=lambda _: True)
                return dict(orjson.loads(reply.data))
            except DisconnectedError as error:
                log.debug("asked again: %s", error)


async def servers_of(bus: Bus) -> dict[str, str]:
    """Return the names of all servers of a cluster that answer, by their ids.

    Raises:
        RequestTimeoutError: None does.
    """
    found: dict[str, str] = {}
    known = 0

    def all_told(message: Message) -> bool:
        nonlocal known
        told = orjson.loads(message.data)
        found[told["server"]["id"]] = told["server"]["name"]
        known = int(told["statsz"]["active_servers"])
        return len(found) >= known

    try:
        await bus.request_many("$SYS.REQ.SERVER.PING", timeout=_ANSWER, until=all_told)
    except RequestTimeoutError:  # servers count one that was killed for some minutes more
        if not found:
            raise
        log.warning("%d of %d servers answer; who is away takes it when it is back", len(found), known)
    return found


async def behind(url: str, keys: Path, files: Iterable[Path]) -> list[str]:
    """Return the names of the servers that have read their configuration before files of it were written.

    Args:
        url: Where one of them is.
        keys: Folder with the key of `sys`.
        files: Parts of the configuration.

    Raises:
        BrokerError: None answers, or the key is none of theirs.
    """
    written = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    bus = await Bus.connect(Server(url, keys=str(keys)), principal="sys")
    try:
        read = {
            name: datetime.fromisoformat((await _answer(bus, f"$SYS.REQ.SERVER.{id}.VARZ"))["data"]["config_load_time"])
            for id, name in (await servers_of(bus)).items()
        }
    finally:
        await bus.close()
    return sorted(name for name, at in read.items() if at.timestamp() < written - _CLOCKS)
