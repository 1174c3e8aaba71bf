"""Operator mode: accounts are tokens that an operator signs, and servers take them while they run."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from natterjack import (
    Admission,
    Bus,
    ConnectError,
    CredentialsError,
    Message,
    NoRespondersError,
    Permissions,
    RefusedError,
    Server,
    TokenError,
    Tokens,
    connect,
)
from natterjack.testing import free_port, until
from natterjack.testing.command import Cli
from natterjack_permissions.callout import Callout
from natterjack_permissions.mint import Mint
from natterjack_permissions.pushes import push
from natterjack_permissions.star import star
from natterjack_permissions.testing import secured_broker

from .conftest import Quick
from .test_secure import AGENTS, NAMES, TEAM, broker, connected, read_by_the_server, texts, url_of

SECRET = "a secret of thirty-two bytes, or more"


@pytest.fixture
def secured(quick: Quick) -> Quick:
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    quick.text("secure", "--url", f"nats://127.0.0.1:{free_port()}", "--mode", "operator")
    return quick


def test_files_are_the_same_again_and_keys_stay_secret(secured: Quick) -> None:
    written = texts(secured.folder / "secure")
    accounts = ("CORE", "SYS", "P-greeter", "P-operator", "P-oracle")
    assert written.keys() == {
        "nats-server.conf",
        "accounts.conf",
        "operator.jwt",
        "AUTHORITY.md",
        "seeds/operator.nk",
        *(f"accounts/{name}.jwt" for name in accounts),
        *(f"seeds/{name}.nk" for name in accounts),
        *(f"keys/{name}.creds" for name in NAMES),
        *(f"contexts/{name}.json" for name in NAMES),
    }
    for file in written:
        if file.startswith(("seeds/", "keys/")):
            assert (secured.folder / "secure" / file).stat().st_mode & 0o777 == 0o600
            seed = written[file].splitlines()[-2 if file.endswith("creds") else -1]
            assert seed.startswith("S")
            assert [name for name, text in written.items() if seed in text] == [file]
    url = url_of(secured.folder)
    assert secured.json("secure", "--url", url) == {"written": [], "reloaded": []}
    nothing: dict[str, object] = {"changes": [], "ending": [], "pending": None}
    assert secured.json("secure", "--url", url, "--check", "--mode", "operator") == nothing
    assert texts(secured.folder / "secure") == written
    assert "is of mode operator" in secured.error("secure", "--mode", "static", code=2)
    assert "configuration file" in read_by_the_server(secured.folder)


def test_what_would_change_is_shown_and_not_done(secured: Quick) -> None:
    before, url = texts(secured.folder / "secure"), url_of(secured.folder)
    secured.write(
        team_toml=TEAM.replace('"visitors.*"', '"visitors.*", "mood"') + '[agents.new]\nkind = "agents:Oracle"\n'
    )
    shown = secured.run("secure", "--url", url, "--check", code=1).stdout
    assert '+        "subject": "$KV.context.mood"' in shown
    assert "would write  secure/keys/new.creds" in shown
    assert texts(secured.folder / "secure") == before
    written = secured.json("secure", "--url", url)["written"]
    assert {"accounts/P-new.jwt", "keys/new.creds", "seeds/P-new.nk", "accounts/P-greeter.jwt"} < set(written)
    assert not {"accounts/CORE.jwt", "accounts/P-oracle.jwt", "keys/greeter.creds"} & set(written)


async def test_accounts_come_and_go_and_an_ask_under_way_is_answered(tmp_path: Path) -> None:
    asking = Permissions(("agents.ask.bob", "agents.ask.carl"), ("_INBOX.ann.>",))
    carl, bob = (Permissions((), (f"_INBOX.{name}.>",), (f"agents.ask.{name}",)) for name in ("carl", "bob"))
    with secured_broker({"ann": asking, "carl": carl}, tmp_path, operator_mode=True) as (server, login):

        async def have(granted: dict[str, Permissions]) -> list[str]:
            mint = Mint(tmp_path)
            mint.team(star(granted), resolver=str(tmp_path / "resolver"))
            mint.write()
            return (await push(server.url, mint))[1]

        async with AsyncExitStack() as stack:

            async def joined(name: str) -> Bus:
                bus = await Bus.connect(login, principal=name)
                stack.push_async_callback(bus.close)
                return bus

            ann, host = await joined("ann"), await joined("carl")
            asked: list[Message] = []
            await host.listen("agents.ask.carl", asked.append)
            under_way = asyncio.create_task(ann.request("agents.ask.carl", b"slow", timeout=10))
            await until(lambda: asked)
            assert await have({"ann": asking, "carl": carl, "bob": bob}) == ["P-ann", "P-bob", "P-operator"]
            new = await Bus.connect(replace(login, patience=0.3), principal="bob")
            stack.push_async_callback(new.close)
            await new.listen("agents.ask.bob", lambda message: new.send(message.reply, b"here"))
            assert (await ann.request("agents.ask.bob", timeout=5)).data == b"here"
            await host.publish(asked[0].reply, b"done")
            assert (await under_way).data == b"done"
            assert await have({"ann": asking, "carl": carl}) == ["P-ann", "P-bob", "P-operator"]
            assert await until(new.closed.is_set)
            assert "lets 'bob' in no more (no credentials can be read in" in new.reason
            assert "It is gone, as of one that the team has no more; `natterjack secure` makes it" in new.reason
            with pytest.raises(CredentialsError, match="`natterjack secure` makes them for who is in the team"):
                await joined("bob")
            with pytest.raises(NoRespondersError):
                await ann.request("agents.ask.bob", timeout=5)
            assert ann.connected
            assert host.connected
            assert await have({"ann": asking, "carl": carl}) == []
            await have({"ann": asking, "carl": carl, "bob": bob})
            again = await joined("bob")
            await again.flush()


async def test_what_a_reload_has_only_stored_is_pushed(tmp_path: Path) -> None:
    """After a SIGHUP a server has the new accounts on its disk, and acts by the old ones."""
    resolver = str(tmp_path / "resolver")
    before, after = (Permissions(publish, ("_INBOX.ann.>",)) for publish in ((), ("events.x",)))
    with secured_broker({"ann": before}, tmp_path, operator_mode=True) as (server, login):
        ann = await Bus.connect(login, principal="ann")
        mint = Mint(tmp_path)
        mint.team(star({"ann": after}), resolver=resolver)
        mint.write()
        server.reload((tmp_path / "accounts.conf").read_text())
        await until(lambda: "Reloaded server configuration" in server.log())
        with pytest.raises(RefusedError):
            await ann.request("events.x", timeout=5)
        mint = Mint(tmp_path)
        mint.team(star({"ann": after}), resolver=resolver)
        assert (mint.changed, (await push(server.url, mint))[1]) == ({}, ["P-ann"])
        with pytest.raises(NoRespondersError):  # it may now, and no stream is there
            await ann.request("events.x", timeout=5)
        assert (await push(server.url, mint))[1] == []
        await ann.close()


@pytest.mark.full
async def test_a_team_runs_on_it_and_agents_come_and_go_while_it_runs(secured: Quick, cli: Cli) -> None:
    folder = secured.folder
    with broker(folder) as url:
        operator = await connected(url, folder, "operator")
        cli.env |= {"NATS_URL": url, "NATS_KEYS": str(folder / "secure/keys")}
        with cli.start("up", "team.toml") as up:
            up.wait_line("ready .*2 agents")
            async with connect(operator.server) as team:
                assert await team.ask_peer("oracle", "hello") == "operator asks hello"
                run = await team.inject_event("greeter", {"type": "visitor.arrived", "name": "Ada"})
                assert await run.result(20) == "greeter asks operator"
                greeter = await connected(url, folder, "greeter")
                with pytest.raises(RefusedError):
                    await greeter.store("$KV.context.mood", b"1")
                more = TEAM.replace('"visitors.*"', '"visitors.*", "mood"')
                secured.write(team_toml=more + '[agents.new]\nkind = "agents:Oracle"\n')
                (name,) = cli.json("secure", "--url", url, "--apply")["reloaded"]
                assert name
                assert (await greeter.store("$KV.context.mood", b"1")).sequence > 0
        new = await connected(url, folder, "new")
        shown = json.loads((folder / "secure/contexts/new.json").read_text())
        secured.write(team_toml=TEAM)
        cli.json("secure", "--url", url, "--apply")
        await until(lambda: new.closed.is_set() or not new.connected)
        with pytest.raises(RefusedError):
            await greeter.store("$KV.context.mood", b"1")
        assert shown["creds"] == str(folder / "secure/keys/new.creds")
        assert not (folder / "secure/keys/new.creds").exists()
        for bus in (operator, greeter, new):
            await bus.close()


@pytest.mark.full
async def test_credentials_are_revoked_and_issued_while_it_runs(secured: Quick, cli: Cli) -> None:
    folder, keys = secured.folder, secured.folder / "secure/keys"
    with broker(folder) as url:
        oracle, greeter = await connected(url, folder, "oracle"), await connected(url, folder, "greeter")
        shutil.copy(keys / "oracle.creds", folder / "old.creds")
        cli.env |= {"NATS_URL": url, "NATS_KEYS": "secure/keys"}
        cli.text("provision", "team.toml")
        told = cli.json("credentials", "revoke", "oracle")
        assert "revoke" in cli.text("audit", "show", "operator")
        assert (told["state"], len(told["servers"])) == ("revoked", 1)
        await until(lambda: not oracle.connected)
        with pytest.raises(CredentialsError):
            await Bus.connect(Server(url, keys=str(keys)), principal="oracle")
        assert cli.json("credentials", "issue", "oracle", "--expires", "30d")["state"] == "valid"
        await (await connected(url, folder, "oracle")).close()
        with pytest.raises(CredentialsError):
            await Bus.connect(Server(url, creds=str(folder / "old.creds")), principal="oracle")
        await greeter.flush()
        for bus in (oracle, greeter):
            await bus.close()


@pytest.mark.full
async def test_doors_hear_from_secure_whose_tokens_are_revoked(secured: Quick, cli: Cli) -> None:
    claims = {"iat": int(time.time())}
    with broker(secured.folder) as url:
        cli.env |= {"NATS_URL": url, "NATS_KEYS": "secure/keys"}
        cli.text("provision", "team.toml")
        oracle = await connected(url, secured.folder, "oracle")
        await Admission(oracle).admit("greeter", claims)
        cli.json("secure", "--url", url, "--rotate", "greeter", "--apply")
        with pytest.raises(TokenError, match="it was revoked"):
            await Admission(oracle).admit("greeter", claims)
        await Admission(oracle).admit("oracle", claims)
        await oracle.close()


def test_credentials_are_listed_without_secrets(secured: Quick) -> None:
    issued = secured.json("credentials", "issue", "greeter", "--expires", "12h")
    assert 0 < issued["expires"] - time.time() <= 12 * 3600
    rows = {row["name"]: row for row in secured.json("credentials", "list")["credentials"]}
    assert sorted(rows) == list(NAMES)
    assert rows["greeter"] == issued
    assert {row["state"] for row in rows.values()} == {"valid"}
    listed = secured.text("credentials", "list")
    assert listed.splitlines()[0].split() == ["NAME", "STATE", "ISSUED", "EXPIRES", "KEY"]
    for file in (secured.folder / "secure/keys").iterdir():
        assert file.read_text().splitlines()[-2] not in listed
    assert secured.json("secure", "--url", url_of(secured.folder), "--check")["changes"] == []


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("issue nobody", "'nobody' has no account here, so no credentials; there are core, greeter, operator"),
        ("issue oracle --expires soon", "'soon' is no time; write e.g. 90s, 30m, 12h or 30d"),
        ("issue oracle --expires 0d", "'0d' is no time"),
        ("issue oracle --expires 3651d", "'3651d' is more than ten years; write at most 3650d"),
        ("issue oracle --expires 99999999d", "'99999999d' is more than ten years"),
        (f"issue oracle --expires {'9' * 5000}d", "is more than ten years"),
        ("revoke oracle --out elsewhere", "elsewhere is not of operator mode"),
    ],
)
def test_what_cannot_be_issued_or_revoked_is_told_and_not_done(secured: Quick, asked: str, told: str) -> None:
    before = texts(secured.folder / "secure")
    assert told in secured.error("credentials", *asked.split(), code=2)
    assert texts(secured.folder / "secure") == before


def test_what_is_revoked_while_no_server_runs_is_in_force_when_one_does(secured: Quick) -> None:
    told = secured.error("credentials", "revoke", "oracle", code=3)
    assert told.startswith(
        "oracle is revoked in secure, and on each server that starts with it from now on; but a server"
    )
    assert "no NATS server answers at nats://127.0.0.1:" in told
    assert told.endswith("When it is back, `natterjack secure --apply` tells it")
    assert {row["name"]: row["state"] for row in secured.json("credentials", "list")["credentials"]}[
        "oracle"
    ] == "revoked"
    with broker(secured.folder) as url:

        async def is_kept_out() -> None:
            await (await connected(url, secured.folder, "operator")).close()
            with pytest.raises(CredentialsError):
                await connected(url, secured.folder, "oracle")

        asyncio.run(is_kept_out())
        assert len(secured.json("credentials", "revoke", "sys")["servers"]) == 1
        with pytest.raises(CredentialsError):
            asyncio.run(connected(url, secured.folder, "sys"))


def test_what_is_done_before_there_is_a_team_says_that_no_audit_has_it(
    secured: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    told = "note: no team is provisioned there yet, so no audit says so\n"
    with broker(secured.folder) as url:
        assert told in secured.run("secure", "--url", url, "--rotate", "greeter", "--apply").stderr
        assert told in secured.run("credentials", "revoke", "greeter").stderr
    assert "the end came" not in caplog.text


def test_credentials_that_end_in_no_year_are_listed(secured: Quick) -> None:
    mint = Mint(secured.folder / "secure")
    mint.issue("oracle", float(2**60))
    mint.write()
    assert "1.15292e+18 s after 1970" in secured.text("credentials", "list")


@pytest.mark.full
async def test_a_running_broker_begins_to_take_tokens(secured: Quick, cli: Cli) -> None:
    folder = secured.folder
    cli.env["NATTERJACK_TOKEN_KEY"] = SECRET
    with broker(folder) as url:
        await (await connected(url, folder, "oracle")).close()
        token = Tokens(secret=SECRET).mint("oracle")
        by_token = Server(url, token=token, prefix=Server.SECURED_PREFIX)
        with pytest.raises(CredentialsError):
            await Bus.connect(by_token, principal="oracle")
        assert cli.json("secure", "--url", url, "--tokens", "--apply")["reloaded"]
        with cli.start("callout", "--url", url) as callout:
            callout.wait_line("ready  .* lets in who shows a token")
            oracle = await Bus.connect(by_token, principal="oracle")
            with pytest.raises(RefusedError):
                await oracle.store("$KV.context.mood", b"1")
            await oracle.close()
            assert callout.end() == 0
            assert "let in  oracle from 127.0.0.1" in callout.output
            assert token not in callout.output
    assert cli.json("secure", "--url", url, "--check")["changes"] == []


@pytest.mark.parametrize(
    ("asked", "secret", "told"),
    [
        ("secure --out other --tokens", SECRET, "tokens of the team are taken in operator mode: add --mode operator"),
        (
            "callout",
            SECRET,
            "there is no secure/callout/signer.nk: `natterjack secure --mode operator --tokens` makes it",
        ),
        ("callout", "short", "the secret of tokens has 5 bytes"),
        ("callout", "", "NATTERJACK_TOKEN_KEY is not set"),
    ],
)
def test_what_tokens_lack_is_told(secured: Quick, asked: str, secret: str, told: str) -> None:
    secured.env["NATTERJACK_TOKEN_KEY"] = secret
    done = secured.run(*asked.split(), code=2)
    assert told in done.stderr
    assert secret in ("", "short") or secret not in done.stderr


@pytest.mark.full
async def test_a_token_opens_a_door_with_certificates(quick: Quick, cli: Cli) -> None:
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    url = f"nats://127.0.0.1:{free_port()}"
    quick.text("secure", "--url", url, "--mode", "operator", "--tokens", "--tls")
    keys, tokens = quick.folder / "secure/keys", Tokens(secret=SECRET)
    shown = Server(url, token=tokens.mint("oracle"), prefix=Server.SECURED_PREFIX)
    with broker(quick.folder):
        await (await connected(url, quick.folder, "oracle")).close()
        service = Callout(quick.folder / "secure", tokens)
        await service.start(url)
        oracle = await Bus.connect(
            replace(shown, ca=str(keys / "ca.crt"), cert=str(keys / "oracle.pem")), principal="oracle"
        )
        with pytest.raises(RefusedError):
            await oracle.store("$KV.context.mood", b"1")
        with pytest.raises(ConnectError, match="Name a certificate"):
            await Bus.connect(replace(shown, ca=str(keys / "ca.crt")), principal="oracle")
        await oracle.close()
        await service.stop()
    assert cli.json("secure", "--url", url, "--check")["changes"] == []
    assert "callout/ca.crt" in cli.json("secure", "--url", url, "--rotate", "ca", "--check", code=1)["changes"]
