"""Clients that are not ours on a secured broker: tests connect them without a key, and here they get one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import nats
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext
from tests.secured.accounts import STRANGER, Accounts, accounts_of

from natterjack import Server
from natterjack.subjects import ROOTS
from natterjack_permissions.keys import path_of

ENDPOINTS: Final = ("agents.ask.", "agents.prompt.", "tools.")
"""What a stranger may serve as soon as it does, in the name that stands there."""
OURS: Final = (*ROOTS, "agents", "_INBOX", "_R_", "$KV", "$JS", "$SRV", "CORE")

_connect = nats.connect


class Stranger(Client):
    """A client with an account of its own; what it says to no part of ours, it says where all plain programs are."""

    accounts: Accounts
    plain: Client

    async def subscribe(self, subject: str, *args: Any, **options: Any) -> Subscription:
        """Subscribe, also where nobody had said that it will."""
        before = self.accounts.granted()[STRANGER]
        if subject.startswith(ENDPOINTS) and "*" not in subject and subject not in before.serve:
            self.accounts.grant({STRANGER: replace(before, serve=tuple(sorted({*before.serve, subject})))})
        return await super().subscribe(subject, *args, **options)

    async def publish(self, subject: str, *args: Any, **options: Any) -> None:
        """Publish."""
        if subject.partition(".")[0] in OURS:
            await super().publish(subject, *args, **options)
        else:
            await self.plain.publish(subject, *args, **options)
            await self.plain.flush()

    def jetstream(self, **options: Any) -> JetStreamContext:
        """Return what is stored, by the name that it has in this account."""
        return super().jetstream(**{"prefix": Server.SECURED_PREFIX, **options})

    async def close(self) -> None:
        """Close both connections."""
        await self.plain.close()
        await super().close()


async def connect(servers: Any = "", **options: Any) -> Client:
    """Connect as `nats.connect` does, with a key if the server wants one and none is given."""
    server = Server(servers) if isinstance(servers, str) and servers else None
    own = accounts_of(server) if server is not None else None
    if server is None or own is None or options.keys() & {"user", "token", "nkeys_seed", "password"}:
        return await _connect(servers, **options)
    client, seed = Stranger(), server.of(STRANGER).nkey
    client.accounts = own
    client.plain = await _connect(servers, nkeys_seed=str(path_of(own.keys, "core")))
    await client.connect(servers, **{"nkeys_seed": seed, "inbox_prefix": f"_INBOX.{STRANGER}", **options})
    return client
