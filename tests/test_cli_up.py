"""`init` and `up`: from nothing to an answer, and teams that start and end."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from natterjack.broker import running_url
from natterjack.testing import NatsServer
from natterjack.testing.command import Cli

WAIT = ("--wait", "--timeout", "20")

RUNTIME = """\
from agents import Greeter
from natterjack import AgentProcess, AgentRuntime, EventTrigger

runtime = AgentRuntime(name="garden")
runtime.add_process(AgentProcess("greeter", agent=Greeter, triggers=[EventTrigger("visitor.arrived")]))
"""


def test_from_nothing_to_an_answer(cli: Cli, nats_command: str | None) -> None:
    wrote = cli.text("init", "hello")  # 1, after `pip install natterjack`
    assert "natterjack up" in wrote
    cli.folder /= "hello"  # 2: cd hello
    with cli.start("up") as up:  # 3
        broker = up.wait_line(r"^broker +(nats://127\.0\.0\.1:\d+) \(embedded")[1]
        example = up.wait_line(rf"^try +nats --server {broker} pub events\.visitor\.arrived '{{}}'").string
        up.wait_line("^ready +1 agent in ")
        assert "warning" not in up.output
        told = cli.run("emit", "visitor.arrived", '{"name": "Ada"}', "--to", "greeter", *WAIT)  # 4
        assert told.stdout == "Hello, Ada!\n"
        assert cli.text("ask", "greeter", "Who was here?") == "1 so far: Ada"  # 5
        if nats_command:
            with cli.start("events", "tail", "visitor.greeted", "--count", "1") as tail:
                tail.wait_line("watching")
                command = example.partition("nats ")[2]
                subprocess.run(f"{nats_command} {command}", shell=True, check=True, capture_output=True, timeout=40)
                assert tail.wait() == 0
            assert cli.text("ask", "greeter", "Who was here?") == "2 so far: Ada, stranger"
        checked = cli.json("doctor")
        assert checked["ok"]
        assert {"broker", "team", "agents"} <= {each["check"] for each in checked["checks"]}
        assert up.end() == 0
    assert up.lines[-1].startswith("stopped")
    assert "Traceback" not in up.output
    assert running_url(cli.folder / ".natterjack") is None


def test_the_test_that_init_writes_passes(cli: Cli) -> None:
    cli.run("init", ".")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=cli.folder, env=cli.environment, capture_output=True, text=True, timeout=55, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_init_overwrites_nothing(quick: Cli) -> None:
    (quick.folder / "agents.py").write_text("mine")
    assert "agents.py is there already" in quick.error("init", code=1)
    assert [path.name for path in quick.folder.iterdir()] == ["agents.py"]


def test_init_names_the_team_after_its_folder(quick: Cli) -> None:
    quick.run("init", "My Team!")
    assert 'name = "my-team"' in (quick.folder / "My Team!" / "team.toml").read_text()


def test_up_gives_each_agent_a_process_and_brings_it_back(garden: Cli, own_server: NatsServer) -> None:
    garden.env["NATS_URL"] = own_server.url
    with garden.start("up") as up:
        assert up.wait_line("^broker").string == f"broker   {own_server.url} (joined: it was named)"
        up.wait_line("^ready +2 agents in ")
        killed = garden.json("agents")[1]
        children = subprocess.run(
            ["pgrep", "-P", str(up.process.pid), "-f", "agent run greeter"],
            capture_output=True,
            text=True,
            check=True,
        )
        os.kill(int(children.stdout), signal.SIGKILL)
        up.wait_line(r"^greeter \| ended with signal SIGKILL; it starts again")
        up.wait_line(r"^greeter \| agent greeter ready")
        told = garden.json("agents")
        assert [info["name"] for info in told] == ["clumsy", "greeter"]
        assert told[1]["instance"] != killed["instance"]
        garden.run("emit", "visitor.failed")
        up.wait_line(r"^clumsy  \| .*ValueError: it fell down")
        assert up.end(signal.SIGTERM) == 0
    assert not any(info["running"] for info in garden.json("agents"))


def test_up_renews_its_processes_on_sighup(garden: Cli, own_server: NatsServer) -> None:
    garden.env["NATS_URL"] = own_server.url
    with garden.start("up") as up:
        up.wait_line("^ready +2 agents in ")
        before = {info["instance"] for info in garden.json("agents")}
        team = garden.folder / "team.toml"
        team.write_text(team.read_text() + '\n[agents.third]\nkind = "agents:Greeter"\n')
        up.send(signal.SIGHUP)
        up.wait_line("^reload +asked by SIGHUP: every agent is renewed, one replica after another")
        up.wait_line("^reload +done: provisioned, greeter restarted, clumsy restarted, third started in ")
        after = {info["instance"] for info in garden.json("agents")}
        assert len(after) == 3
        assert not before & after
        team.write_text("no team")
        up.send(signal.SIGHUP)
        up.wait_line("^reload .*; what runs goes on as it was$")
        assert {info["instance"] for info in garden.json("agents")} == after
        assert up.end() == 0


WAITING = """
import asyncio, os, sys
from natterjack.cli.run import renewing, stopping
from natterjack.coroutines import first_of
async def main():
    with stopping() as stop, renewing(stop) as renew:
        os.write(1, b"waiting")  # in one piece: the terminal is closed as soon as that is read
        await first_of(renew.wait(), stop.wait())
        open(sys.argv[1], "w").write("stop" if stop.is_set() else "renew")
asyncio.run(main())
"""


@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_terminal_ends_it_all_the_same(tmp_path: Path, closed: bool) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(tmp_path / "heard")],
        stdin=theirs,
        stdout=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - nothing else runs here
    )
    try:
        os.close(theirs)
        assert os.read(ours, 7) == b"waiting"
        if not closed:
            process.send_signal(signal.SIGHUP)
            process.wait(40)
        os.close(ours)
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "heard").read_text() == ("stop" if closed else "renew")


def test_up_twice_by_mistake_shares_the_work(garden: Cli, own_server: NatsServer) -> None:
    garden.env["NATS_URL"] = own_server.url
    with garden.start("up") as first:
        first.wait_line("^ready +2 agents in ")
        with garden.start("up") as second:
            second.wait_line(
                r"^warning +already running elsewhere: clumsy, greeter; the processes of both share the work"
            )
            second.wait_line("^ready +2 agents in ")
            assert len(garden.json("agents")) == 4
            told = garden.run("emit", "visitor.arrived", '{"name": "Ada"}', "--to", "greeter", *WAIT)
            assert told.stdout == "Hello, Ada!\n"
            first.send(signal.SIGKILL)
            first.wait()
            assert garden.text("ask", "greeter", "Here:") == "Here: Ada"
            assert second.end() == 0
    assert "warning" not in first.output


def test_second_up_joins_and_ends_with_the_owner(garden: Cli) -> None:
    with garden.start("up", "--single-process") as owner:
        owner.wait_line("^ready")
        with garden.start("up", "--single-process") as other:
            other.wait_line("^broker .*another process owns it")
            other.wait_line("^ready")
            assert {info["name"] for info in garden.json("agents")} == {"clumsy", "greeter"}
            assert owner.end() == 0
            assert other.wait() == 3
        assert re.search(r"^error: the broker's owner \(pid \d+\) has ended", other.output, re.MULTILINE)
        assert "Traceback" not in other.output


def test_up_of_a_runtime_in_python(garden: Cli, own_server: NatsServer) -> None:
    garden.write(program_py=RUNTIME)
    with garden.start("up", "program:runtime", "--server", own_server.url) as up:
        up.wait_line("^ready +1 agent in ")
        garden.env["NATS_URL"] = own_server.url
        assert garden.text("emit", "a.b", '{"name": "Ada"}', "--to", "greeter", *WAIT) == "Hello, Ada!"
        assert up.end() == 0
    assert "visitor.arrived" in up.output


def test_up_finds_agents_beside_the_team_file(garden: Cli, own_server: NatsServer) -> None:
    shutil.copytree(garden.folder, garden.folder / "inner")
    for name in ("team.toml", "agents.py"):
        (garden.folder / name).unlink()
    with garden.start("up", "inner/team.toml", "--server", own_server.url) as up:
        up.wait_line("^ready")
        assert up.end() == 0


@pytest.mark.parametrize("mode", [["--single-process"], []])
def test_up_tells_what_cannot_start(garden: Cli, own_server: NatsServer, mode: list[str]) -> None:
    garden.write(agents_py="import nothing_like_this")
    with garden.start("up", "--server", own_server.url, *mode) as up:
        up.wait_line("No module named 'nothing_like_this'")
        assert up.wait() == 1
    assert "starts again" not in up.output
    assert "Traceback" not in up.output


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["up"], 2, "team.toml does not exist. `natterjack init` makes one."),
        (["up", "nothing:here"], 2, "'nothing:here' cannot be imported"),
        (["up", "os:path"], 2, "'os:path' is module; name a team file, or an AgentRuntime"),
    ],
)
def test_up_of_what_is_no_team(quick: Cli, args: list[str], code: int, text: str) -> None:
    assert text in quick.error(*args, code=code)


def test_up_shows_warnings(garden: Cli, own_server: NatsServer) -> None:
    team = garden.folder / "team.toml"
    team.write_text(team.read_text().replace('"visitor.failed"]\n\n[context]', '"visitor.fails"]\n\n[context]'))
    with garden.start("up", "--single-process", "--server", own_server.url) as up:
        warning = up.wait_line("^warning").string
        assert "waits for 'visitor.failed', which nobody in the team emits. Did you mean 'visitor.fails'?" in warning
        up.wait_line("^ready")
        assert up.end() == 0
