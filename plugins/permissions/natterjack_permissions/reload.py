"""Have a running server read its configuration again, by its own interface for that."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import orjson

from natterjack import Bus, ConfigError, Message, Server

_ROUNDS: Final = 2
"""What an account imports that a reload has added is dead until the next reload (nats-server 2.15)."""


async def reload(url: str, seed: Path) -> list[str]:
    """Have all servers of a cluster read their configuration, and return their names.

    Args:
        url: Where one of them is.
        seed: The key of `sys`.

    Raises:
        ConnectError: None answers, or the key is none of theirs.
        ConfigError: One does not take it, and goes on as it was.
    """
    bus = await Bus.connect(Server(url, nkey=str(seed)), principal="sys")
    try:
        servers = await servers_of(bus)
        for _ in range(_ROUNDS):
            for id, name in servers.items():
                reply = await bus.request(f"$SYS.REQ.SERVER.{id}.RELOAD", timeout=10.0)
                _check(name, orjson.loads(reply.data))
        return sorted(servers.values())
    finally:
        await bus.close()


async def servers_of(bus: Bus) -> dict[str, str]:
    """Return the names of all servers of a cluster, by their ids."""
    found: dict[str, str] = {}

    def all_told(message: Message) -> bool:
        told = orjson.loads(message.data)
        found[told["server"]["id"]] = told["server"]["name"]
        return len(found) >= int(told["statsz"]["active_servers"])

    await bus.request_many("$SYS.REQ.SERVER.PING", timeout=5.0, until=all_told)
    return found


def _check(name: str, answer: dict[str, object]) -> None:
    problem = answer.get("error")
    if problem:
        told = problem.get("description") if isinstance(problem, dict) else problem
        msg = f"the server {name} does not take the new configuration, and goes on with the old one: {told}"
        raise ConfigError(msg)
