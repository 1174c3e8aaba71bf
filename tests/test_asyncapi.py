"""`natterjack asyncapi`: the document is valid by the official schema, complete, and gives no secret away."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from natterjack.cli.asyncapi import document
from natterjack.team.file import TeamFile
from natterjack.testing.command import Cli

NODE_MODULES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "natterjack" / "node" / "node_modules"
SCHEMA = NODE_MODULES / "@asyncapi" / "specs" / "schemas" / "3.0.0.json"
TEAM = """\
[team]
name = "newsroom"
external = ["research.start", "weather.>"]
server = "nats://user:secret@localhost:4222,tls://other:4223"

[agents.researcher]
kind = "llm"
on = ["research.start", "a.*.b.*", { message = "hints.*" }, { cron = "0 7 * * *" }]
emits = ["research.>"]
result_event = "research.complete"
asks = ["analyst", "translator"]
cross_agents = { translator = "nats://other:4222/translator" }
publishes = ["reports.daily"]

[agents.analyst]
kind = "agents:Analyst"
on = [
    "research.complete",
    { subject = "sensors.*.heat" },
    { context = "notes.*" },
    { context = "money/budget" },
    { context = { own = true, keys = "plans.*" } },
]

[buckets.money]
"""


@pytest.fixture
def made() -> dict[str, Any]:
    return document(TeamFile.model_validate(tomllib.loads(TEAM)).as_team())


def follow(made: Any, reference: str) -> Any:
    for name in reference.removeprefix("#/").split("/"):
        made = made[name]
    return made


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [each for item in value.values() for each in references(item)]
    return [each for item in value for each in references(item)] if isinstance(value, list) else []


@pytest.mark.skipif(not SCHEMA.exists(), reason=f"@asyncapi/specs is not installed in {NODE_MODULES}")
def test_the_official_schema_accepts_it(made: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_bytes())
    jsonschema.Draft7Validator(schema).validate(made)
    jsonschema.Draft7Validator(schema).validate(document(TeamFile(agents={"a": {"kind": "m:A"}}).as_team()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate(made | {"channels": {"x": {"address": 5}}})


def test_every_reference_leads_somewhere(made: dict[str, Any]) -> None:
    found = references(made)
    assert len(found) > 20
    assert all(follow(made, reference) for reference in found)


def test_who_sends_and_receives_what(made: dict[str, Any]) -> None:
    operations = {name: operation["action"] for name, operation in made["operations"].items()}
    assert operations == {
        "researcher.answers.agents.ask.researcher": "receive",
        "researcher.is-given.inbox.researcher.__": "receive",
        "researcher.waits-for.events.research.start": "receive",
        "researcher.waits-for.events.a._.b._": "receive",
        "researcher.emits.events.research.__": "send",
        "researcher.emits.events.research.complete": "send",
        "researcher.reads.messages.hints._": "receive",
        "researcher.publishes.messages.reports.daily": "send",
        "researcher.asks.agents.ask.analyst": "send",
        "analyst.answers.agents.ask.analyst": "receive",
        "analyst.is-given.inbox.analyst.__": "receive",
        "analyst.waits-for.events.research.complete": "receive",
        "analyst.hears.sensors._.heat": "receive",
        "analyst.follows.$KV.context.notes._": "receive",
        "analyst.follows.$KV.context_money.budget": "receive",
        "analyst.follows.$KV.context.plans._": "receive",
    }
    ask = made["operations"]["researcher.asks.agents.ask.analyst"]
    assert ask["reply"]["channel"] == {"$ref": "#/channels/reply"}
    assert made["operations"]["analyst.answers.agents.ask.analyst"]["bindings"]["nats"]["queue"] == "agents"


def test_wildcards_are_parameters(made: dict[str, Any]) -> None:
    channel = made["channels"]["events.a._.b._"]
    assert channel["address"] == "events.a.{part1}.b.{part2}"
    assert channel["parameters"].keys() == {"part1", "part2"}
    assert made["channels"]["events.weather.__"]["address"] == "events.weather.{rest}"


def test_servers_without_their_credentials(made: dict[str, Any]) -> None:
    assert [server["host"] for server in made["servers"].values()] == ["localhost:4222", "other:4223"]
    assert "secret" not in json.dumps(made)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "team.toml").write_text(TEAM)
    assert json.loads(Cli(tmp_path).text("asyncapi"))["info"]["title"] == "Team newsroom"
