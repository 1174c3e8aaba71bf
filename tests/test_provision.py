"""Provisioning: what it creates, keeps, updates, lists and removes, and what it must not touch."""

from pathlib import Path
from typing import Any

import pytest

from natterjack import (
    AgentContext,
    ConfigError,
    EventTrigger,
    NotProvisionedError,
    Right,
    Server,
    UnknownAgentError,
    connect,
)
from natterjack.bus import Bus
from natterjack.needs import agent_needs
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.record import stored_team
from natterjack.stores import STREAMS
from natterjack.team import Team
from natterjack.team.file import read_team
from natterjack.testing import NatsServer, until


def team(context: dict[str, Any] | None = None, **agents: Any) -> Team:
    specs = {name: {"kind": "natterjack.components:Agent", **spec} for name, spec in agents.items()}
    return Team.model_validate({"agents": specs, "context": context or {}})


PLUGINS = Plugins.load()


async def consumers(bus: Bus, stream: str) -> dict[str, str]:
    """Deliver policy by name."""
    found = (await bus.api(f"CONSUMER.LIST.{stream}", {"offset": 0}))["consumers"]
    return {consumer["name"]: consumer["config"]["deliver_policy"] for consumer in found}


async def test_first_provisioning_creates_all(bus: Bus) -> None:
    wanted = team({"n": 1}, a={"on": ["x.*", {"message": "reports.>"}]}, b={})
    done = await provision(bus, wanted, PLUGINS)
    assert [name for name in done.created if name.startswith("stream")] == [f"stream {name}" for name in STREAMS]
    assert (done.kept, done.updated, done.removed, done.left) == ([], [], [], [])
    assert await consumers(bus, "EVENTS") == {"a=event-x+@": "all"}
    assert await consumers(bus, "MESSAGES") == {"a=message-reports+@@": "all"}
    assert await consumers(bus, "INBOX") == {"a=inbox": "all", "b=inbox": "all"}
    assert await stored_team(bus) == wanted.model_copy(update={"context": {}})


async def test_repeated_provisioning_changes_nothing(bus: Bus) -> None:
    wanted = team({"n": 1, "deep": {"a": [1, None]}}, a={"on": ["x", {"message": "y"}], "writes": ["n"]}, b={})
    first = await provision(bus, wanted, PLUGINS)
    before = [await bus.api(f"STREAM.INFO.{name}") for name in STREAMS]
    again = await provision(bus, wanted, PLUGINS)
    after = [await bus.api(f"STREAM.INFO.{name}") for name in STREAMS]
    assert (again.created, again.updated, again.removed, again.left) == ([], [], [], [])
    assert sorted(again.kept) == sorted(first.created)
    assert [info["config"] for info in after] == [info["config"] for info in before]
    assert [info["state"]["last_seq"] for info in after] == [info["state"]["last_seq"] for info in before]


@pytest.mark.open_mode(reason="secured streams take what is attested")
async def test_server_keeps_every_setting_as_it_is_written(bus: Bus) -> None:
    await provision(bus, team(a={}), PLUGINS)
    for name, wanted in STREAMS.items():
        config = (await bus.api(f"STREAM.INFO.{name}"))["config"]
        assert {key: config.get(key) for key in wanted} == wanted, name
        assert config.get("allow_rollup_hdrs", False) == config.get("allow_msg_schedules", False), name


async def test_first_trigger_gets_what_there_is_and_a_later_one_what_comes(bus: Bus) -> None:
    await provision(bus, team(a={"on": ["x"]}), PLUGINS)
    await bus.store("events.y", b"1")
    await provision(bus, team(a={"on": ["x", "y"]}), PLUGINS)
    assert await consumers(bus, "EVENTS") == {"a=event-x": "all", "a=event-y": "new"}
    await bus.store("events.y", b"2")

    async def waiting() -> bool:  # the server counts a moment after it has stored
        return bool((await bus.api("CONSUMER.INFO.EVENTS.a=event-y"))["num_pending"])

    await until(waiting)
    assert (await bus.api("CONSUMER.INFO.EVENTS.a=event-y"))["num_pending"] == 1


async def test_removed_agent_is_listed_and_pruned_on_request(bus: Bus) -> None:
    await provision(bus, team(a={"on": ["x"]}, b={"on": ["x", {"message": "m"}]}), PLUGINS)
    stream = {"stream_name": "EVENTS", "config": {"durable_name": "somebody", "ack_policy": "explicit"}}
    await bus.api("CONSUMER.DURABLE.CREATE.EVENTS.somebody", stream)
    rest = team(a={"on": ["x"]})
    gone = ["event-x on EVENTS", "message-m on MESSAGES", "inbox on INBOX", "wake on WAKES"]
    gone = [f"consumer b={each}" for each in gone]
    done = await provision(bus, rest, PLUGINS)
    assert (sorted(done.left), done.removed) == (sorted(gone), [])
    assert "b=event-x" in await consumers(bus, "EVENTS")
    done = await provision(bus, rest, PLUGINS, prune=True)
    assert (done.left, sorted(done.removed)) == ([], sorted(gone))
    assert set(await consumers(bus, "EVENTS")) == {"a=event-x", "somebody"}  # a stranger's consumer is left alone
    done = await provision(bus, rest, PLUGINS, prune=True)
    assert (done.left, done.removed, done.created) == ([], [], [])


async def test_all_of_many_consumers_are_seen(bus: Bus) -> None:
    """The server lists 1,024 at a time."""
    await provision(bus, team(a={}), PLUGINS)
    config = {"ack_policy": "explicit", "filter_subject": "stored.inbox.a.>"}
    for number in range(1100):
        name = f"gone{number}=inbox"
        config |= {"durable_name": name, "filter_subject": f"stored.inbox.gone{number}.>"}
        await bus.api(f"CONSUMER.DURABLE.CREATE.INBOX.{name}", {"stream_name": "INBOX", "config": config})
    done = await provision(bus, team(a={}), PLUGINS)
    assert len(done.left) == 1100
    async with connect(bus.server) as client:
        assert (await client.inject_event("a", {"type": "x"})).agent == "a"
        with pytest.raises(UnknownAgentError, match="has no agent 'gone1099'"):  # its durable is left, the agent is not
            await client.inject_event("gone1099", {"type": "x"})


async def test_changed_stream_is_updated(bus: Bus) -> None:
    await provision(bus, team(a={}), PLUGINS)
    config = (await bus.api("STREAM.INFO.EVENTS"))["config"]
    await bus.api("STREAM.UPDATE.EVENTS", {**config, "max_bytes": 1024**2, "description": "theirs"})
    done = await provision(bus, team(a={}), PLUGINS)
    assert (done.updated, done.created) == (["stream EVENTS"], [])
    config = (await bus.api("STREAM.INFO.EVENTS"))["config"]
    assert config["max_bytes"] == STREAMS["EVENTS"]["max_bytes"]
    assert config["description"] == "theirs"  # what we say nothing about stays


@pytest.mark.parametrize("retention", ["limits", "workqueue"])
@pytest.mark.parametrize("name", ["EVENTS", "INBOX", "KV_context"])
@pytest.mark.open_mode(reason="on subjects of which no right speaks")
async def test_strangers_stream_of_the_same_name_is_left_alone(bus: Bus, name: str, retention: str) -> None:
    theirs = {"name": name, "subjects": ["orders.>"], "retention": retention}
    await bus.api(f"STREAM.CREATE.{name}", theirs)
    await bus.store("orders.1", b"theirs")
    with pytest.raises(ConfigError, match=rf"already has a stream '{name}', for orders\.>"):
        await provision(bus, team(a={}), PLUGINS)
    info = await bus.api(f"STREAM.INFO.{name}")
    assert (info["config"]["subjects"], info["state"]["messages"]) == (["orders.>"], 1)


async def test_stream_that_cannot_become_ours(bus: Bus) -> None:
    await bus.api("STREAM.CREATE.EVENTS", {"name": "EVENTS", "subjects": ["events.>"], "storage": "memory"})
    with pytest.raises(ConfigError, match="a stream 'EVENTS' that cannot become ours"):
        await provision(bus, team(a={}), PLUGINS)


@pytest.mark.open_mode(reason="secured streams take what is attested")
async def test_subjects_that_a_strangers_stream_takes(bus: Bus) -> None:
    await bus.api("STREAM.CREATE.ALL", {"name": "ALL", "subjects": ["events.*"]})
    with pytest.raises(ConfigError, match=r"cannot have a stream 'EVENTS' for events\.>: .*overlap"):
        await provision(bus, team(a={}), PLUGINS)


async def test_consumer_of_another_meaning(bus: Bus) -> None:
    await provision(bus, team(a={}), PLUGINS)
    config = {"durable_name": "a=event-x", "ack_policy": "explicit", "filter_subject": "stored.events.*.other"}
    body = {"stream_name": "EVENTS", "config": config}
    await bus.api("CONSUMER.DURABLE.CREATE.EVENTS.a=event-x", body)
    with pytest.raises(ConfigError, match=r"consumer a=event-x on EVENTS for 'stored\.events\.\*\.other'"):
        await provision(bus, team(a={"on": ["x"]}), PLUGINS)


async def test_wrong_team_changes_nothing(bus: Bus) -> None:
    with pytest.raises(ConfigError, match="no agent of the team"):
        await provision(bus, team(a={"asks": ["nobody"]}), PLUGINS)
    assert not (await bus.api("STREAM.NAMES")).get("streams")


async def test_initial_state_is_stored_once_ever(bus: Bus) -> None:
    await provision(bus, team({"a": 1, "b": 1}, x={}), PLUGINS)
    async with connect(bus.server) as client:
        await client.context.set("a", 2)
        await client.context.delete("b")
    await provision(bus, team({"a": 3, "b": 3, "c": 3}, x={}), PLUGINS)
    async with connect(bus.server) as client:
        assert {key: client.context.get(key) for key in ("a", "b", "c")} == {"a": 2, "b": None, "c": 3}


async def test_given_context_and_triggers_come_first(bus: Bus) -> None:
    triggers = {"a": [EventTrigger("from.python")]}
    await provision(bus, team({"n": 1}, a={"on": ["x"]}), PLUGINS, context=AgentContext({"n": 2}), triggers=triggers)
    assert await consumers(bus, "EVENTS") == {"a=event-from+python": "all"}
    async with connect(bus.server) as client:
        assert client.context.get("n") == 2


TEAM_FILE = """
[team]
name = "newsroom"
external = ["research.start"]

[context]
status = "new"
since = 2025-01-01

[agents.researcher]
kind = "my_agents:Researcher"
on = ["research.start", { message = "hints.*" }]
emits = ["research.*"]
publishes = ["hints.researcher"]
result_event = "research.complete"
asks = ["checker"]
writes = ["findings", "sources.*"]
depth = 3
when = 07:00:00

[agents.checker]
kind = "my_agents:Checker"
cross_agents = { boss = "researcher" }
concurrency = 2
"""


async def test_team_read_back_equals_the_file(bus: Bus, tmp_path: Path) -> None:
    path = tmp_path / "team.toml"
    path.write_text(TEAM_FILE)
    wanted = read_team(path)
    await provision(bus, wanted, PLUGINS)
    found = await stored_team(bus)
    assert found == wanted.model_copy(update={"context": {}, "buckets": {key: {} for key in wanted.buckets}})
    assert found.agents["researcher"].options == {"depth": 3, "when": "07:00:00"}
    assert [(r.principal, r.verb, r.pattern) for r in found.rules()] == [
        (r.principal, r.verb, r.pattern) for r in wanted.rules()
    ]


async def test_no_team(bus: Bus) -> None:
    with pytest.raises(NotProvisionedError, match=r"a team does not exist on this server\. Run `natterjack provision"):
        await stored_team(bus)


def test_needs_are_what_is_declared() -> None:
    declared = {
        "on": ["x"],
        "emits": ["a.*"],
        "publishes": [],
        "asks": ["b", "boss"],
        "writes": ["k"],
        "cross_agents": {"boss": "c", "far": "gopher://x"},
    }
    spec = team(a=declared, b={}, c={}).agents["a"]
    assert set(agent_needs("a", spec, PLUGINS)) == {
        Right("serve", "a"),
        Right("journal", "a"),
        Right("bury", "a"),
        Right("emit", "a.*"),
        Right("ask", "b"),
        Right("ask", "boss"),
        Right("ask", "c"),
        Right("write", "k"),
        Right("read", ">"),
        Right("consume", "EVENTS/a=event-x"),
        Right("consume", "INBOX/a=inbox"),
        Right("inject", "a.>"),
        Right("park", "a"),
        Right("consume", "WAKES/a=wake"),
    }
    everything = set(agent_needs("b", team(b={"result_event": "done"}).agents["b"], PLUGINS))
    assert {Right("emit", ">"), Right("publish", ">"), Right("ask", "*"), Right("write", ">")} <= everything


async def test_limits_that_somebody_raised_stay(bus: Bus) -> None:
    await provision(bus, team(a={}), PLUGINS)
    config = (await bus.api("STREAM.INFO.EVENTS"))["config"]
    raised = {"max_bytes": config["max_bytes"] * 2, "max_age": 0, "description": "ours"}
    await bus.api("STREAM.UPDATE.EVENTS", config | raised)
    await bus.api(
        "STREAM.UPDATE.MESSAGES", (await bus.api("STREAM.INFO.MESSAGES"))["config"] | {"max_bytes": 1_000_000}
    )
    done = await provision(bus, team(a={}), PLUGINS)
    assert done.updated == ["stream MESSAGES"]  # where there was less than we promise
    config = (await bus.api("STREAM.INFO.EVENTS"))["config"]
    assert {key: config[key] for key in raised} == raised


async def test_a_rehearsal_says_what_would_be_done_and_does_nothing(bus: Bus) -> None:
    wanted = team({"n": 1}, a={"on": ["x", {"cron": {"expression": "0 8 * * *"}}], "delays": ["y"]}, b={})
    said = await provision(bus, wanted, PLUGINS, dry=True)
    assert await bus.streams(">") == []
    done = await provision(bus, wanted, PLUGINS)
    assert said == done
    smaller = team({"n": 1}, a={"on": ["z"]})
    for prune in (False, True):
        said = await provision(bus, smaller, PLUGINS, dry=True, prune=prune)
        assert await stored_team(bus) == wanted.model_copy(update={"context": {}})
        assert "a=event-x" in await consumers(bus, "EVENTS")
        assert said.created == ["consumer a=event-z on EVENTS"]
        assert "consumer a=event-x on EVENTS" in (said.removed if prune else said.left)
    assert await provision(bus, smaller, PLUGINS, prune=True) == said


async def test_what_waits_for_a_removed_agent_and_removed_buckets_is_told_and_goes_with_them(bus: Bus) -> None:
    agents = {"a": {"kind": "m:A"}, "b": {"kind": "m:B"}}
    await provision(bus, Team.model_validate({"agents": agents, "buckets": {"budget": {"x": 1}}}), PLUGINS)
    for number in range(3):
        await bus.store("inbox.a.go", b"%d" % number)
    await bus.store("inbox.b.go", b"1")
    smaller = Team.model_validate({"agents": {"b": agents["b"]}})
    gone = ["consumer a=inbox on INBOX, for which 3 wait", "consumer a=wake on WAKES", "stream KV_context_budget"]
    assert sorted((await provision(bus, smaller, PLUGINS)).left) == gone
    assert (await bus.api("STREAM.INFO.INBOX"))["state"]["messages"] == 4
    assert sorted((await provision(bus, smaller, PLUGINS, prune=True)).removed) == gone
    assert (await bus.api("STREAM.INFO.INBOX"))["state"]["messages"] == 1
    done = await provision(bus, smaller, PLUGINS)
    assert (done.left, done.removed, done.updated) == ([], [], [])


@pytest.mark.open_mode(reason="its server is configured by the test")
async def test_a_server_without_room_says_how_to_give_it() -> None:
    with NatsServer("jetstream { max_file_store: 1GB }") as server:
        bus = await Bus.connect(Server(server.url), principal="operator")
        with pytest.raises(ConfigError, match=r"insufficient storage .* raise `max_file_store`"):
            await provision(bus, team(a={}), PLUGINS)
        await bus.close()
