"""`natterjack secure`: the files, and a broker that runs with them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

import natterjack.demo
from natterjack import Bus, ConnectError, CredentialsError, RefusedError, Server, connect
from natterjack.broker import find_server
from natterjack.stores import STREAMS
from natterjack.testing import free_port, until
from natterjack.testing.command import Cli

from .conftest import Quick

TEAM = """\
[team]
name = "garden"
external = ["visitor.arrived"]

[agents.greeter]
kind = "agents:Greeter"
on = ["visitor.arrived"]
asks = ["oracle"]
result_event = "visitor.greeted"
writes = ["visitors.*"]

[agents.oracle]
kind = "agents:Oracle"
on = ["visitor.greeted"]
"""
AGENTS = """\
from natterjack import Agent

class Greeter(Agent):
    async def handle(self, event, ctx):
        await ctx.shared.set("visitors.last", event.data)
        return await ctx.ask_peer("oracle", str(event.source))

class Oracle(Agent):
    async def answer(self, question, ctx):
        return f"{ctx.caller} asks {question}"

    async def handle(self, event, ctx):
        return event.source
"""
SAYS = (
    "secure --json",
    "explain greeter ask oracle --json",
    "doctor --json",
    "agents --json",
    "journal show greeter --json",
    "events replay --json",
    "audit show --json",
    "dead list --json",
    "runs list --json",
    "storage --json",
)
"""Commands whose output has no secret."""
NAMES = ("core", "greeter", "operator", "oracle", "sys")


@pytest.fixture
def secured(quick: Quick) -> Quick:
    """A folder with a team, and what makes its broker secure."""
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    quick.text("secure", "--url", f"nats://127.0.0.1:{free_port()}")
    return quick


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def read_by_the_server(folder: Path) -> str:
    """What the real server says of the configuration that is there, once it has read it."""
    server = [str(find_server()), "-t", "-c", str(folder / "secure/nats-server.conf")]
    return subprocess.run(server, capture_output=True, text=True, check=True).stderr


def url_of(folder: Path) -> str:
    found = (folder / "secure/nats-server.conf").read_text()
    return "nats://127.0.0.1:" + found.partition("port: ")[2].split()[0]


def test_files_are_the_same_again_and_keys_stay_secret(secured: Quick) -> None:
    written = texts(secured.folder / "secure")
    assert written.keys() == {
        "nats-server.conf",
        "accounts.conf",
        "AUTHORITY.md",
        *(f"keys/{name}.nk" for name in NAMES),
        *(f"contexts/{name}.json" for name in NAMES),
    }
    for name in NAMES:
        assert (secured.folder / f"secure/keys/{name}.nk").stat().st_mode & 0o777 == 0o600
        seed = written[f"keys/{name}.nk"].strip()
        assert not any(seed in text for file, text in written.items() if not file.startswith("keys/"))
    url = url_of(secured.folder)
    assert secured.json("secure", "--url", url) == {"written": [], "reloaded": []}
    assert secured.json("secure", "--url", url, "--check") == {"changes": [], "ending": [], "pending": None}
    assert texts(secured.folder / "secure") == written
    assert "| `greeter` | emit `visitor.greeted`; ask `oracle`; write `visitors.*`; read `>`" in written["AUTHORITY.md"]
    assert "configuration file" in read_by_the_server(secured.folder)


def test_what_would_change_is_shown_and_not_done(secured: Quick) -> None:
    before, url = texts(secured.folder / "secure"), url_of(secured.folder)
    secured.write(
        team_toml=TEAM.replace('"visitors.*"', '"visitors.*", "mood"') + '[agents.new]\nkind = "agents:Oracle"\n'
    )
    shown = secured.run("secure", "--url", url, "--check", code=1).stdout
    assert '+      "$KV.context.mood"' in shown
    assert "would write  secure/keys/new.nk" in shown
    assert texts(secured.folder / "secure") == before
    assert secured.json("secure", "--url", url)["written"] == [
        "AUTHORITY.md",
        "accounts.conf",
        "contexts/new.json",
        "keys/new.nk",
    ]
    after = texts(secured.folder / "secure")
    assert {name: after[name] for name in before if name.startswith("keys/")} == {
        name: text for name, text in before.items() if name.startswith("keys/")
    }
    assert "nobody in the team" not in secured.text("secure", "--url", url)
    secured.write(team_toml=TEAM)
    assert "note: nobody in the team has secure/keys/new.nk, and the broker" in secured.text("secure", "--url", url)
    assert (secured.folder / "secure/keys/new.nk").read_text() == after["keys/new.nk"]


def test_a_key_is_made_anew_for_whom_one_says(secured: Quick) -> None:
    before, url = texts(secured.folder / "secure"), url_of(secured.folder)
    assert "no key here" in secured.error("secure", "--url", url, "--rotate", "nobody", code=2)
    secured.text("secure", "--url", url, "--rotate", "oracle")
    after = texts(secured.folder / "secure")
    assert {name for name in before if after[name] != before[name]} == {"keys/oracle.nk", "accounts.conf"}


@pytest.mark.parametrize(
    ("asked", "code", "told"),
    [
        ("greeter write visitors.last", 0, "yes: 'greeter' may write 'visitors.*' (team.toml:10)"),
        ("greeter emit visitor.greeted", 0, "yes: 'greeter' may emit 'visitor.greeted' (team.toml:5)"),
        ("greeter read anything", 0, "yes: 'greeter' may read '>': its table says nothing else"),
        ("oracle emit x", 1, "it may emit nothing. To allow it, add 'x' to `emits` of [agents.oracle]"),
        ("oracle ask greeter", 1, "no: 'oracle' may not ask 'greeter': that is for 'operator'; it may ask nothing."),
        ("greeter consume EVENTS/x", 1, "it may consume 'EVENTS/greeter=event-visitor+arrived', 'INBOX/"),
        ("operator emit x", 0, "yes: 'operator' may do all, in its own name"),
    ],
)
def test_why_is_told(quick: Quick, asked: str, code: int, told: str) -> None:
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    assert told in quick.run("explain", *asked.split(), code=code).stdout
    assert quick.json("explain", *asked.split(), code=code)["allowed"] == (code == 0)


AUTHORITY = """
[buckets.finance]
[agents.ann]
kind = "natterjack.components:Agent"
reads = ["mood"]
waits = ["order.paid"]
tools = ["desk"]
[agents.ben]
kind = "natterjack.components:Agent"
[agents.eve]
kind = "natterjack.components:Agent"
delays = ["bill.*"]
[tools.desk]
kind = "mcp"
command = ["true"]
[users.ci]
replays = ["order.*"]
[users.ada]
operator = true
"""


@pytest.mark.parametrize(
    ("asked", "code", "told"),
    [
        ("ann read mood", 0, "yes: 'ann' may read 'mood' (team.toml:4)"),
        ("ben read mood", 0, "its table says nothing else"),
        ("ann read plan", 1, "'ben' (team.toml:7), 'eve' (team.toml:9), 'operator'; it may read 'mood' (team.toml:4)"),
        ("ann read plan", 1, "To allow it, add 'plan' to `reads` of [agents.ann]"),
        ("ben read finance/x", 1, "it may read '>' (team.toml:7). To allow it, add '>' and 'finance/x' to"),
        ("ann call desk/find", 0, "yes: 'ann' may call 'desk/*' (team.toml:6)"),
        ("ann ask ann", 0, "for who comes by a door of its own"),
        ("ci replay order.paid", 0, "yes: 'ci' may replay 'order.*' (team.toml:16)"),
        ("ci replay pay.due", 1, "The broker cannot narrow what somebody reads of the past"),
        ("ann replay pay.due", 1, "The broker cannot narrow what somebody reads of the past"),
        ("ben replay pay.due", 1, "To allow it, add 'pay.due' to `replays` of [agents.ben]\n"),
        ("ada emit x", 0, "yes: 'ada' may do all, in its own name (team.toml:18)"),
        ("operator emit x", 0, "yes: 'operator' may do all, in its own name\n"),
        ("operator serve ben", 1, "no: 'operator' answers for nobody else"),
        ("ada write nobucket/x", 1, "no: the team has no bucket 'nobucket'"),
        ("ada write finance/x", 0, "yes: 'ada' may do all"),
        ("core write finance/x", 0, "yes: 'core' reaches all"),
        ("eve delay bill.due", 0, "yes: 'eve' may delay 'bill.*' (team.toml:11)"),
        ("eve delay eve", 1, "it may delay 'bill.*'. To allow it, add 'eve' to `delays` of [agents.eve]\n"),
        ("ben delay bill.due", 1, "it may delay nothing. To allow it, add 'bill.due' to `delays` of [agents.ben]\n"),
        ("ci delay bill.due", 1, "no: 'ci' may not delay 'bill.due': it may delay nothing\n"),
        ("ada delay bill.due", 0, "yes: 'ada' may do all"),
        ("core ask ben", 1, "no: 'core' reaches all that is stored"),
    ],
)
def test_what_is_told_is_what_the_broker_does(quick: Quick, asked: str, code: int, told: str) -> None:
    quick.write(team_toml=AUTHORITY.strip())
    assert told in quick.run("explain", *asked.split(), code=code).stdout


def test_keys_that_nobody_in_the_team_has_are_explained(quick: Quick) -> None:
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    assert "yes: 'core' reaches all" in quick.run("explain", "core", "emit", "x").stdout
    assert "no: 'sys' looks after the server" in quick.run("explain", "sys", "emit", "x", code=1).stdout


def test_what_cannot_be_explained_is_told(quick: Quick) -> None:
    quick.write(team_toml=TEAM, agents_py=AGENTS)
    assert "is nothing that is allowed" in quick.error("explain", "greeter", "fly", "x", code=2)
    assert "there are greeter, operator, oracle" in quick.error("explain", "nobody", "ask", "x", code=2)
    for verb, what in (("emit", "a."), ("emit", "a b"), ("emit", "é"), ("emit", ""), ("read", "a."), ("ask", "a.b")):
        for who in ("greeter", "operator"):
            assert f"{what!r} is no valid " in quick.error("explain", who, verb, what, code=2)


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """The broker that runs with what is there; yields its URL."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(find_server()), "-c", "secure/nats-server.conf"], cwd=folder, stderr=log, stdin=subprocess.DEVNULL
        )
        try:
            yield url_of(folder)
        finally:
            process.terminate()
            process.wait(20)


async def connected(url: str, folder: Path, name: str) -> Bus:
    async def joined() -> Bus | None:
        try:
            return await Bus.connect(Server(url, keys=str(folder / "secure/keys")), principal=name)
        except CredentialsError:
            raise
        except ConnectionError:
            return None

    found = await until(joined)
    assert found is not None
    return found


async def listens(url: str, folder: Path) -> None:
    """Return once the broker lets its operator in."""
    await (await connected(url, folder, "operator")).close()


def test_the_nats_command_may_what_its_context_says(secured: Quick, nats_command: str | None) -> None:
    if nats_command is None:
        pytest.skip("the nats command line is not here; see .ci/run")

    def nats(name: str, *args: str) -> str:
        context = secured.folder / f"secure/contexts/{name}.json"
        command = [nats_command or "", "--context", str(context), "--timeout", "1s", *args]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=40, check=False)
        return (done.stdout + done.stderr).strip()

    environment = {name: value for name, value in os.environ.items() if not name.startswith("NATS_")}
    with broker(secured.folder) as url:
        asyncio.run(listens(url, secured.folder))
        secured.env |= {"NATS_URL": url, "NATS_KEYS": str(secured.folder / "secure/keys")}
        secured.text("provision", "team.toml")
        assert '"stream":"EVENTS"' in nats("operator", "req", "events.visitor.arrived", "1")
        refused = 'Permissions Violation for Publish to "events.visitor.arrived"'
        assert refused in nats("oracle", "req", "events.visitor.arrived", "2")
        nats("greeter", "kv", "put", "context", "visitors.last", "ada")
        nats("oracle", "kv", "put", "context", "visitors.last", "eve")
        for name in ("operator", "greeter", "oracle"):
            assert nats(name, "kv", "get", "context", "visitors.last", "--raw") == "ada"
        events = json.loads(nats("operator", "stream", "info", "EVENTS", "--json"))
        assert events["state"]["messages"] == 1


async def is_half_open(bus: Bus) -> bool:
    """Whether `up` sees to it that nobody fills a stream for others."""
    config = (await bus.api("STREAM.INFO.EVENTS"))["config"]
    assert config["max_bytes"] in (STREAMS["EVENTS"]["max_bytes"], STREAMS["EVENTS"]["max_bytes"] // 2)
    return bool(config["max_bytes"] < STREAMS["EVENTS"]["max_bytes"])


async def test_a_team_runs_on_it_and_rights_change_while_it_runs(secured: Quick, cli: Cli) -> None:
    folder = secured.folder
    with broker(folder) as url:
        operator = await connected(url, folder, "operator")
        cli.env |= {"NATS_URL": url, "NATS_KEYS": str(folder / "secure/keys")}
        with cli.start("up", "team.toml") as up:
            up.wait_line("ready .*2 agents")
            assert "natterjack emit visitor.arrived '{}' --server " in up.output
            await until(partial(is_half_open, operator))
            async with connect(operator.server) as team:
                assert await team.ask_peer("oracle", "hello") == "operator asks hello"
                run = await team.inject_event("greeter", {"type": "visitor.arrived", "name": "Ada"})
                assert await run.result(20) == "greeter asks operator"
                greeter = await connected(url, folder, "greeter")
                with pytest.raises(RefusedError):
                    await greeter.store("$KV.context.mood", b"1")
                secured.write(team_toml=TEAM.replace('"visitors.*"', '"visitors.*", "mood"'))
                (name,) = cli.json("secure", "--url", url, "--apply")["reloaded"]
                assert name
                assert (await greeter.store("$KV.context.mood", b"1")).sequence > 0
                audited = cli.text("audit", "show", "operator")
                assert "authority secure" in audited
                assert "write `mood`, `visitors.*`" in audited
                assert "broker refuse" in cli.text("audit", "show", "greeter")
                assert await team.ask_peer("oracle", "still?") == "operator asks still?"
                await greeter.close()
            cli.text("provision")
            assert cli.json("provision", "--json")["updated"] == []
            told = [cli.run(*each.split()).stdout for each in SAYS]
            titles = [" ".join(each.cmdline()) for each in psutil.Process().children(recursive=True)]
            assert up.end() == 0
            told += [*titles, up.output]  # and all files, what the broker has stored as well
            files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "keys"]
            told += [path.read_bytes().decode("latin-1") for path in files]
            seeds = {path.read_text().strip() for path in (folder / "secure/keys").glob("*.nk")}
            assert len(titles) >= 2
            assert len(files) > 20
            assert [seed for seed in seeds for text in told if seed in text] == []
        assert not await is_half_open(operator)
        await operator.close()
    log = (folder / "log").read_text()
    assert [line for line in log.splitlines() if "Violation" in line and "$KV.context.mood" not in line] == []


def test_the_team_that_init_writes_runs_on_it_as_it_is(quick: Quick, cli: Cli) -> None:
    quick.text("init", ".")
    quick.text("secure", "--url", f"nats://127.0.0.1:{free_port()}")
    with broker(quick.folder) as url:
        asyncio.run(listens(url, quick.folder))
        quick.env = cli.env = {"NATS_URL": url, "NATS_KEYS": "secure/keys"}
        with cli.start("up", "--single-process") as up:
            up.wait_line("ready .*1 agent")
            greet = ("emit", "visitor.arrived", '{"name": "Ada"}', "--to", "greeter", "--wait", "--timeout", "20")
            assert quick.text(*greet) == "Hello, Ada!"
            assert quick.text("ask", "greeter", "Who was here?") == "1 so far: Ada"
            assert up.end() == 0
    assert "Violation" not in (quick.folder / "log").read_text()


def test_a_port_that_the_server_does_not_have_is_told(secured: Quick) -> None:
    port = url_of(secured.folder).rpartition(":")[2]
    told = secured.text("secure", "--url", "nats://127.0.0.1:1")
    assert f"note: secure/nats-server.conf is yours, and has port {port} still: write `port: 1` there" in told
    assert "is yours" in secured.text("secure")
    assert "is yours" not in secured.text("secure", "--url", f"nats://127.0.0.1:{port}")


async def test_who_has_an_old_key_is_let_in_no_more_and_the_new_one_is_found(secured: Quick, cli: Cli) -> None:
    folder = secured.folder
    with broker(folder) as url:
        oracle, gone = await connected(url, folder, "oracle"), asyncio.Event()
        async with oracle.reconnects(gone.set):
            shutil.copy(folder / "secure/keys/oracle.nk", folder / "old.nk")
            cli.text("secure", "--url", url, "--rotate", "oracle", "--apply")
            await asyncio.wait_for(gone.wait(), 20)
        await oracle.flush()
        with pytest.raises(CredentialsError):
            await Bus.connect(Server(url, nkey=str(folder / "old.nk")), principal="oracle")
        await oracle.close()


async def test_a_key_that_cannot_be_read_is_tried_again(secured: Quick, caplog: pytest.LogCaptureFixture) -> None:
    folder = secured.folder
    key = folder / "secure/keys/oracle.nk"
    seed = key.read_text()
    with broker(folder) as url:
        oracle = await connected(url, folder, "oracle")
        key.write_text("no seed")
    with broker(folder):
        await until(lambda: f"no key can be read in {key}" in caplog.text)
        assert not oracle.connected
        key.write_text(seed)
        await until(lambda: oracle.connected)
        await oracle.flush()
        await oracle.close()


async def test_what_the_server_does_not_take_changes_nothing(secured: Quick, cli: Cli) -> None:
    folder = secured.folder
    with broker(folder) as url:
        bus = await connected(url, folder, "oracle")
        server = folder / "secure/nats-server.conf"
        server.write_text(server.read_text() + "\nno_such_thing: 1\n")
        told = cli.error("secure", "--url", url, "--apply", code=2)
        assert "does not take the new configuration, and goes on with the old one" in told
        await bus.flush()
        await bus.close()


@pytest.mark.full
@pytest.mark.parametrize("mode", ["static", "operator"])
async def test_the_demo_runs_on_it(tmp_path: Path, cli: Cli, mode: str) -> None:
    team = Path(natterjack.demo.__file__).with_name("team.toml").read_text()
    cli.write(team_toml=team.replace('kind = "llm"', 'kind = "llm"\nmodel = "openai:gpt-5-mini"'))
    cli.env["OPENAI_API_KEY"] = "none"
    cli.text("secure", "--url", f"nats://127.0.0.1:{free_port()}", "--mode", mode)
    with broker(tmp_path) as url:
        await (await connected(url, tmp_path, "operator")).close()
        cli.env["NATS_KEYS"] = "secure/keys"
        report = cli.json("demo", "--server", url)
        assert report["answered"]
    assert "Violation" not in (tmp_path / "log").read_text()


async def test_who_opens_connections_without_end_keeps_nobody_out(
    secured: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack_permissions.broker.MOST_CONNECTIONS", 20)
    folder = secured.folder
    secured.text("secure", "--url", url_of(folder))
    with broker(folder) as url:
        crowd = [await connected(url, folder, "greeter") for _ in range(20)]
        with pytest.raises(ConnectError, match=r"takes no more connections .*maximum account active connections"):
            await Bus.connect(Server(url, keys=str(folder / "secure/keys")), principal="greeter")
        await (await connected(url, folder, "oracle")).close()
        for each in crowd:
            await each.close()
