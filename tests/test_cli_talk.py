"""`emit`, `publish`, `ask`, `broadcast` and `events tail`, as processes against a team that runs."""

import json

import pytest

from natterjack.testing.command import Cli

WAIT = ("--wait", "--timeout", "20")


def test_event_wakes_its_agent_and_is_told(team: Cli) -> None:
    with team.start("events", "tail", "visitor.>", "--count", "2", "--json") as tail:
        tail.wait_line("watching events")
        told = team.json("emit", "visitor.arrived", '{"name": "Ada"}')
        assert told["type"] == "visitor.arrived"
        assert told["sequence"] > 0
        assert tail.wait() == 0
    arrived, greeted = (json.loads(line) for line in tail.lines[-2:])
    assert (arrived["type"], arrived["data"]) == ("visitor.arrived", {"name": "Ada"})
    assert (greeted["type"], greeted["source"]) == ("visitor.greeted", "greeter")
    assert arrived.keys() == {"id", "type", "data", "source", "time", "sequence"}


def test_event_nobody_waits_for_is_stored_and_noted(team: Cli) -> None:
    done = team.run("emit", "visitor.arived", "text that is no JSON")
    assert done.stdout.startswith("stored event visitor.arived (sequence ")
    assert "no agent of team 'garden' waits for 'visitor.arived'. Did you mean 'visitor.arrived'?" in done.stderr


def test_event_for_one_agent_gives_its_result(team: Cli) -> None:
    assert team.text("emit", "any.type", '{"name": "Bob"}', "--to", "greeter", *WAIT) == "Hello, Bob!"
    told = team.json("emit", "any.type", "-", "--to", "greeter", *WAIT, stdin='{"name": "Eve"}\n')
    assert told["result"] == "Hello, Eve!"
    assert told.keys() == {"agent", "type", "run", "sequence", "result"}


def test_event_for_one_agent_does_not_wait_unless_told(team: Cli) -> None:
    assert "stored for greeter: event any.type" in team.text("emit", "any.type", '{"name": "Kim"}', "--to", "greeter")


def test_failed_run_is_an_error(team: Cli) -> None:
    error = team.error("emit", "visitor.failed", "{}", "--to", "clumsy", *WAIT, code=1)
    assert "it fell down" in error
    assert "dead list" in error


def test_event_for_an_unknown_agent_is_refused(team: Cli) -> None:
    error = team.error("emit", "any.type", "--to", "greter", code=4)
    assert "team 'garden' has no agent 'greter'. Did you mean 'greeter'?" in error


def test_event_id_is_deduplicated(team: Cli) -> None:
    first = team.json("emit", "visitor.known", "1", "--id", "once")
    assert team.json("emit", "visitor.known", "1", "--id", "once") == first
    assert "already belongs to another event" in team.error("emit", "visitor.known", "2", "--id", "once", code=1)


def test_event_with_a_delay_happens_when_its_emitter_is_gone(team: Cli) -> None:
    with team.start("events", "tail", "visitor.late", "--count", "1", "--json") as tail:
        tail.wait_line("watching events")
        team.json("emit", "visitor.late", '{"name": "Lea"}', "--delay", "1")
        assert tail.wait() == 0
    assert json.loads(tail.lines[-1])["data"] == {"name": "Lea"}
    assert "held event visitor.late for 3600 s" in team.run("emit", "visitor.late", "--delay", "3600").stdout
    refused = team.run("emit", "visitor.late", "--delay", "1", "--to", "greeter", code=2)
    assert "without --to it can be delayed" in refused.stderr


def test_message_reaches_its_topic(team: Cli) -> None:
    with team.start("events", "tail", "reports.*", "--messages", "--count", "1") as tail:
        tail.wait_line("watching messages")
        assert "stored message reports.daily (sequence " in team.text("publish", "reports.daily", "all \x1b[31mwell")
        assert tail.wait() == 0
    assert r"reports.daily  operator  all \x1b[31mwell" in tail.lines[-1]


def test_ask_prints_the_answer(team: Cli) -> None:
    team.run("emit", "any.type", '{"name": "Zoe"}', "--to", "greeter", *WAIT)
    assert team.text("ask", "greeter", "Who?").startswith("Who? ")
    told = team.json("ask", "greeter", "-", stdin="Who came?\n")
    assert told["agent"] == "greeter"
    assert told["answer"].startswith("Who came? ")
    assert "Zoe" in told["answer"]


def test_ask_that_fails_tells_why(team: Cli) -> None:
    error = team.error("ask", "clumsy", "What?", code=1)
    assert "clumsy: it failed with ValueError" in error
    assert "secret" not in error
    assert "Did you mean 'greeter'?" in team.error("ask", "greeterr", "What?", code=4)


def test_broadcast_shows_answers_and_failures(team: Cli) -> None:
    done = team.run("broadcast", "Who?", "--to", "greeter", "--to", "clumsy")
    assert "greeter" in done.stdout
    assert "no answer from clumsy: it failed" in done.stderr
    told = team.json("broadcast", "Who?", "--to", "greeter, nobody")
    assert told["answers"].keys() == {"greeter"}
    assert told["failures"]["nobody"]["code"] == 503


def test_broadcast_that_nobody_answers_fails(team: Cli) -> None:
    done = team.run("broadcast", "Who?", "--to", "nobody", code=1)
    assert done.stdout == ""
    assert "no answer from nobody" in done.stderr


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["emit", "bad type"], "'bad type' is no valid event type"),
        (["emit", "a", "[" * 70], "nests deeper than 64"),
        (["publish", "a..b"], "'a..b' is no valid topic"),
        (["ask", "Greeter", "x"], "'Greeter' is no valid agent name"),
        (["events", "tail", "a.>.b"], "'>' may only stand last"),
        (["context", "set", "a b", "1"], "'a b' is no valid context key"),
    ],
)
def test_malformed_names_are_usage_errors(team: Cli, args: list[str], text: str) -> None:
    assert text in team.error(*args, code=2)
