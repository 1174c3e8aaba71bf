"""`context`, `journal`, `agents` and `dead`, against a team that runs."""

import json
import signal
from datetime import datetime
from typing import Any

import pytest

from natterjack.testing.command import Cli

WAIT = ("--wait", "--timeout", "20")


def test_context_is_written_read_and_deleted(team: Cli) -> None:
    written = team.json("context", "set", "notes.first", '{"done": [1, 2]}')
    assert written["key"] == "notes.first"
    assert team.json("context", "get", "notes.first") == {"done": [1, 2]}
    assert team.text("context", "get", "notes.first") == '{"done":[1,2]}'
    assert team.json("context", "list")["notes.first"] == {"done": [1, 2]}
    assert team.text("context", "delete", "notes.first") == f"notes.first has revision {written['revision'] + 1}"
    error = team.error("context", "get", "notes.first", code=4)
    assert "the context has no key 'notes.first'." in error


def test_context_value_may_be_text_or_a_number(team: Cli) -> None:
    team.run("context", "set", "plain", "so it is")
    assert team.text("context", "get", "plain") == "so it is"
    team.run("context", "set", "number", "--", "-5")
    assert team.json("context", "get", "number") == -5
    assert "Did you mean 'number'?" in team.error("context", "get", "numbr", code=4)


def test_context_write_can_expect_a_revision(team: Cli) -> None:
    team.run("context", "set", "raced", "1", "--expected", "0")
    assert "written by somebody else" in team.error("context", "set", "raced", "2", "--expected", "0", code=1)


def test_context_history_is_oldest_first(team: Cli) -> None:
    for value in ("1", "2"):
        team.run("context", "set", "counted", value)
    team.run("context", "delete", "counted")
    history = team.json("context", "history", "counted")
    assert [(entry["value"], entry["deleted"]) for entry in history] == [(1, False), (2, False), (None, True)]
    assert history[0].keys() == {"value", "writer", "revision", "time", "deleted"}
    table = team.text("context", "history", "counted").splitlines()
    assert table[0].split() == ["revision", "time", "writer", "value"]
    assert table[3].endswith("operator  (deleted)")
    assert "has no key" in team.error("context", "history", "never", code=4)


def test_context_says_which_buckets_there_are(team: Cli) -> None:
    assert "has no bucket 'finance'. It has: none." in team.error("context", "list", "--bucket", "finance", code=4)


def test_context_watch_tells_changes(team: Cli) -> None:
    with team.start("context", "watch", "watched.*", "--count", "1", "--json") as watch:
        watch.wait_line("watching keys")
        team.run("context", "set", "unwatched", "0")
        team.run("context", "set", "watched.here", '"seen"')
        assert watch.wait() == 0
    change = json.loads(watch.lines[-1])
    assert (change["key"], change["value"], change["writer"]) == ("watched.here", "seen", "operator")


def greet(team: Cli, name: str) -> Any:
    return team.json("emit", "any.type", json.dumps({"name": name}), "--to", "greeter", *WAIT)


def test_journal_tells_what_a_run_did(team: Cli) -> None:
    run = greet(team, "Ada")["run"]
    line = team.run("journal", "tail", "greeter", "--run", run, "--json").stdout
    entry = json.loads(line)
    assert (entry["agent"], entry["run"], entry["index"], entry["kind"]) == ("greeter", run, 1, "done")
    assert entry["data"]["result"] == "Hello, Ada!"
    assert datetime.fromisoformat(entry["time"]).tzinfo is not None
    assert f"greeter  {run}  1  done  " in team.text("journal", "tail")
    assert len(team.text("journal", "tail", "--lines", "1").splitlines()) == 1


def test_journal_is_followed(team: Cli) -> None:
    first = greet(team, "Bob")["run"]
    with team.start("journal", "tail", "greeter", "--follow", "--json") as tail:
        tail.wait_line("watching the journal")
        tail.wait_line(first)
        second = greet(team, "Eve")["run"]
        assert json.loads(tail.wait_line(second).string)["data"]["result"] == "Hello, Eve!"
        assert tail.end(signal.SIGINT) == 130
    assert "Traceback" not in tail.output


def test_journal_is_narrowed_by_kind_and_time(team: Cli) -> None:
    run = greet(team, "Ada")["run"]
    assert run in team.text("journal", "tail", "greeter", "--kind", "done", "--since", "1h")
    assert run not in team.text("journal", "tail", "greeter", "--kind", "dead")
    assert team.text("journal", "tail", "greeter", "--since", "2099-01-01") == ""
    for wrong in ("yesterday", "m", "99999999999d"):
        assert "is no time; write how long ago" in team.run("journal", "tail", "--since", wrong, code=2).stderr


def test_runs_are_listed_and_shown(team: Cli) -> None:
    run = greet(team, "Ada")["run"]
    told = team.json("journal", "show", "greeter")[-1]
    assert (told["run"], told["state"], told["entries"]) == (run, "done", 1)
    table = team.text("journal", "show", "greeter", "--lines", "1").splitlines()
    assert [line.split()[0] for line in table] == ["run", run]
    (entry,) = team.json("journal", "show", "greeter", run)
    assert (entry["kind"], entry["data"]["result"]) == ("done", "Hello, Ada!")
    assert '"result":"Hello, Ada!"' in team.text("journal", "show", "greeter", run)
    error = team.error("journal", "show", "greeter", "unknown", code=4)
    assert error == "the journal has no run 'unknown' of greeter; `natterjack journal show greeter` lists its runs"


def test_journal_of_nobody(team: Cli) -> None:
    assert "has no agent 'gretter'" in team.error("journal", "tail", "gretter", code=4)
    done = team.run("journal", "tail", "--run", "unknown")
    assert (done.stdout, done.stderr) == ("", "no journal entries\n")


def test_agents_are_listed(team: Cli) -> None:
    told = team.json("agents")
    assert [info["name"] for info in told] == ["clumsy", "greeter"]
    assert told[1]["description"] == "Greets visitors."
    assert [line.split()[0] for line in team.text("agents").splitlines()] == ["agent", "clumsy", "greeter"]


def die(team: Cli) -> int:
    """Let an event end dead, and return its letter's number."""
    team.run("emit", "visitor.failed", "{}", "--to", "clumsy", *WAIT, code=1)
    return int(team.json("dead", "list")[-1]["number"])


def test_dead_letters_are_listed_and_shown(team: Cli) -> None:
    number = die(team)
    letter = team.json("dead", "show", str(number))
    assert (letter["agent"], letter["type"], letter["data"]) == ("clumsy", "visitor.failed", {})
    assert letter["cause"] == "ValueError: it fell down"
    assert datetime.fromisoformat(letter["time"]).tzinfo is not None
    assert "ValueError: it fell down" in team.text("dead", "list", "--agent", "clumsy")
    assert "cause     ValueError: it fell down" in team.text("dead", "show", str(number))
    assert team.json("dead", "list", "--agent", "greeter") == []


def test_dead_letter_is_retried_and_dropped(team: Cli) -> None:
    team.run("dead", "drop", "--all")
    number = die(team)
    with team.start("journal", "tail", "clumsy", "--follow", "--lines", "0", "--json") as tail:
        tail.wait_line("watching the journal")
        assert team.json("dead", "retry", str(number)) == {"retried": [number]}
        tail.wait_line('"kind":"dead"')
    again = team.json("dead", "list")[0]["number"]
    assert again != number
    assert team.json("dead", "drop", str(again)) == {"dropped": [again]}
    assert team.json("dead", "list") == []
    assert team.run("dead", "list").stderr == "no dead letters\n"


@pytest.mark.parametrize("command", ["show", "retry", "drop"])
def test_unknown_dead_letter(team: Cli, command: str) -> None:
    assert "there is no dead letter 999" in team.error("dead", command, "999", code=4)


def test_dead_letters_must_be_named(team: Cli) -> None:
    assert "name dead letters by their numbers" in team.error("dead", "drop", code=2)
    assert "name dead letters by their numbers" in team.error("dead", "drop", "1", "--all", code=2)
