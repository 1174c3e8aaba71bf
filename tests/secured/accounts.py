"""Each test server as a secured broker: accounts and keys, made for whoever comes.

A principal's account is made when it first connects, with what an agent of an open team may do; and made anew when its
team is provisioned, with what it needs there. So the tests run as they are, but nothing reaches another principal, or
what is stored, except through what accounts import. What a team does not declare stays open: how it is closed is
another test's affair.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch
from urllib.parse import urlsplit

import natterjack.admission
import natterjack.needs
import natterjack.provision
import natterjack.runtime
from natterjack import Bus, Permissions, Right, Server, Team, agent_rights, permissions
from natterjack.plugins import Plugins
from natterjack.team import check_team as team_is_right
from natterjack.testing import NatsServer
from natterjack_permissions import broker
from natterjack_permissions.authority import BESIDE
from natterjack_permissions.keys import keep
from natterjack_permissions.reload import reload
from natterjack_permissions.star import _all, star

FOLDER: Final = "SECURED_BROKERS"
"""Variable that names the folder where each secured broker has a link to its own, by its port."""
STRANGER: Final = "stranger"
"""Who connects without saying who it is."""
DISCOVERY: Final = "$SRV.>"
INCLUDE: Final = '\ninclude "accounts.conf"\n'
OWN: Final = ("authorization", "accounts", "operator", "cluster", "include", "mqtt")
"""What a test's own configuration may say about who is who: then it stays as it is."""

_of, _enforced, _streams = Server.of, natterjack.needs.enforced, natterjack.provision._streams
_start, _reload = NatsServer.start, NatsServer.reload
used: Final[list[str]] = []
"""Who has logged in with a key: tells which tests were on a secured broker at all."""
_installed: Final[ContextVar[Plugins]] = ContextVar("installed")
"""What the team that is being provisioned is made of."""


def secure_brokers(folder: Path) -> None:
    """Have each server that tests start, here and in child processes, be a secured one."""
    os.environ[FOLDER] = str(folder)
    patch_all()


def patch_all() -> None:
    """Put what is below in the place of what it is named after."""
    patch.multiple(NatsServer, start=start, reload=reread).start()
    patch.object(Server, "of", of).start()
    patch.multiple(natterjack.provision, check_team=check_team, enforced=enforced, _streams=streams).start()
    for module in (natterjack.runtime, natterjack.admission):
        patch.object(module, "enforced", enforced).start()


class Accounts:
    """The accounts of one server, in the folder of its store.

    Args:
        store: That folder; it has the address of the server, once that runs.
    """

    def __init__(self, store: Path) -> None:
        self._store = store

    @property
    def keys(self) -> Path:
        """The folder of keys."""
        return self._store / "keys"

    def granted(self) -> dict[str, Permissions]:
        """Return what each principal may do so far."""
        path = self._store / "granted.json"
        found = json.loads(path.read_text()) if path.exists() else {}
        return {name: Permissions(**{key: tuple(each) for key, each in own.items()}) for name, own in found.items()}

    def grant(self, more: Mapping[str, Permissions]) -> None:
        """Grant principals this, and no more, and have the server know if it runs."""
        before = self.granted()
        granted = before | dict(more)
        if granted == before and (self._store / "accounts.conf").exists():
            return
        (self._store / "granted.json").write_text(json.dumps({name: asdict(own) for name, own in granted.items()}))
        (self._store / "accounts.conf").write_text(broker.accounts(star(granted), keep(self.keys, [*granted, *BESIDE])))
        address = self._store / "url"
        if address.exists():
            with ThreadPoolExecutor(1) as thread:  # a loop may run in this one
                thread.submit(asyncio.run, reload(address.read_text(), self.keys)).result()


def accounts_of(server: Server) -> Accounts | None:
    """Return those of a server, if it is one of ours."""
    for url in server.urls:
        store = Path(os.environ[FOLDER], str(urlsplit(url).port))
        if store.exists():
            return Accounts(store)
    return None


def start(self: NatsServer, timeout: float = 20.0) -> NatsServer:
    """Start a server with the operator's account, if the test does not say who is who."""
    secured = INCLUDE in self.config or not any(word in self.config for word in OWN)
    if secured and INCLUDE not in self.config:
        Accounts(self.store).grant({})
        self.config += INCLUDE
    _start(self, timeout)
    link = Path(os.environ[FOLDER], str(self.port))
    link.unlink(missing_ok=True)
    if secured:
        (self.store / "url").write_text(self.url)
        link.symlink_to(self.store)
    return self


def reread(self: NatsServer, config: str) -> None:
    """Have it read a new configuration, and still its accounts."""
    _reload(self, config + INCLUDE if INCLUDE in self.config and INCLUDE not in config else config)


def of(self: Server, principal: str) -> Server:
    """Return how a principal logs in: with a key of its own, and an account that is made for it if it has none."""
    own = accounts_of(self)
    if own is None or (self.keys != str(own.keys) and any((self.keys, self.nkey, self.user, self.token, self.creds))):
        return _of(self, principal)
    used.extend({principal} - {"core", "sys"})
    if principal not in (*BESIDE, *own.granted()):
        own.grant({principal: guest(principal)})
    return _of(replace(self, keys=str(own.keys)), principal)


def guest(name: str) -> Permissions:
    """Return what somebody may do who is in no team: all that an agent may that says nothing, and look after others."""
    rights = [Right(verb, name) for verb in ("serve", "journal", "bury", "delay", "park", "converse", "provide")]
    rights += [Right(verb, ">") for verb in ("emit", "publish", "write", "read", "hear", "replay")]
    own, everything = permissions(name, [*rights, Right("ask", "*")], attested=True), _all(name)
    publish, serve = {*own.publish, *everything.publish}, {*own.serve}
    # Who asks all others who they are cannot be asked that by them: imports must not go in a circle.
    if name == STRANGER:
        serve -= {DISCOVERY}
    else:
        publish -= {DISCOVERY, "srv.*.>"}
    subscribe = {*own.subscribe, *everything.subscribe, DISCOVERY, "_INBOX.>"}
    return Permissions(tuple(sorted(publish)), tuple(sorted(subscribe)), tuple(sorted(serve)))


def enforced(team: Team, server: Server) -> Team:
    """Return a team as a server has it: on ours, what it does not declare stays open."""
    return _enforced(team, server) if accounts_of(server) is None else team


def check_team(team: Team, plugins: Plugins) -> None:
    """Check a team that is about to be provisioned, and note what it is made of."""
    _installed.set(plugins)
    team_is_right(team, plugins)


async def streams(bus: Bus, team: Team, *args: Any, **options: Any) -> dict[str, dict[str, Any]]:
    """Have all members of a team that is being provisioned get what they need."""
    own = accounts_of(bus.server)
    if own is not None:
        guests = own.granted().keys() - team.agents.keys() - team.tools.keys()
        own.grant(needs(team, _installed.get(), guests))
    return await _streams(bus, team, *args, **options)


def needs(team: Team, plugins: Plugins, guests: Iterable[str]) -> dict[str, Permissions]:
    """Return what each member of a team may do, beside calling guests' tools.

    An agent that a test has made needs what any needs.
    """
    made = {"kind": "natterjack.components:Agent", "options": {}}
    agents = {
        name: spec.model_copy(update=made) if spec.component[0] == "python" else spec
        for name, spec in team.agents.items()
    }
    try:
        rights = agent_rights(team.model_copy(update={"agents": agents}), plugins)
    except Exception:  # which the start of the agent tells in its own words
        return {}
    calls = [Right("call", guest) for guest in guests]
    return {name: permissions(name, [*each, *calls], attested=True) for name, each in rights.items()}
