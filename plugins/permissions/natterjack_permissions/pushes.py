"""Have running servers take accounts as an operator signs them: nobody is disconnected, nothing is read again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable

import orjson

from natterjack import Bus, ConfigError, DisconnectedError, Message, RequestTimeoutError, Server
from natterjack_permissions import claims
from natterjack_permissions.claims import CALLOUT
from natterjack_permissions.mint import KEYS, SYS, Mint
from natterjack_permissions.reload import servers_of
from natterjack_permissions.star import CORE

_UPDATE = "$SYS.REQ.CLAIMS.UPDATE"
_TIMEOUT = 20.0
"""Seconds that all servers of a cluster may take for one account."""


async def push(url: str, mint: Mint, only: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Have all servers of a cluster take the accounts that they lack, or have otherwise.

    Args:
        url: Where one of them is.
        mint: The accounts, as they are written.
        only: Names of the accounts to push; by default all.

    Returns:
        The servers' names, and those of the accounts.

    Raises:
        ConnectError: None answers, or the credentials of `sys` are none of theirs.
        ConfigError: One does not take an account; those before it have been taken.
    """
    bus = await Bus.connect(Server(url, keys=str(mint.out / KEYS)), principal="sys")
    try:
        pushing = _Pushing(bus, await servers_of(bus))
        names = await pushing.push(mint, only or mint.accounts())
        return sorted(pushing.servers.values()), names  # those that were there at the end
    finally:
        await bus.close()


async def lacking(url: str, mint: Mint) -> list[str]:
    """Return the names of the accounts that a server of the cluster lacks, or has otherwise.

    Raises:
        BrokerError: None answers, or the credentials of `sys` are none of theirs.
    """
    bus = await Bus.connect(Server(url, keys=str(mint.out / KEYS)), principal="sys")
    try:
        return (await _Pushing(bus, await servers_of(bus)).differing(mint, mint.accounts()))[0]
    finally:
        await bus.close()


class _Pushing:
    def __init__(self, bus: Bus, servers: dict[str, str]) -> None:
        self._bus, self.servers = bus, servers

    async def push(self, mint: Mint, accounts: Collection[str]) -> list[str]:
        """Push what differs, in the order in which it depends on each other; return the accounts' names."""
        differing, new = await self.differing(mint, accounts)
        for name in new:  # what others import of them is there, before anybody imports
            said = mint.claims(name)
            # Dated earlier than what follows: a server that hears of this alone would bring it back to the others.
            await self._push(name, mint.sign(_without(said, "imports"), said["iat"] - 1))
        for name in _ordered(mint, differing, new):
            try:
                await self._push(name, mint.token(name))
            except DisconnectedError:
                if name != SYS or not mint.revoked("sys"):
                    raise  # else this connection was the first to end by it
        return differing

    async def differing(self, mint: Mint, accounts: Collection[str]) -> tuple[list[str], list[str]]:
        """Return the names of the accounts that a server has not as they are written, and of those not at all."""
        names = sorted(accounts)
        told = dict(zip(names, await asyncio.gather(*(self._told(mint.account(name)) for name in names)), strict=True))
        differing = [name for name in names if name in mint.renewed or told[name] != {mint.token(name)}]
        return differing, [name for name in differing if "" in told[name]]

    async def _told(self, account: str) -> set[str]:
        """Return what the servers act by for an account; empty: one has nothing.

        What they have stored may be another: a reload stores what its configuration has, and changes nothing else.
        """
        replies = await self._ask(f"$SYS.REQ.ACCOUNT.{account}.INFO", b"")
        acting = {(orjson.loads(reply.data).get("data") or {}).get("jwt", "") for reply in replies}
        if "" in acting:  # nobody has asked there for it, so it will act by what is stored
            stored = await self._ask(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"")
            acting = (acting - {""}) | {reply.data.decode().strip() for reply in stored}
        return acting

    async def _push(self, name: str, token: str) -> None:
        for reply in await self._ask(_UPDATE, token.encode()):
            answer = orjson.loads(reply.data)
            if problem := answer.get("error"):
                server = self.servers.get(answer["server"]["id"], "")
                msg = f"the server {server} does not take the account {name}: {problem.get('description', problem)}"
                raise ConfigError(msg)

    async def _ask(self, subject: str, data: bytes) -> list[Message]:
        """Return the answers of all servers; who goes meanwhile is waited for once."""
        replies: list[Message] = []

        def is_last(message: Message) -> bool:
            replies.append(message)
            return len(replies) >= len(self.servers)

        try:
            await self._bus.request_many(subject, data, timeout=_TIMEOUT, until=is_last)
        except RequestTimeoutError:
            if not replies:
                raise
            self.servers = await servers_of(self._bus)
        return replies


def _ordered(mint: Mint, differing: Iterable[str], new: Iterable[str]) -> list[str]:
    """Return accounts in the order to push: who may less first, and the one that pushes last.

    The callout's is before those that it lets others into, which know its next keys already.
    """

    def place(name: str) -> tuple[int, str]:
        gone = not mint.claims(name)["nats"]["limits"]["conn"]
        return (0 if gone else 1 if name in (CORE, CALLOUT) else 4 if name == SYS else 2 if name in new else 3), name

    return sorted(differing, key=place)


def _without(said: claims.Claims, part: str) -> claims.Claims:
    nats = {name: value for name, value in said["nats"].items() if name != part}
    return {name: value for name, value in said.items() if name not in ("iat", "jti", "iss")} | {"nats": nats}
