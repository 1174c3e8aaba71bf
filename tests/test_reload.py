"""`up --reload`: new code takes over before the old one goes, and what is wrong changes nothing."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from natterjack.cli.exits import CommandError
from natterjack.cli.reload import _check_syntax, _sources, check_installed
from natterjack.cli.supervisor import Supervisor
from natterjack.errors import StartError
from natterjack.server import Server
from natterjack.team import AgentSpec, Team
from natterjack.testing import NatsServer, until
from natterjack.testing.command import Cli, Process

# Which files an agent consists of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in {
        "agents.py": "import words, os\nfrom package import part\ndef late():\n    import lazily\n",
        "words.py": "import agents\n",
        "lazily.py": "",
        "unused.py": "",
        "torn.py": "def (",
        "package/__init__.py": "",
        "package/part.py": "from . import other\nfrom .deep.inner import x\n",
        "package/other.py": "",
        "package/deep/__init__.py": "",
        "package/deep/inner.py": "from ..other import y\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_an_agent_is_what_its_module_imports(root: Path) -> None:
    names = {str(path.relative_to(root)) for path in _sources("agents", [root])}
    assert names == {
        "agents.py", "words.py", "lazily.py", "package/__init__.py", "package/part.py", "package/other.py",
        "package/deep/__init__.py", "package/deep/inner.py",
    }  # fmt: skip
    assert _sources("package.deep.inner", [root]) == {
        root / name
        for name in ("package/__init__.py", "package/deep/__init__.py", "package/deep/inner.py", "package/other.py")
    }
    assert _sources("torn", [root]) == {root / "torn.py"}
    assert _sources("json", [root]) == set()


def test_syntax_is_told_with_its_line(root: Path) -> None:
    _check_syntax(root / "agents.py")
    _check_syntax(root / "gone.py")
    with pytest.raises(CommandError, match=r"torn.py:1: SyntaxError: "):
        _check_syntax(root / "torn.py")
    (root / "torn.py").write_bytes(b"\xff = 1")
    with pytest.raises(CommandError, match=r"torn.py.*Error: "):
        _check_syntax(root / "torn.py")


# New processes for old ones

STAY = """
import sys
print("agent", sys.argv[1], "ready", flush=True)
sys.stdin.read()
"""
CODE = "exec(open({path!r}).read())"


class Lines(list[str]):
    """What a supervisor shows."""

    def __call__(self, label: str, line: str) -> None:
        self.append(f"{label}: {line}")


def command(path: Path) -> Sequence[str]:
    """Run what a file says when the process starts."""
    return [sys.executable, "-I", "-S", "-c", CODE.format(path=str(path))]


def pids(supervisor: Supervisor) -> list[int]:
    return [child.process.pid for child in supervisor.children if child.process]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def supervisor_of(path: Path, shown: Lines, *, replicas: int = 1) -> Supervisor:
    path.write_text(STAY)
    team = Team(name="t", agents={"one": AgentSpec(kind="m:A", replicas=replicas)})
    return Supervisor(team, Server("nats://127.0.0.1:1"), shown, command=command(path))


async def test_new_processes_take_over_before_the_old_ones_go(tmp_path: Path) -> None:
    supervisor = supervisor_of(tmp_path / "code", Lines(), replicas=2)
    await supervisor.start()
    try:
        before = pids(supervisor)
        await supervisor.renew("one")
        after = pids(supervisor)
        assert [child.label for child in supervisor.children] == ["one/1", "one/2"]
        assert len({*before, *after}) == 4
        assert [alive(pid) for pid in before] == [False, False]
        assert all(child.ready.is_set() for child in supervisor.children)
    finally:
        await supervisor.stop()
    assert not any(alive(pid) for pid in after)


@pytest.mark.parametrize("code", ["import sys; sys.exit(2)", "import sys; sys.exit(1)", "raise ValueError('broken')"])
async def test_the_old_process_stays_where_the_new_one_does_not_come_up(tmp_path: Path, code: str) -> None:
    supervisor = supervisor_of(tmp_path / "code", Lines())
    await supervisor.start()
    waiting = asyncio.create_task(supervisor.wait())
    try:
        before = pids(supervisor)
        (tmp_path / "code").write_text(code)
        with pytest.raises(StartError, match=r"one (does not come up|cannot start)"):
            await supervisor.renew("one")
        assert pids(supervisor) == before
        assert alive(before[0])
        assert not waiting.done()
    finally:
        waiting.cancel()
        await supervisor.stop()


async def test_a_new_process_that_never_listens_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = supervisor_of(tmp_path / "code", Lines())
    await supervisor.start()
    try:
        monkeypatch.setattr("natterjack.cli.supervisor.START_TIMEOUT", 0.3)
        before = pids(supervisor)
        (tmp_path / "code").write_text("import sys; sys.stdin.read()")
        with pytest.raises(StartError, match="one is not ready after 0 s"):
            await supervisor.renew("one")
        assert pids(supervisor) == before
    finally:
        await supervisor.stop()


async def test_replicas_come_and_go(tmp_path: Path) -> None:
    supervisor = supervisor_of(tmp_path / "code", Lines())
    await supervisor.start()
    try:
        await supervisor.scale("one", 3)
        assert [child.label for child in supervisor.children] == ["one", "one/2", "one/3"]
        three = pids(supervisor)
        await supervisor.scale("one", 1)
        assert pids(supervisor) == three[:1]
        assert [alive(pid) for pid in three] == [True, False, False]
        await supervisor.scale("one", 0)
        assert supervisor.children == []
        await supervisor.scale("one", 1)
        assert [child.label for child in supervisor.children] == ["one"]
    finally:
        await supervisor.stop()


async def test_a_takeover_that_is_cut_off_leaves_no_process(tmp_path: Path) -> None:
    supervisor = supervisor_of(tmp_path / "code", Lines())
    await supervisor.start()
    try:
        (tmp_path / "code").write_text("import sys; sys.stdin.read()")
        renewing = asyncio.create_task(supervisor.renew("one"))
        await until(lambda: len(pids(supervisor)) == 2)
        started = pids(supervisor)
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        assert [alive(pid) for pid in started] == [True, False]
    finally:
        await supervisor.stop()
    assert not any(alive(pid) for pid in started)


# The whole, as a user sees it

TEAM = """\
[team]
name = "garden"
external = ["visitor"]

[agents.greeter]
kind = "agents:Greeter"
on = "visitor"

[agents.other]
kind = "others:Other"
"""
AGENTS = """\
from natterjack import Agent
from words import WORD

class Greeter(Agent):
    async def answer(self, question, ctx):
        return f"{WORD}, {question}!"
"""
OTHERS = """\
from natterjack import Agent

class Other(Agent):
    async def answer(self, question, ctx):
        return "other"
"""


def instances(cli: Cli) -> dict[str, str]:
    return {row["name"]: row["instance"] for row in cli.json("agents") if row["running"]}


@pytest.mark.timeout(180)  # a dozen processes, one after another
def test_a_team_is_changed_while_it_runs(quick: Cli) -> None:
    quick.write(team_toml=TEAM, agents_py=AGENTS, others_py=OTHERS, words_py="WORD = 'Hello'\n")
    with NatsServer() as server:
        quick.env["NATS_URL"] = server.url
        with quick.start("up", "--reload") as up:
            up.wait_line("^ready")
            first = instances(quick)
            check_code(quick, up)
            second = instances(quick)
            assert second["other"] == first["other"]  # not concerned
            assert second["greeter"] != first["greeter"]
            check_mistakes(quick, up)
            assert instances(quick) == second
            quick.write(agents_py=AGENTS)
            up.wait_line("greeter restarted in")
            check_team(quick, up)
            assert quick.text("ask", "greeter", "Ada") == "Hey, Ada!"
            assert up.end(signal.SIGINT) == 0, up.output
        assert instances(quick) == {}
    assert "Traceback" not in up.output


def check_code(cli: Cli, up: Process) -> None:
    assert cli.text("ask", "greeter", "Ada") == "Hello, Ada!"
    cli.write(words_py="WORD = 'Hey'\n")
    up.wait_line(r"^reload +words.py changed: greeter restarted in \d+\.\d s$")
    assert cli.text("ask", "greeter", "Ada") == "Hey, Ada!"


def check_mistakes(cli: Cli, up: Process) -> None:
    cli.write(agents_py=AGENTS + "def (\n")
    up.wait_line(r"^reload +agents.py:7: SyntaxError: .*; what runs goes on as it was$")
    cli.write(agents_py="import nothing_of_that_name\n" + AGENTS)
    up.wait_line("greeter goes on as it was")
    assert "nothing_of_that_name" in up.output
    cli.write(team_toml=TEAM + '\n[agents.third]\nkind = "others:Other"\nonn = "x"\n')
    up.wait_line(r"^reload +.*team.toml:14: .*.*; what runs goes on as it was$")


def check_team(cli: Cli, up: Process) -> None:
    cli.write(team_toml=TEAM + 'replicas = 2\n\n[agents.third]\nkind = "others:Other"\n')
    up.wait_line(r"^reload +team.toml changed: provisioned, other now 2 times, third started in ")
    assert cli.text("ask", "third", "?") == "other"
    cli.write(team_toml=TEAM.partition("\n[agents.other]")[0])
    up.wait_line(r"^reload +team.toml changed: provisioned, other removed, third removed in ")
    before = instances(cli)
    assert before.keys() == {"greeter"}
    cli.write(team_toml=TEAM.partition("\n[agents.other]")[0] + "\n[tools.search]\nkind = 'nothing'\n")
    up.wait_line(r"^reload +.*tool.*; what runs goes on as it was$")
    assert instances(cli) == before
    cli.write(team_toml=TEAM.partition("\n[agents.other]")[0].replace("garden", "yard"))
    up.wait_line("team.toml changed: provisioned, greeter restarted in ")  # the name is in what all agents tell


@pytest.mark.parametrize("arguments", [["team.toml", "--single-process"], ["module:runtime"]])
def test_it_needs_a_process_for_each_agent(quick: Cli, arguments: list[str]) -> None:
    assert "a process of its own" in quick.run("up", *arguments, "--reload", code=2).stderr


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(CommandError, match=r"pip install 'natterjack\[reload\]'"):
        check_installed()
