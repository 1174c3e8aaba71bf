"""The folder of `secure`: nothing that one command writes is undone by another, or by a server."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import ExitStack

import pytest

from natterjack.testing import free_port
from natterjack.testing.command import Cli
from natterjack_permissions import claims
from natterjack_permissions.folder import held
from natterjack_permissions.mint import Mint
from natterjack_permissions.pushes import _Pushing, push

from .conftest import Quick
from .test_secure import AGENTS, TEAM, broker, connected, listens, texts, url_of

MODES = ("static", "operator")
WIDER = TEAM.replace('"visitors.*"', '"visitors.*", "mood"')


@pytest.fixture(params=MODES)
def secured(request: pytest.FixtureRequest, quick: Quick) -> Quick:
    return made(quick, request.param)


@pytest.fixture
def minted(quick: Quick) -> Quick:
    return made(quick, "operator")


def made(quick: Quick, mode: str) -> Quick:
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    quick.text("secure", "--url", f"nats://127.0.0.1:{free_port()}", "--mode", mode)
    return quick


@pytest.mark.parametrize(
    "asked",
    ["secure", "secure --check", "secure --mode static", "credentials issue oracle", "credentials revoke oracle"],
)
def test_what_signs_may_be_kept_elsewhere_and_the_mode_stays(minted: Quick, asked: str) -> None:
    (minted.folder / "secure/seeds").rename(minted.folder / "safe")
    before = texts(minted.folder / "secure")
    told = minted.error(*asked.split(), code=2)
    assert "secure is of operator mode, and its `seeds`, which sign, are not here; do this where they are" in told
    assert texts(minted.folder / "secure") == before
    assert {row["name"] for row in minted.json("credentials", "list")["credentials"]} > {"oracle", "greeter"}


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of folders there")
@pytest.mark.parametrize("asked", ["secure", "credentials revoke oracle", "credentials issue oracle"])
def test_one_command_at_a_time_changes_it(minted: Quick, cli: Cli, asked: str) -> None:
    out = minted.folder / "secure"
    with broker(minted.folder) as url:
        asyncio.run(listens(url, minted.folder))
        with ExitStack() as holding:
            holding.enter_context(held(out))
            with cli.start(*asked.split()) as command:
                command.wait_line("note: another command changes secure; this one waits for it")
                other = Mint(out)
                other.revoke("greeter")
                other.write()
                holding.close()
                assert command.wait() == 0
    assert Mint(out).revoked("greeter") == other.revoked("greeter") > 0


async def test_what_no_server_takes_is_put_back(secured: Quick, cli: Cli) -> None:
    folder, static = secured.folder, not (secured.folder / "secure/operator.jwt").exists()
    more = ["--rotate", "sys", "--rotate", "oracle", *([] if static else ["--tls"])]
    with broker(folder) as url:
        await listens(url, folder)
        server = folder / "secure/nats-server.conf"
        well = server.read_text()
        server.write_text(well + "\nno_such_thing: 1\n")
        before = texts(folder / "secure")
        told = cli.error("secure", *more, "--apply", code=2)
        assert "does not take the new configuration, and goes on with the old one: secure/nats-server.conf:" in told
        assert told.endswith(". All files are as they were")
        assert texts(folder / "secure") == before
        assert (folder / "secure/keys").stat().st_mode & 0o777 == 0o700
        server.write_text(well)
        await (await connected(url, folder, "oracle")).close()
        assert cli.json("secure", "--rotate", "sys", "--rotate", "oracle", "--apply")["reloaded"]
        await (await connected(url, folder, "oracle")).close()
        assert cli.json("secure", "--check")["pending"] == []


async def test_what_the_broker_has_not_taken_is_told(secured: Quick, cli: Cli) -> None:
    folder = secured.folder
    with broker(folder) as url:
        await listens(url, folder)
        assert cli.text("secure", "--check") == "nothing would change"
        secured.write(team_toml=WIDER)
        cli.text("secure")
        accounts = folder / "secure/accounts.conf"
        later = accounts.stat().st_mtime + 60  # whoever changes it that soon after the server has begun
        os.utime(accounts, (later, later))
        told = cli.run("secure", "--check", code=1).stdout
        assert "the running broker goes by something else" in told
        assert told.endswith("no file would change, but --apply is due\n")
        assert len(cli.json("secure", "--check", code=1)["pending"]) == 1
        os.utime(accounts)
        assert cli.json("secure", "--apply")["reloaded"]
        assert cli.json("secure", "--check")["pending"] == []
    noted = cli.text("secure", "--check")
    assert "note: the broker was not asked whether it has all of it: no NATS server answers" in noted


async def test_a_new_account_is_first_pushed_as_of_earlier(
    minted: Quick, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[tuple[str, int, int]] = []
    send = _Pushing._push

    async def noted(pushing: _Pushing, name: str, token: str) -> None:
        said = claims.read(token)
        pushed.append((name, said["iat"], len(said["nats"].get("imports", ()))))
        await send(pushing, name, token)

    monkeypatch.setattr(_Pushing, "_push", noted)
    with broker(minted.folder) as url:
        await listens(url, minted.folder)
        minted.write(team_toml=TEAM + '[agents.new]\nkind = "agents:Oracle"\n')
        cli.text("secure")
        assert "P-new" in (await push(url, Mint(minted.folder / "secure")))[1]
    (first, nothing), (then, whole) = [each[1:] for each in pushed if each[0] == "P-new"]
    assert first < then
    assert nothing == 0 < whole


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("seeds/operator.nk", b""),
        ("seeds/P-oracle.nk", b"SXYZ"),
        ("seeds/P-oracle.nk", b"\xff\xfe"),
        ("accounts/P-oracle.jwt", b"x.y.z"),
        ("accounts/P-oracle.jwt", b"\xff"),
    ],
)
def test_a_broken_file_is_named(minted: Quick, file: str, data: bytes) -> None:
    (minted.folder / "secure" / file).write_bytes(data)
    assert f"secure/{file}" in minted.error("secure", code=2)


def test_a_broken_key_is_named_and_a_broken_configuration_is_written_anew(quick: Quick) -> None:
    made(quick, "static")
    (quick.folder / "secure/accounts.conf").write_bytes(b"\xff")
    assert quick.json("secure", "--url", url_of(quick.folder))["written"] == ["accounts.conf"]
    (quick.folder / "secure/keys/oracle.nk").write_bytes(b"")
    assert "secure/keys/oracle.nk has no seed of a key" in quick.error("secure", code=2)


def test_a_broken_context_is_named(secured: Quick) -> None:
    for text in ("{", "{}", "[]"):
        (secured.folder / "secure/contexts/sys.json").write_text(text)
        assert "secure/contexts/sys.json does not say where the broker is" in secured.error("secure", code=2)
    secured.text("secure", "--url", url_of(secured.folder))
    secured.text("secure")


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--url foo", "'foo' is no URL of a broker; write e.g. nats://127.0.0.1:4222"),
        ("--url nats://h:99999999", "'nats://h:99999999' is no URL of a broker (Port out of range"),
        ("--url nats://bob:hidden@h:4222", "the URL of h has a name or a password in it; leave it out"),
        ("--tls --host bücher.example", "'bücher.example' is no host; write its name as the DNS has it"),
        ("--tls --host a/b", "'a/b' is no host"),
        ("--out agents.py", "agents.py cannot be a folder of keys"),
        ("--out agents.py/x", "agents.py/x cannot be a folder of keys"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(quick: Quick, option: str, told: str) -> None:
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    before = texts(quick.folder)
    error = quick.error("secure", *option.split(), code=2)
    assert told in error
    assert "hidden" not in error
    assert texts(quick.folder) == before


@pytest.mark.parametrize("name", ["server", "ca"])
def test_a_name_that_would_be_two_things_is_not_rotated(quick: Quick, name: str) -> None:
    quick.write(team_toml=TEAM + f'[agents.{name}]\nkind = "agents:Oracle"\n', agents_py=AGENTS)
    quick.text("secure", "--tls")
    before = texts(quick.folder)
    assert f"--rotate {name} would be two things" in quick.error("secure", "--rotate", name, code=2)
    assert texts(quick.folder) == before


def test_the_next_step_names_what_was_given(quick: Quick) -> None:
    quick.write(prod_toml=TEAM, agents_py=AGENTS)
    assert "natterjack up prod.toml" in quick.text("secure", "prod.toml")
