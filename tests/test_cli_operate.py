"""`provision`, `broker`, `agent run`, `doctor` and `plugins`: what an operator does."""

import os
import signal
import stat
from pathlib import Path

import pytest

from natterjack.testing import NatsServer
from natterjack.testing.command import Cli

WAIT = ("--wait", "--timeout", "20")

SLOW = """
import asyncio
from natterjack import Agent


class Slow(Agent):
    async def answer(self, question, ctx):
        print("working", flush=True)
        await asyncio.sleep(float(question))
        return "done"
"""


@pytest.fixture
def served(garden: Cli, own_server: NatsServer) -> Cli:
    """A team that does not run, and a server that knows nothing of it."""
    garden.env["NATS_URL"] = own_server.url
    return garden


def test_provision_tells_what_it_did(served: Cli) -> None:
    first = served.json("provision")
    assert "stream EVENTS" in first["created"]
    assert "consumer greeter=inbox on INBOX" in first["created"]
    again = served.json("provision", "team.toml")
    assert (again["created"], again["kept"]) == ([], first["created"])
    assert "kept  stream EVENTS" in served.text("provision").splitlines()


def test_provision_prunes_only_when_told(served: Cli) -> None:
    served.run("provision")
    team = served.folder / "team.toml"
    team.write_text(team.read_text().partition("[agents.clumsy]")[0])
    done = served.run("provision")
    assert "3 consumers and streams are gone from the team; --prune removes them, with all they hold" in done.stderr
    assert len(served.json("provision", "--prune")["removed"]) == 3
    assert served.json("provision")["left"] == []


def test_provision_needs_a_broker(garden: Cli) -> None:
    assert "no broker is named" in garden.error("provision", code=3)


def test_agent_runs_from_an_empty_folder_until_told(served: Cli, tmp_path_factory: pytest.TempPathFactory) -> None:
    served.run("provision")
    elsewhere = Cli(tmp_path_factory.mktemp("empty"))
    path = [str(served.folder), elsewhere.environment.get("PYTHONPATH", "")]
    elsewhere.env["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    with elsewhere.start("agent", "run", "greeter", "--server", served.env["NATS_URL"]) as agent:
        agent.wait_line("^agent greeter ready$")
        assert served.text("emit", "a.b", '{"name": "Ada"}', "--to", "greeter", *WAIT) == "Hello, Ada!"
        assert agent.end(signal.SIGTERM) == 0
    assert "Traceback" not in agent.output
    assert [agent["running"] for agent in served.json("agents")] == [False, False]


def test_agent_that_nobody_knows(served: Cli) -> None:
    served.run("provision")
    error = served.error("agent", "run", "greter", code=4)
    assert "team 'garden' has no agent 'greter'. Did you mean 'greeter'? It has: greeter, clumsy." in error


def test_agent_drains_and_a_second_signal_ends_it(served: Cli) -> None:
    served.write(agents_py=SLOW, team_toml='[agents.slow]\nkind = "agents:Slow"\n')
    served.run("provision")
    with served.start("agent", "run", "slow") as agent:
        agent.wait_line("^agent slow ready$")
        with served.start("ask", "slow", "0.3") as ask:
            agent.wait_line("^working$")
            assert agent.end() == 0  # what runs is finished
            assert ask.wait() == 0
            assert ask.lines[-1] == "done"
    with served.start("agent", "run", "slow") as agent:
        agent.wait_line("^agent slow ready$")
        with served.start("ask", "slow", "60"):
            agent.wait_line("^working$")
            agent.send(signal.SIGINT)
            assert agent.end(signal.SIGTERM) == 130


def test_agent_ends_with_its_parent(served: Cli) -> None:
    served.run("provision")
    served.env["NATTERJACK_PARENT_PIPE"] = "1"  # and standard input is at its end already
    with served.start("agent", "run", "greeter") as agent:
        assert agent.wait() == 0


# Broker


def test_broker_runs_until_told(quick: Cli) -> None:
    with quick.start("broker", "run", "--listen", "127.0.0.1:-1") as broker:
        url = broker.wait_line(r"^broker (nats://127\.0\.0\.1:\d+) \(store .natterjack\)")[1]
        assert quick.text("broker", "env") == f"export NATS_URL={url}"
        assert quick.json("broker", "env") == {"NATS_URL": url}
        assert quick.json("agents") == []  # found, though nobody named it
        assert "runs on '.natterjack' already" in quick.error("broker", "run", code=1)
        assert broker.end() == 0
    assert "Traceback" not in broker.output
    assert "no broker runs on '.natterjack'" in quick.error("broker", "env", code=3)


def test_broker_with_a_token(quick: Cli) -> None:
    with quick.start("broker", "run", "--listen", ":-1", "--token", "s3cret", "--store", "data") as broker:
        broker.wait_line(r"^broker nats://\*\*\*@127\.0\.0\.1:")
        broker.wait_line(r'^other terminals: eval "\$\(natterjack broker env --store data\)"$')
        url = quick.json("broker", "env", "--store", "data")["NATS_URL"]
        assert "//s3cret@" in url
        assert quick.json("agents", "--server", url) == []
        assert "refuses these credentials" in quick.error("agents", "--server", url.replace("s3cret@", ""), code=3)
        assert stat.S_IMODE(os.stat(quick.folder / "data").st_mode) == 0o700
        assert broker.end(signal.SIGTERM) == 0
    assert "s3cret" not in broker.output


def test_broker_off_loopback_needs_a_token(quick: Cli) -> None:
    assert "listening on '0.0.0.0' needs a token" in quick.error("broker", "run", "--listen", "0.0.0.0:-1", code=2)


# Doctor and plugins


def found(cli: Cli, check: str, *args: str) -> list[tuple[bool, str, str]]:
    told = cli.json("doctor", *args, code=1)
    assert not told["ok"]
    return [(each["ok"], each["detail"], each["fix"]) for each in told["checks"] if each["check"] == check]


def test_doctor_without_a_broker(quick: Cli) -> None:
    ((ok, detail, _),) = found(quick, "broker")
    assert not ok
    assert "natterjack broker run" in detail
    assert found(quick, "python")[0][0]
    assert found(quick, "nats-server")[0][0]


def test_doctor_follows_a_team_to_health(team: Cli, tmp_path: Path, own_server: NatsServer) -> None:
    well = team.text("doctor").splitlines()
    assert all(line.startswith("ok ") for line in well)
    team_file = tmp_path / "team.toml"
    team_file.write_text((team.folder / "team.toml").read_text().replace("max_attempts = 1", "max_attempts = 2"))
    assert "differs from what is provisioned" in found(team, "team", str(team_file))[0][1]
    ((_, detail, fix),) = found(team, "team", "--server", own_server.url)
    assert (detail, fix) == ("none is provisioned", "natterjack provision team.toml")


def test_doctor_names_what_is_missing(served: Cli) -> None:
    served.run("provision")
    assert found(served, "agents")[0][1:] == (
        "not running: greeter, clumsy",
        "natterjack up, or natterjack agent run greeter",
    )
    done = served.run("doctor", code=1)
    assert "problem  agents       not running: greeter, clumsy\n" in done.stdout
    assert "do: natterjack up" in done.stdout


def test_doctor_reads_the_team_file(quick: Cli) -> None:
    quick.write(team_toml='[agents.a]\nkind = "x:Y"\nonn = []\n')
    ((ok, detail, _),) = found(quick, "team file")
    assert not ok
    assert detail.startswith("team.toml:3: [agents.a] unknown key 'onn'")


def test_plugins_are_listed(quick: Cli) -> None:
    told = quick.json("plugins", "list")
    own = told["loaded"][0]
    assert (own["name"], own["distribution"]) == ("natterjack", "natterjack")
    assert "event" in own["brings"]["trigger"]
    assert told["broken"] == []
    assert quick.text("plugins", "list").splitlines()[1].startswith("natterjack ")


@pytest.mark.parametrize("command", ["up", "provision"])
def test_a_wrong_team_is_told_before_anything_starts(quick: Cli, command: str) -> None:
    quick.write(team_toml='[agents.a]\nkind = "agents:A"\nasks = ["b"]\n')
    assert "team.toml:3: [agents.a]" in quick.error(command, code=2)
    assert not (quick.folder / ".natterjack").exists()
