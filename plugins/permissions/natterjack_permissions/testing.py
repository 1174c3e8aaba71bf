"""A secured broker for tests: a real nats-server with an account for each principal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from natterjack import Permissions, Server
from natterjack.testing import NatsServer
from natterjack_permissions.authority import BESIDE
from natterjack_permissions.broker import accounts
from natterjack_permissions.keys import keep
from natterjack_permissions.mint import KEYS, Mint
from natterjack_permissions.star import star


@contextmanager
def secured_broker(
    granted: Mapping[str, Permissions],
    folder: Path,
    operators: Collection[str] = (),
    *,
    operator_mode: bool = False,
    by_token: Collection[str] = (),
) -> Iterator[tuple[NatsServer, Server]]:
    """Start one that grants each principal this, and operators all; yield it, and how all of them log in.

    Args:
        granted: What each may do, as it would be said in one account.
        folder: Where the keys go.
        operators: Who may do all, beside the operator.
        operator_mode: Whether accounts are tokens that an operator has signed.
        by_token: Who is let in by a token of the team then, once a callout service runs.
    """
    found = star(granted, operators)
    if operator_mode:
        mint = Mint(folder)
        mint.team(found, resolver=str(folder.resolve() / "resolver"), by_token=by_token)
        mint.write()
        with NatsServer((folder / "accounts.conf").read_text()) as server:
            yield server, Server(server.url, keys=str(folder / KEYS))
        return
    with NatsServer(accounts(found, keep(folder, [*granted, *operators, *BESIDE]))) as server:
        yield server, Server(server.url, keys=str(folder))
