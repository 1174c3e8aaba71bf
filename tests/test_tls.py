"""`natterjack secure --tls`: who has no right certificate is kept out, and all of them change while a team runs."""

from __future__ import annotations

import asyncio
import datetime
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from natterjack import Bus, ConnectError, Message, Server, TeamClient, connect
from natterjack.testing import free_port, until
from natterjack.testing.command import Cli
from natterjack_permissions import certificates
from natterjack_permissions.certificates import Identity, new_authority

from .conftest import Quick
from .test_secure import AGENTS, NAMES, TEAM, broker, connected, texts, url_of

CERTIFICATES = ("tls/server.pem", *(f"keys/{name}.pem" for name in NAMES))


@pytest.fixture
def secured(quick: Quick) -> Quick:
    """A folder with a team, and what makes its broker secure, certificates included."""
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    quick.text("secure", "--tls", "--url", f"nats://127.0.0.1:{free_port()}")
    return quick


def expect(changes: set[str], secured: Quick, *args: str) -> None:
    """Run `secure` so: `--check` says that this would be other than before, or gone, and then it is."""
    before, command = texts(secured.folder / "secure"), ("secure", "--url", url_of(secured.folder), *args)
    assert secured.json(*command, "--check", code=bool(changes))["changes"] == sorted(changes)
    assert secured.json(*command)["written"] == sorted(changes)
    after = texts(secured.folder / "secure")
    assert {name for name in before | after if before.get(name) != after.get(name)} == changes


def test_certificates_are_made_once_and_kept(secured: Quick) -> None:
    folder = secured.folder / "secure"
    expect(set(), secured)
    for name in ("ca/current.pem", *CERTIFICATES):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
        secret = (folder / name).read_text().partition("-----END PRIVATE")[0]
        assert [file for file, text in texts(folder).items() if secret in text] == [name]
    authority = Identity.read(folder / "ca/current.pem")
    assert (folder / "keys/ca.crt").read_text() == (folder / "tls/ca.crt").read_text() == authority.text
    assert Identity.read(folder / "tls/server.pem").hosts == {"127.0.0.1", "localhost"}
    assert Identity.read(folder / "keys/oracle.pem").hosts == set()


def test_hosts_are_added_and_stay(secured: Quick) -> None:
    expect({"tls/server.pem"}, secured, "--host", "nats.example", "--host", "10.0.0.7")
    expect(set(), secured)
    expect({"tls/server.pem"}, secured, "--rotate", "server")
    server = Identity.read(secured.folder / "secure/tls/server.pem")
    assert server.hosts == {"127.0.0.1", "localhost", "nats.example", "10.0.0.7"}


def test_a_certificate_is_made_anew_for_whom_one_says(secured: Quick) -> None:
    expect({"keys/oracle.nk", "keys/oracle.pem", "accounts.conf"}, secured, "--rotate", "oracle")
    told = secured.error("secure", "--url", url_of(secured.folder), "--rotate", "nobody", code=2)
    assert "there are core, greeter, operator, oracle, sys, server, ca" in told


def test_what_ends_soon_is_told_and_made_anew(secured: Quick, monkeypatch: pytest.MonkeyPatch) -> None:
    url = url_of(secured.folder)
    monkeypatch.setattr(certificates, "DAYS", 20)
    secured.text("secure", "--url", url, "--rotate", "oracle")
    monkeypatch.undo()
    assert secured.json("secure", "--url", url, "--check", code=1) == {
        "changes": ["keys/oracle.pem"],
        "ending": ["the certificate of oracle ends in 19 days"],
        "pending": None,
    }
    expect({"keys/oracle.pem"}, secured)


def test_the_authority_is_replaced_in_three_steps(secured: Quick) -> None:
    derived = {"keys/ca.crt", "tls/ca.crt"}
    first = Identity.read(secured.folder / "secure/ca/current.pem").text
    expect({"ca/next.pem", *derived}, secured, "--rotate", "ca")
    assert "step 1 of 3" in secured.text("secure", "--url", url_of(secured.folder))
    expect({"ca/current.pem", "ca/next.pem", "ca/last.crt", *CERTIFICATES}, secured, "--rotate", "ca")
    expect(set(), secured)
    expect({"ca/last.crt", *derived}, secured, "--rotate", "ca")
    assert first not in (secured.folder / "secure/tls/ca.crt").read_text()


def test_a_configuration_that_is_the_users_stays_and_what_it_lacks_is_told(quick: Quick) -> None:
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    quick.text("secure")
    assert 'is yours: add the line  tls { include "tls.conf" }' in quick.text("secure", "--tls")
    assert quick.json("secure", "--check") == {"changes": [], "ending": [], "pending": None}


@pytest.mark.parametrize("days", [365, 20])
def test_the_doctor_says_when_the_server_s_certificate_ends(
    secured: Quick, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    folder, url = secured.folder, url_of(secured.folder)
    monkeypatch.setattr(certificates, "DAYS", days)
    secured.text("secure", "--url", url, "--rotate", "server")
    secured.env |= {"NATS_URL": url, "NATS_KEYS": str(folder / "secure/keys")}
    with broker(folder):
        checks = secured.json("doctor", code=1)["checks"]  # there is no team yet
    (found,) = [check for check in checks if check["check"] == "tls"]
    ends = Identity.read(folder / "secure/tls/server.pem").ends
    assert found["detail"].startswith(f"the server's certificate ends on {ends:%Y-%m-%d}")
    assert found["ok"] is (days > 30)
    assert ("natterjack secure --apply" in found["fix"]) is (days < 30)


async def test_who_has_no_right_certificate_is_kept_out(secured: Quick) -> None:
    folder = secured.folder / "secure"
    authority, stranger = Identity.read(folder / "ca/current.pem"), new_authority("Natterjack")
    (folder / "other.crt").write_text(stranger.text)
    stranger.issue("oracle").write(folder / "foreign.pem")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "_now", lambda: datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=366))
        authority.issue("oracle").write(folder / "expired.pem")
    right: dict[str, Any] = {"nkey": str(folder / "keys/oracle.nk"), "ca": str(folder / "keys/ca.crt")}
    right["cert"] = str(folder / "keys/oracle.pem")
    with broker(secured.folder) as url:
        await (await connected(url, secured.folder, "oracle")).close()
        await (await Bus.connect(Server(url.replace("127.0.0.1", "localhost"), **right), principal="oracle")).close()
        for given, told in (
            ({**right, "cert": ""}, "Name a certificate"),
            ({**right, "cert": str(folder / "foreign.pem")}, "It takes no such certificate as .*foreign.pem"),
            ({**right, "cert": str(folder / "expired.pem")}, "has ended"),
            ({**right, "ca": str(folder / "other.crt")}, "is of no authority that is known here"),
            ({**right, "ca": "", "cert": ""}, "is of no authority that is known here"),
        ):
            with pytest.raises(ConnectError, match=f"no TLS connection to .*{told}"):
                await Bus.connect(Server(url, **given), principal="oracle")
        with pytest.raises(ConnectError, match=r"for other hosts.*secure --host"):
            await Bus.connect(Server(url.replace("127.0.0.1", "127.0.0.2"), **right), principal="oracle")


async def answering(bus: Bus) -> None:
    async def answer(message: Message) -> None:
        bus.send(message.reply, b"here")

    await bus.subscribe("agents.ask.oracle", answer)


async def test_clients_show_and_trust_what_is_there_when_they_connect_again(
    secured: Quick, stack: AsyncExitStack
) -> None:
    folder = secured.folder
    with broker(folder) as url:
        oracle, greeter = [await connected(url, folder, name) for name in ("oracle", "greeter")]
        stack.push_async_callback(oracle.close)
        stack.push_async_callback(greeter.close)
        await answering(oracle)
    await until(lambda: not oracle.connected and not greeter.connected)
    for _ in range(3):
        secured.text("secure", "--url", url, "--rotate", "ca")
    with broker(folder):
        await until(lambda: oracle.connected and greeter.connected, timeout=20)
        await oracle.flush()
        assert (await greeter.request("agents.ask.oracle", timeout=5.0)).data == b"here"


@pytest.mark.full
@pytest.mark.timeout(180)
async def test_all_change_while_a_team_runs_and_no_ask_fails(secured: Quick, cli: Cli, stack: AsyncExitStack) -> None:
    folder, url, answers = secured.folder, url_of(secured.folder), 0

    async def ask(team: TeamClient) -> None:
        nonlocal answers
        while True:
            assert await team.ask_peer("oracle", "still?") == "operator asks still?"
            answers += 1

    def more(before: int) -> bool:
        return answers > before + 20

    with broker(folder):
        operator = await connected(url, folder, "operator")
        stack.push_async_callback(operator.close)
        cli.env |= {"NATS_URL": url, "NATS_KEYS": str(folder / "secure/keys")}
        with cli.start("up", "team.toml") as up:
            up.wait_line("ready .*2 agents")
            async with connect(operator.server) as team, asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(ask(team))
                # Who has another key connects again, and shows its new certificate.
                for name in ("ca", "ca", "ca", "server", "sys", "core", "greeter", "oracle"):
                    await asyncio.to_thread(cli.json, "secure", "--url", url, "--rotate", name, "--apply")
                    before = answers
                    await until(partial(more, before), timeout=30)
                asking.cancel()
            assert up.end() == 0
