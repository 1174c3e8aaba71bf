"""Users of a team: who acts from outside, in its own name and with the rights of its table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from natterjack import (
    ConfigError,
    PeerRefusedError,
    RefusedError,
    Right,
    Server,
    Team,
    agent_rights,
    connect,
    permissions,
    read_team,
)
from natterjack.bus import Bus
from natterjack.client import Run
from natterjack.plugins import Plugins
from natterjack.team import check_team
from natterjack.testing import NatsServer
from natterjack.testing.command import Cli
from natterjack_permissions.authority import authority
from natterjack_permissions.testing import secured_broker

from .conftest import Quick

TEAM = """\
[team]
name = "newsroom"

[buckets.budget]

[agents.writer]
kind = "newsdesk:Writer"
on = ["draft.wanted"]
replays = []

[agents.editor]
kind = "newsdesk:Writer"

[users.ci]
emits = ["draft.wanted"]
asks = ["writer"]
reads = ["status"]
injects = ["writer.draft.*"]

[users.ada]
operator = true
"""
AGENTS = """\
from natterjack import Agent

class Writer(Agent):
    async def answer(self, question, ctx):
        return f"{ctx.caller} asks {question}"

    async def handle(self, event, ctx):
        return event.source
"""
WRONG = {
    "ci]": ("writer]", "[users.writer] the team has an agent or a tool server 'writer', too"),
    "ada]": ("operator]", "users.operator: 'operator' is no valid agent name: this name is reserved"),
    "operator = true": ('operator = true\nasks = ["writer"]', "'asks' adds nothing to `operator = true`"),
    'asks = ["writer"]': ('asks = ["wrter"]', "'wrter' is no agent of the team. Did you mean 'writer'?"),
    'injects = ["writer.draft.*"]': ('injects = ["wrter.x"]', "'wrter' is no agent of the team"),
    'reads = ["status"]': ('reads = ["budgt/x"]', "'budgt/x' is in no bucket of the team. Did you mean 'budget'?"),
    'emits = ["draft.wanted"]': ('emit = ["x"]', "[users.ci] unknown key 'emit'. Did you mean 'emits'?"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "team.toml").write_text(TEAM)
    (tmp_path / "newsdesk.py").write_text(AGENTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("written", WRONG)
def test_what_is_written_wrongly_is_told_with_its_line(folder: Path, written: str) -> None:
    instead, told = WRONG[written]
    (folder / "team.toml").write_text(TEAM.replace(written, instead))
    line = TEAM[: TEAM.index(written)].count("\n") + 1 + instead.count("\n")
    with pytest.raises(ConfigError, match=f"team.toml:{line}: (\\[users.*\\] )?{re.escape(told)}"):
        check_team(read_team(Path("team.toml")), Plugins.load())


@contextmanager
def running(cli: Cli, *options: str, secured: bool, lacking: str = "") -> Iterator[Server]:
    """The team, on a broker that has an account for each principal, or on one that has none; perhaps one key lacks."""
    team = read_team(cli.folder / "team.toml")
    granted = {name: permissions(name, rights) for name, rights in agent_rights(team.closed()).items()}
    keys = cli.folder / "keys"
    opened = secured_broker(granted, keys, operators=authority(team).operators) if secured else None
    with opened or _open() as (server, login):
        cli.env |= {"NATS_URL": server.url} | ({"NATS_KEYS": str(keys)} if secured else {})
        (keys / lacking).unlink() if lacking else None
        with cli.start("up", "team.toml", *options) as up:
            up.wait_line("ready .*2 agents")
            yield login
            assert up.end() == 0


@contextmanager
def _open() -> Iterator[tuple[NatsServer, Server]]:
    with NatsServer() as server:
        yield server, Server(server.url)


@pytest.mark.parametrize("secured", [False, True], ids=["open", "secured"])
async def test_a_user_may_what_its_table_says_and_nothing_else(folder: Path, cli: Cli, secured: bool) -> None:
    with running(cli, secured=secured) as login:
        assert cli.text("--as", "ci", "ask", "writer", "hello") == "ci asks hello"
        cli.env["NATTERJACK_AS"] = "ci"
        assert "'ci' may not emit 'draft.done'" in cli.error("emit", "draft.done", code=1)
        async with connect(login, name="ci") as team:
            run = await team.inject_event("writer", {"type": "draft.wanted"})
            for refused in (
                lambda: team.ask_peer("editor", "x"),
                lambda: team.context.set("status", 1),
                lambda: team.event_bus.publish("news", 1),
                lambda: team.inject_event("editor", {"type": "draft.wanted"}),
            ):
                with pytest.raises((RefusedError, PeerRefusedError), match=r"'ci' may not .*\(team.toml:"):
                    await refused()
        async with connect(login, name="ada") as team:
            assert await Run(run.id, "writer", team.bus).result(20) == "ci"
            await team.context.set("status", "busy")
            await team.event_bus.emit("draft.wanted", delay=3600)
            assert [each.owner for each in await team.schedules()] == ["ada"]
            assert await team.ask_peer("editor", "hello") == "ada asks hello"
            run = await team.inject_event("writer", {"type": "draft.wanted"})
            assert await run.result(20) == "ada"
        async with connect(login, name="ci") as team:
            assert team.context.get("status") == "busy"
        if secured:
            bus = await Bus.connect(login, principal="ci")
            for subject in ("events.draft.done", "$KV.context.status", "inbox.editor.x", "messages.news"):
                with pytest.raises(RefusedError):
                    await bus.store(subject, b"1")
            await bus.close()


REFUSED = r"'ci' may not look after the team: that is for 'operator', 'ada'\..* \(team.toml:\d+: \[users.ci\]\)"


@pytest.mark.parametrize("options", [pytest.param((), marks=pytest.mark.full), ("--single-process",)], ids=str)
def test_who_is_an_operator_by_name_looks_after_the_team_with_her_own_key(
    folder: Path, cli: Cli, quick: Quick, options: tuple[str, ...]
) -> None:
    cli.env["NATTERJACK_AS"] = "ada"
    quick.folder, quick.env = folder, cli.env
    with running(cli, *options, secured=True, lacking="operator.nk"):
        assert quick.json("provision")["created"] == []
        assert "EVENTS" in quick.text("storage")
        assert quick.json("doctor")["ok"]
        (folder / "team.toml").write_text(TEAM.replace('["status"]', '["status", "mood"]'))
        quick.text("provision")
        first, second = quick.text("audit", "show", "ada", "--area", "authority").splitlines()
        assert "ci read status" in first
        assert '"allowed":["ci read mood"]' in second
        assert re.search(REFUSED, quick.error("--as", "ci", "provision", code=1))


def test_who_is_no_operator_looks_after_no_team(folder: Path, quick: Quick, own_server: NatsServer) -> None:
    quick.folder, quick.env = folder, {"NATS_URL": own_server.url}
    assert re.search(REFUSED, quick.error("--as", "ci", "provision", code=1))  # of a team that is not there yet
    quick.text("provision")
    for command in ("provision", "storage"):
        assert re.search(REFUSED, quick.error("--as", "ci", command, code=1))
    assert re.search(REFUSED, quick.run("--as", "ci", "up", code=1).stderr)
    quick.env["NATTERJACK_AS"] = "writer"
    assert "'writer' may not look after the team" in quick.json("doctor", code=1)["checks"][-1]["detail"]
    quick.env["NATTERJACK_AS"] = "ada"
    assert quick.json("provision")["created"] == []
    assert '"wanted":"operate","what":"newsroom"' in quick.text("audit", "show", "ci")


LOOKS = (
    "agents",
    "audit show",
    "audit verify",
    "dead drop --all",
    "dead list",
    "journal tail",
    "runs cancel 1234",
    "runs list",
)


def test_who_is_no_operator_is_told_so_where_the_broker_shows_it_nothing(folder: Path, cli: Cli, quick: Quick) -> None:
    quick.folder, quick.env = folder, cli.env
    with running(cli, secured=True):
        for command in LOOKS:
            assert re.search(REFUSED, quick.error("--as", "ci", *command.split(), code=1)), command
        assert quick.json("--as", "ada", "dead", "list") == []


def test_a_user_calls_the_tools_that_its_roles_name() -> None:
    agents = {"writer": {"kind": "newsdesk:Writer"}}
    tools = {"desk": {"roles": {"search": ["writer", "reader"], "erase": ["writer"]}}}
    users = {"ci": {"tools": ["desk"], "roles": ["reader"]}}
    team = Team.model_validate({"agents": agents, "tools": tools, "users": users})
    assert team.calls("ci") == [Right("call", "desk/search")]
    assert team.roles_of("ci") == {"reader"}
