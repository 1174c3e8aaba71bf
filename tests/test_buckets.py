"""Buckets: confidential areas beside the shared context, in a program, in a team file, and behind a broker's rights."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from natterjack import Agent, AgentContext, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext, connect
from natterjack.bus import Bus
from natterjack.errors import ConfigError, InvalidNameError, NotProvisionedError, PatternError, RefusedError
from natterjack.guards import Guards
from natterjack.host import AgentHost
from natterjack.needs import agent_permissions
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.rights import Right, permissions
from natterjack.runtime import start_agent
from natterjack.server import Server
from natterjack.subjects import check_keys, matches
from natterjack.team import Team, check_team
from natterjack.team.file import read_team
from natterjack.testing import NatsServer, until
from natterjack.testing.command import Cli

# Names and rules


def test_a_pattern_stays_in_its_bucket() -> None:
    assert matches("finance/budget.*", "finance/budget.q1")
    assert matches("finance/>", "finance/a.b")
    for pattern, key in [(">", "finance/a"), ("finance/>", "a"), ("finance/>", "legal/a"), ("*", "finance/a")]:
        assert not matches(pattern, key)


@pytest.mark.parametrize("pattern", ["Finance/x", "/x", "a/b/c", "finance/", "finance/a..b", "core/x", 3])
def test_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises((InvalidNameError, PatternError)):
        check_keys(pattern)
    assert check_keys("finance/budget.*") == "finance/budget.*"


def test_rights_name_the_buckets_own_subjects() -> None:
    granted = permissions("cfo", [Right("write", "finance/budget"), Right("read", "finance/*")])
    assert {subject for subject in granted.publish if "finance" in subject} == {
        "$KV.context_finance.budget",
        "$JS.API.STREAM.INFO.KV_context_finance",
        "$JS.API.DIRECT.GET.KV_context_finance.$KV.context_finance.*",
    }
    assert granted.subscribe == ("_INBOX.cfo.>", "feed.context_finance.*")


TABLES = """\
[team]
name = "firm"
external = ["work"]

[context]
motto = "count"

[buckets.finance]
budget = 100

[buckets.legal]

[agents.cfo]
kind = "firm_agents:Worker"
on = ["work"]
writes = ["report", "finance/budget"]
reads = [">", "finance/>"]

[agents.auditor]
kind = "firm_agents:Worker"
reads = ["finance/budget"]
writes = []

[agents.clerk]
kind = "firm_agents:Worker"
writes = ["finance/receipts.*"]

[agents.guest]
kind = "firm_agents:Worker"
"""

SOURCE = '''
"""Agents that do in a bucket what they are asked to."""
from natterjack import Agent, RefusedError

class Worker(Agent):
    async def handle(self, event, ctx):
        ctx.bucket("finance").set("budget", event.data["budget"])

    async def answer(self, question, ctx):
        verb, key, *value = question.split()
        try:
            finance = ctx.bucket("finance")
            if verb == "get":
                return str(finance.get(key))
            await finance.set(key, value[0])
            return "done"
        except RefusedError as error:
            return f"refused: {error}"
'''


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Team:
    (tmp_path / "team.toml").write_text(TABLES)
    (tmp_path / "firm_agents.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return read_team(Path("team.toml"))


def test_a_team_file_has_buckets(team: Team) -> None:
    check_team(team, Plugins.load())
    assert team.buckets == {"finance": {"budget": 100}, "legal": {}}
    guards = Guards.load(team.rules(), team.governed())
    for principal, key in [("cfo", "finance/budget"), ("clerk", "finance/receipts.1"), ("operator", "legal/x")]:
        guards.check(principal, "write", key)
    for principal, key in [("cfo", "finance/x"), ("cfo", "budget"), ("guest", "finance/budget"), ("guest", "x")]:
        with pytest.raises(RefusedError, match=f"'{principal}' may not write '{key}'"):
            guards.check(principal, "write", key)


def test_who_declares_no_writes_may_write_the_main_context_as_ever() -> None:
    team = Team.model_validate({"buckets": {"finance": {}}, "agents": {"a": {"kind": "m:C"}}})
    guards = Guards.load(team.rules(), team.governed())
    guards.check("a", "write", "anything.at.all")
    with pytest.raises(RefusedError, match="'a' may not write 'finance/x'"):
        guards.check("a", "write", "finance/x")


def test_a_bucket_that_the_team_does_not_have_is_told(tmp_path: Path) -> None:
    path = tmp_path / "team.toml"
    path.write_text("[buckets.finance]\n[agents.a]\nkind = 'm:C'\nwrites = ['finanze/x']\nreads = ['x', 'y/z']\n")
    with pytest.raises(ConfigError) as caught:
        check_team(read_team(path), Plugins.load())
    assert [line.partition("team.toml")[2] for line in str(caught.value).splitlines()] == [
        ":4: [agents.a] 'finanze/x' is in no bucket of the team. Did you mean 'finance'?",
        ":5: [agents.a] 'y/z' is in no bucket of the team. A table [buckets.y] makes one.",
    ]


# In a program


class Clerk(Agent):
    """Books what it hears of, and says what it may not."""

    async def handle(self, event: Event, ctx: RunContext) -> None:
        finance = ctx.bucket("finance")
        finance.set("spent", event.data)
        async with finance.transaction() as tx:
            tx.set("budget", tx.get("budget") - event.data)

    async def answer(self, question: str, ctx: RunContext) -> str:
        try:
            return str(ctx.bucket(question).keys())
        except (RefusedError, ConfigError) as error:
            return f"{type(error).__name__}: {error}"


async def test_a_program_has_buckets(own_server: NatsServer) -> None:
    finance = AgentContext(
        {"budget": 100, "salaries": {"boss": 1}},
        write_permissions={"cfo": ["budget", "spent"]},
        read_permissions={"cfo": ["budget", "spent"], "auditor": [">"]},
    )
    runtime = AgentRuntime(own_server.url, context=AgentContext({"motto": "count"}), buckets={"finance": finance})
    for name in ("cfo", "auditor", "guest"):
        on = [EventTrigger("spend")] if name == "cfo" else []
        runtime.add_process(AgentProcess(name=name, agent=Clerk(), triggers=on))
    async with runtime:
        await runtime.event_bus.emit("spend", 40)
        await until(lambda: finance.get("budget") == 60)
        assert finance.get("spent") == 40
        assert [past.writer for past in await finance.history("budget")] == ["operator", "cfo"]
        assert await runtime.ask_peer("cfo", "finance") == "['budget', 'spent']"
        assert await runtime.ask_peer("auditor", "finance") == "['budget', 'salaries', 'spent']"
        assert "RefusedError: 'guest' may use nothing in the bucket 'finance'" in await runtime.ask_peer(
            "guest", "finance"
        )
        assert "has no bucket 'finanz'. Did you mean 'finance'?" in await runtime.ask_peer("guest", "finanz")
        assert runtime.context.keys() == ["motto"]
        with pytest.raises(RefusedError, match="'cfo' may not write 'finance/salaries'"):
            finance.set("salaries", {}, writer="cfo")
        async with connect(own_server.url) as client:
            assert (await client.bucket("finance")).get("budget") == 60
            assert await client.bucket("finance") is await client.bucket("finance")
            assert client.context.keys() == ["motto"]
            with pytest.raises(NotProvisionedError, match="KV_context_legal does not exist"):
                await client.bucket("legal")


# Behind a broker's rights


@pytest.fixture
async def firm(team: Team) -> AsyncIterator[tuple[NatsServer, AsyncExitStack]]:
    users = ["{ user: operator, password: p }"]
    for name, granted in agent_permissions(team, Plugins.load()).items():
        allowed = {
            "publish": {"allow": list(granted.publish)},
            "subscribe": {"allow": [*granted.subscribe, *granted.serve]},
        }
        users.append(f"{{ user: {name}, password: p, permissions: {json.dumps(allowed)} }}")
    with NatsServer(f"authorization {{ users = [ {', '.join(users)} ] }}\n") as server:
        async with AsyncExitStack() as stack:
            bus = await Bus.connect(login(server, "operator"), principal="operator")
            stack.push_async_callback(bus.close)
            await provision(bus, team, Plugins.load())
            yield server, stack


def login(server: NatsServer, name: str) -> Server:
    return Server(server.url, user=name, password="p")


async def start(server: NatsServer, stack: AsyncExitStack, name: str) -> AgentHost:
    host, context = await start_agent(name, login(server, name))
    stack.push_async_callback(context.close)
    stack.push_async_callback(host.stop, 5.0)
    return host


async def test_each_process_has_what_its_agent_may_read(firm: tuple[NatsServer, AsyncExitStack]) -> None:
    server, stack = firm
    async with stack:
        hosts = {name: await start(server, stack, name) for name in ("cfo", "auditor", "clerk", "guest")}
        client = await stack.enter_async_context(connect(login(server, "operator")))
        finance = await client.bucket("finance")
        await client.event_bus.emit("work", {"budget": 70})
        await until(lambda: finance.get("budget") == 70)

        async def asked(name: str, what: str) -> str:
            return str(await client.ask_peer(name, what, timeout=10))

        assert await asked("cfo", "get budget") == "70"
        await until(lambda: hosts["auditor"]._facilities.buckets["finance"].get("budget") == 70)
        assert await asked("auditor", "get budget") == "70"
        assert await asked("auditor", "get receipts.1") == (
            "refused: 'auditor' may not read 'finance/receipts.1': here its `reads` name 'budget'"
        )
        assert "'auditor' may not write 'finance/budget'" in await asked("auditor", "set budget 1")
        assert await asked("clerk", "set receipts.1 9") == "done"
        assert "'clerk' may not read 'finance/receipts.1'" in await asked("clerk", "get receipts.1")
        assert "'guest' may use nothing in the bucket 'finance'" in await asked("guest", "get budget")
        await until(lambda: finance.get("receipts.1") == "9")
        held = {name: set(host._facilities.buckets["finance"].keys()) for name, host in hosts.items()}
        assert held == {"cfo": {"budget", "receipts.1"}, "auditor": {"budget"}, "clerk": {"receipts.1"}, "guest": set()}
        main = {name: host._facilities.context.get("motto") for name, host in hosts.items()}
        assert main == {"cfo": "count", "auditor": None, "clerk": "count", "guest": "count"}
    assert [line for line in server.log().splitlines() if "violation" in line.lower()] == []


@pytest.mark.parametrize("name", ["auditor", "clerk", "guest"])
async def test_the_broker_keeps_a_bucket_from_others(firm: tuple[NatsServer, AsyncExitStack], name: str) -> None:
    server, stack = firm
    async with stack:
        bus = await Bus.connect(login(server, name), principal=name)
        stack.push_async_callback(bus.close)
        for subject in (
            "$JS.API.STREAM.INFO.KV_context_finance",
            "$JS.API.DIRECT.GET.KV_context_finance",
            "$JS.API.DIRECT.GET.KV_context_finance.$KV.context_finance.salaries",
            "$JS.API.DIRECT.GET.KV_context_legal",
            "$KV.context_finance.budget",
            "$KV.context_legal.x",
            *(["$KV.context.anything"] if name != "cfo" else []),
        ):
            with pytest.raises(RefusedError):
                await bus.request(subject, b"{}", timeout=5)
        for subject in ("feed.context_finance.>", "feed.context_finance.salaries", "feed.>"):
            with pytest.raises(RefusedError):
                await bus.subscribe(subject, _ignore)


async def _ignore(message: object) -> None:
    """Nothing is ever heard."""


# On the command line


def test_the_command_line_reads_and_writes_a_bucket(team: Team, own_server: NatsServer, quick: Cli) -> None:
    at = ("--server", own_server.url)
    (quick.folder / "team.toml").write_text(TABLES)
    quick.run("provision", "team.toml", *at)
    assert quick.run("context", "get", "budget", "--bucket", "finance", *at).stdout == "100\n"
    quick.run("context", "set", "receipts.1", "9", "--bucket", "finance", *at)
    listed = quick.run("context", "list", "receipts.*", "--bucket", "finance", "--json", *at).stdout
    assert json.loads(listed) == {"receipts.1": 9}
    assert json.loads(quick.run("context", "list", "--json", *at).stdout) == {"motto": "count"}
    unknown = quick.run("context", "list", "--bucket", "x", *at, code=4)
    assert "team 'firm' has no bucket 'x'" in unknown.stderr
