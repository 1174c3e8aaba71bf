"""Credentials that end while an agent runs: it says so once, and goes on with renewed ones, or ends."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from natterjack import Bus, CredentialsError, Permissions, Server, connect
from natterjack.bus.lapse import advice
from natterjack.testing import NatsServer, free_port, until
from natterjack.testing.command import Cli
from natterjack_permissions.broker import accounts
from natterjack_permissions.keys import keep
from natterjack_permissions.mint import Mint, creds_file
from natterjack_permissions.pushes import push
from natterjack_permissions.star import star
from natterjack_permissions.testing import secured_broker

from .conftest import Quick
from .test_secure import AGENTS, TEAM, broker, connected

GRANTED = {"ann": Permissions(("events.x",), ("_INBOX.ann.>",))}


def test_without_the_key_of_sys_the_servers_are_told_by_hand() -> None:
    told = advice(Server("nats://127.0.0.1:1", nkey="secure/keys/sys.nk"))
    assert told.startswith("If secure/keys/sys.nk is the newest, have the servers read their configuration: SIGHUP")


class Fleet:
    """A broker in operator mode, and what mints its credentials."""

    def __init__(self, folder: Path, login: Server) -> None:
        self.mint, self.login = Mint(folder), login
        self.file = folder / creds_file("ann")

    def issue(self, expires: float | None = None) -> None:
        self.mint.issue("ann", expires)
        self.mint.write()

    async def revoke(self) -> None:
        self.mint.revoke("ann")
        self.mint.write()
        await push(self.login.url, self.mint)

    @asynccontextmanager
    async def ann(self, patience: float = 300.0) -> AsyncIterator[Bus]:
        bus = await Bus.connect(replace(self.login, patience=patience), principal="ann")
        try:
            yield bus
        finally:
            await bus.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fleet")


@pytest.fixture(scope="module")
def fleet(folder: Path) -> Iterator[Fleet]:
    with secured_broker(GRANTED, folder, operator_mode=True) as (_, login):
        yield Fleet(folder, login)


async def test_who_expires_says_what_to_do_and_goes_on_with_renewed_ones(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.issue(int(time.time()) + 3)
    async with fleet.ann() as ann:
        await until(lambda: "user authentication expired" in caplog.text)
        (told,) = (record.message for record in caplog.records if record.levelno >= logging.ERROR)
        assert "lets 'ann' in no more (user authentication expired). It ended at 20" in told
        assert f"Renew {fleet.file}: `natterjack credentials issue ann`; it goes on then, and ends in 300 s" in told
        assert not ann.connected
        fleet.issue()
        await until(lambda: ann.connected)
        await ann.flush()


async def test_who_has_renewed_ones_already_goes_on_in_silence(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.issue(int(time.time()) + 3)
    again: list[bool] = []
    async with fleet.ann() as ann, ann.reconnects(lambda: again.append(True)):
        fleet.issue()
        await until(lambda: again)
        await ann.flush()
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_who_is_revoked_ends_if_nobody_renews_them(fleet: Fleet) -> None:
    fleet.issue()
    async with fleet.ann(patience=0.5) as ann:
        await fleet.revoke()
        assert await until(ann.closed.is_set)
        assert "(user authentication revoked). Renew" in ann.reason
        assert ann.reason.endswith("`natterjack credentials issue ann`. Nobody did so within 0.5 s")
    with pytest.raises(CredentialsError, match="credentials issue ann"):
        await Bus.connect(fleet.login, principal="ann")
    fleet.issue()
    async with fleet.ann() as ann:
        await ann.flush()


@pytest.mark.parametrize("text", ["", "-----BEGIN NATS USER JWT-----\nx\n", "no credentials"])
async def test_a_file_that_is_no_credentials_yet_is_looked_at_again(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    fleet.issue()
    async with fleet.ann() as ann:
        fleet.file.write_text(text)
        await fleet.revoke()
        await until(lambda: f"no credentials can be read in {fleet.file}" in caplog.text)
        assert not ann.connected
        fleet.issue()
        await until(lambda: ann.connected)
        await ann.flush()


async def test_who_has_a_key_that_is_taken_away_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    there = star(GRANTED)
    keys = keep(tmp_path, ["ann", "core", "operator", "sys"])
    with NatsServer(accounts(there, keys)) as server:
        login = Server(server.url, keys=str(tmp_path), patience=0.5)
        ann = await Bus.connect(login, principal="ann")
        other = keep(tmp_path / "other", ["ann"])
        server.reload(accounts(there, keys | other))
        assert await until(ann.closed.is_set)
        assert f"Renew {tmp_path / 'ann.nk'}, or have the broker take it: `natterjack secure --apply`" in ann.reason
        assert caplog.text.count("lets 'ann' in no more") == 2  # when it begins, and in the end
        await ann.close()


@pytest.mark.full
async def test_an_agent_goes_on_with_renewed_credentials_and_ends_without(quick: Quick, cli: Cli) -> None:
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    quick.text("secure", "--url", f"nats://127.0.0.1:{free_port()}", "--mode", "operator")
    with broker(quick.folder) as url:
        operator = await connected(url, quick.folder, "operator")
        cli.env |= {"NATS_URL": url, "NATS_KEYS": str(quick.folder / "secure/keys"), "NATS_PATIENCE": "10"}
        cli.text("provision", "team.toml")
        cli.text("credentials", "issue", "oracle", "--expires", "15s")
        async with connect(operator.server) as team:
            with cli.start("agent", "run", "oracle") as oracle:
                oracle.wait_line("agent oracle ")
                oracle.wait_line("Renew .*oracle.creds: `natterjack credentials issue oracle`")
                run = await team.inject_event("oracle", {"type": "visitor.greeted"})
                cli.text("credentials", "issue", "oracle")
                assert await run.result(20) == "operator"
                cli.env["NATS_PATIENCE"] = "1"
                cli.text("credentials", "revoke", "oracle")
                oracle.wait_line("lets 'oracle' in no more .user authentication revoked")
                assert oracle.wait() == 1
                assert "Nobody did so within 10 s" in oracle.output
        await operator.close()
