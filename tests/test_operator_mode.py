"""Operator mode: accounts are tokens that an operator signs, and servers take them while they run."""

from __future__ import annotations

import json
import shutil
import subprocess
import time

import pytest

from natterjack import Bus, CredentialsError, RefusedError, Server, connect
from natterjack.broker import find_server
from natterjack.testing import until
from natterjack.testing.command import Cli

from .conftest import Quick
from .test_secure import AGENTS, NAMES, TEAM, _free_port, broker, connected, texts, url_of


@pytest.fixture
def secured(quick: Quick) -> Quick:
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    quick.text("secure", "--url", f"nats://127.0.0.1:{_free_port()}", "--mode", "operator")
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
    assert secured.json("secure", "--url", url, "--check", "--mode", "operator") == {"changes": [], "ending": []}
    assert texts(secured.folder / "secure") == written
    assert "is of mode operator" in secured.error("secure", "--mode", "static", code=2)
    server = [str(find_server()), "-t", "-c", str(secured.folder / "secure/nats-server.conf")]
    assert "configuration file" in subprocess.run(server, capture_output=True, text=True, check=True).stderr


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


async def test_credentials_are_revoked_and_issued_while_it_runs(secured: Quick, cli: Cli) -> None:
    folder, keys = secured.folder, secured.folder / "secure/keys"
    with broker(folder) as url:
        oracle, greeter = await connected(url, folder, "oracle"), await connected(url, folder, "greeter")
        shutil.copy(keys / "oracle.creds", folder / "old.creds")
        told = cli.json("credentials", "revoke", "oracle")
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
        ("revoke oracle --out elsewhere", "elsewhere is not of operator mode"),
        ("revoke oracle", "no NATS server answers"),
    ],
)
def test_what_cannot_be_issued_or_revoked_is_told(secured: Quick, asked: str, told: str) -> None:
    assert told in secured.error("credentials", *asked.split(), code=3 if "NATS" in told else 2)
