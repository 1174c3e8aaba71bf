"""The audit: what is refused and what changes what may be done is written down, where nobody can change it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from natterjack import RefusedError, RequestTimeoutError, StreamError, Team, agent_rights, permissions
from natterjack.bus import Bus
from natterjack.bus.headers import encode
from natterjack.bus.rawclient import Incoming
from natterjack.cli.audit import _show, _verified
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.runtime import start_agent
from natterjack.server import Server
from natterjack.testing import NatsServer, until
from natterjack.testing.narrow import login_of, narrow_config

from .conftest import Quick

KIND = "natterjack.testing.agents:ScriptedAgent"


def newsroom(**writer: Any) -> Team:
    table = {"kind": KIND, "emits": ["draft.done"], "asks": [], "writes": ["draft"], "publishes": []}
    return Team.model_validate({"agents": {"writer": table | writer, "editor": {"kind": KIND, "writes": []}}})


async def records(bus: Bus) -> list[tuple[str, dict[str, Any]]]:
    """The subjects and contents of all records."""
    return [
        ((message.headers or {})["Nats-Subject"], json.loads(message.data))
        async for message in bus.read("AUDIT", "audit.*.*.*")
    ]


async def test_what_a_guard_refuses_is_written_down_with_why(own_server: NatsServer, bus: Bus) -> None:
    await provision(bus, newsroom(), Plugins.load())
    host, context = await start_agent("writer", Server(own_server.url))
    events = host._facilities.events
    for _ in range(3):
        with pytest.raises(RefusedError):
            await events.emit("draft.begun")
    with pytest.raises(RefusedError):
        await context.acting_as("writer", host.bus).set("status", 1)
    await host.stop(1.0)
    await context.close()
    found = [each for each in await records(bus) if each[0].startswith("audit.writer")]
    assert {subject for subject, _ in found} == {"audit.writer.guard.refuse"}
    assert {record["wanted"] for _, record in found} == {"emit", "write"}
    assert sum(record["times"] for _, record in found if record["wanted"] == "emit") == 3
    first = found[0][1]
    assert (first["what"], first["number"], first["previous"]) == ("draft.begun", 1, first["writer"])
    assert first["reason"].startswith("that is for 'operator'; it may emit 'draft.done'")


async def test_what_the_broker_refuses_is_written_down_where_it_is_heard() -> None:
    granted = {name: permissions(name, rights) for name, rights in agent_rights(newsroom()).items()}
    with NatsServer(narrow_config(granted)) as server:
        operator = await Bus.connect(login_of(server, "operator"), principal="operator")
        await provision(operator, newsroom(), Plugins.load())
        writer = await Bus.connect(login_of(server, "writer"), principal="writer")
        with pytest.raises(RefusedError):
            await writer.store("$KV.context.status", b"1")
        await writer.publish("audit.editor.guard.emit", b"{}")
        await writer.close()
        found = [each for each in await records(operator) if each[0].startswith(("audit.writer", "audit.editor"))]
        assert [(subject, record["reason"]) for subject, record in found] == [
            ("audit.writer.broker.refuse", "the broker refuses 'writer' to publish on '$KV.context.status'")
        ]
        await operator.close()


async def test_changes_of_authority_are_written_down(bus: Bus) -> None:
    plugins = Plugins.load()
    await provision(bus, newsroom(), plugins)
    await provision(bus, newsroom(), plugins)
    await provision(bus, newsroom(emits=["draft.*"]), plugins)
    await provision(bus, newsroom(emits=["draft.*"], reads=["plan"]), plugins)
    await bus.audit.settle()
    (_, first), (subject, second), (_, third) = await records(bus)
    assert "writer emit draft.done" in first["allowed"]
    assert subject == "audit.operator.authority.provision"
    assert (second["allowed"], second["denied"]) == (["writer emit draft.*"], ["writer emit draft.done"])
    assert (third["allowed"], third["denied"]) == (["writer read plan"], ["writer read >"])


async def test_what_is_removed_is_written_down(bus: Bus) -> None:
    plugins = Plugins.load()
    await provision(bus, newsroom(on=["work.due"]), plugins)
    await provision(bus, newsroom(), plugins, prune=True, dry=True)
    await provision(bus, newsroom(), plugins, prune=True)
    await bus.audit.settle()
    pruned = [told for subject, told in await records(bus) if subject.endswith("authority.prune")]
    assert [each["removed"] for each in pruned] == [["consumer writer=event-work+due on EVENTS"]]


async def test_nobody_can_change_or_delete_it(bus: Bus) -> None:
    await provision(bus, newsroom(), Plugins.load())
    for act, body in {"STREAM.MSG.DELETE.AUDIT": {"seq": 1}, "STREAM.PURGE.AUDIT": {}}.items():
        with pytest.raises(StreamError):
            await bus.api(act, body)


async def test_a_changed_and_a_missing_record_are_found(bus: Bus) -> None:
    await provision(bus, newsroom(), Plugins.load())
    for number in range(6):
        bus.audit.note("guard", "emit", n=number)
    await bus.audit.settle()
    chain = [message.data async for message in bus.read("AUDIT", "audit.>")]

    async def verdict(records: list[bytes]) -> tuple[int, int]:
        async def each() -> Any:
            for number, record in enumerate(records, 1):
                yield stored(record, number)

        found = (await _verified(each()))["operator"]
        return found["changed"], found["missing"]

    assert await verdict(chain) == (0, 0)
    assert await verdict(chain[1:]) == (0, 0)
    assert await verdict([*chain[:2], *chain[4:]]) == (0, 2)
    assert await verdict([*chain[:2], chain[2].replace(b'"n":', b'"m":'), *chain[3:]]) == (1, 0)
    assert await verdict([*chain[:2], b"\xff", *chain[3:]]) == (1, 1)
    assert await verdict([chain[1], chain[0], *chain[2:]]) == (1, 1)


async def test_a_record_whose_acknowledgement_was_lost_looks_like_no_forgery(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await provision(bus, newsroom(), Plugins.load())
    await bus.audit.settle()  # which has its own record
    store, lost = bus.store, [True]

    async def loses_one(*args: Any, **settings: Any) -> Any:
        acknowledged = await store(*args, **settings)
        if lost:
            lost.clear()
            raise RequestTimeoutError("audit", 5.0)
        return acknowledged

    monkeypatch.setattr(bus, "store", loses_one)
    for number in range(3):
        bus.audit.note("guard", "emit", n=number)
    await bus.audit.settle()
    found = (await _verified(bus.read("AUDIT", "audit.*.guard.emit")))["operator"]
    assert (found["records"], found["changed"], found["missing"]) == (3, 0, 0)


def stored(data: bytes, number: int, subject: str = "audit.operator.guard.emit") -> Incoming:
    """A record as the broker gives it out."""
    said = {"Nats-Subject": subject, "Nats-Sequence": str(number), "Nats-Time-Stamp": "2026-05-01T08:00:00Z"}
    return Incoming("_INBOX.operator.x", "", data, encode(said))


@pytest.mark.open_mode(reason="it writes in the names of others")
async def test_nobody_breaks_the_chains_of_others(bus: Bus) -> None:
    await provision(bus, newsroom(), Plugins.load())
    bus.audit.note("guard", "emit")
    await bus.audit.settle()
    claimed = {"writer": bus.audit.writer, "number": 9, "previous": "x", "times": 1}
    await bus.store("audit.editor.guard.refuse", json.dumps(claimed).encode())
    await bus.store("audit.editor.guard.refuse", json.dumps(claimed | {"number": 3}).encode())
    bus.audit.note("guard", "emit")
    await bus.audit.settle()
    found = await _verified(bus.read("AUDIT", "audit.*.*.*"))
    assert {who: (each["changed"], each["missing"]) for who, each in found.items()} == {
        "operator": (0, 0),
        "editor": (1, 0),
    }


FORGED = {"time": "2020-01-01T00:00:00Z", "sequence": 7, "who": "operator", "area": "authority", "verb": "revoke"}
CHAIN = {"writer": "w", "number": 1, "previous": "w", "times": 1}


@pytest.mark.parametrize(
    "written",
    [
        FORGED,
        FORGED | CHAIN,
        CHAIN | {"times": "1 times\n2026-11-28 00:01:02  operator  authority revoke"},
        CHAIN | {"reason": "x\n2026-11-28 00:01:02  operator  authority revoke\x1b[2J\x9b31m\u2028y"},
        "\x1b[2J\n2026-11-28 00:01:02  operator  authority revoke",
        [FORGED],
    ],
    ids=["of others", "of others, with a chain", "a line as times", "a line as reason", "text", "a list"],
)
def test_what_the_broker_says_of_a_record_is_not_what_its_writer_says(
    written: object, capsys: pytest.CaptureFixture[str]
) -> None:
    message = stored(json.dumps(written, ensure_ascii=False).encode(), 12, "audit.eve.broker.refuse")
    _show(message, as_json=True)
    told = json.loads(capsys.readouterr().out)
    record = told.pop("record") if "record" in told else json.loads(told.pop("malformed"))
    assert told == {
        "time": "2026-05-01T08:00:00Z",
        "sequence": 12,
        "who": "eve",
        "area": "broker",
        "verb": "refuse",
    }
    assert record == written
    _show(message, as_json=False)
    (line, nothing) = capsys.readouterr().out.split("\n")
    assert re.fullmatch(r"[-\d]{10} [:\d]{8}  eve  broker refuse  \S.*", line)
    assert nothing == ""
    assert line.isprintable()


async def test_more_than_can_wait_is_counted(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    await provision(bus, newsroom(), Plugins.load())
    await bus.audit.settle()
    monkeypatch.setattr("natterjack.bus.audit.MOST_WAITING", 5)
    for number in range(20):
        bus.audit.note("guard", "emit", n=number)
    await bus.audit.settle()
    found = (await records(bus))[1:]
    assert [("more" in record, record["times"]) for _, record in found] == [*[(False, 1)] * 5, (True, 15)]


async def test_a_server_that_is_away_does_not_hold_up_the_end(
    own_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await Bus.connect(Server(own_server.url), principal="operator")
    own_server.kill()
    await until(lambda: not bus.connected)
    bus.audit.note("guard", "emit", what="x")
    async with asyncio.timeout(5):
        await bus.close()
    assert "the end came before the audit had every record" in caplog.text


async def test_one_pushes_out_only_its_own_records(own_server: NatsServer, bus: Bus) -> None:
    """Whatever a principal that was taken over writes, the records of others stay, and are shown."""
    await provision(bus, newsroom(), Plugins.load())
    await bus.audit.settle()
    writer = await Bus.connect(Server(own_server.url), principal="writer")
    for number in range(1_050):
        await writer.publish("audit.writer.guard.refuse", b'"nonsense"' if number % 2 else b"\xff")
    with pytest.raises(StreamError, match="size"):
        await writer.store("audit.writer.guard.refuse", b"x" * 20_000)
    await writer.close()
    kept = [(message.headers or {})["Nats-Subject"] async for message in bus.read("AUDIT", "audit.*.*.*")]
    assert (kept[0], len(kept)) == ("audit.operator.authority.provision", 1_001)


def test_it_is_shown_and_verified(team: Quick) -> None:
    told = team.text("audit", "show", "operator")
    assert "authority provision" in told
    record = team.json("audit", "show", "--area", "authority")
    assert (record["who"], record["verb"], record["record"]["number"]) == ("operator", "provision", 1)
    assert team.json("audit", "verify")["changed"] == 0
    assert team.text("audit", "verify").endswith("0 changed, 0 missing")


def test_of_whom_nothing_is_written_down_is_told(team: Quick) -> None:
    shown = team.run("audit", "show", "greeter")
    assert (shown.stdout, shown.stderr) == ("", "nothing is written down of 'greeter'\n")
    shown = team.run("audit", "show", "operator", "--area", "tools")
    assert (shown.stdout, shown.stderr) == ("", "nothing is written down of 'operator', as far as is asked\n")
    shown = team.run("audit", "show", "callout", "--json")
    assert (shown.stdout, shown.stderr) == ("", "")
    told = (
        "team 'garden' has nobody called 'greetr', nor has its audit. Did you mean 'greeter'? It has: clumsy, greeter."
    )
    assert team.error("audit", "show", "greetr", code=4) == told


def test_what_is_no_record_is_shown_as_it_is(garden: Quick) -> None:
    with NatsServer() as server:
        garden.env["NATS_URL"] = server.url
        garden.text("provision")
        garden.text("emit", "visitor.arrived")

        async def write() -> None:
            bus = await Bus.connect(Server(server.url), principal="greeter")
            await bus.store("audit.greeter.guard.refuse", b'"x"')
            await bus.store("audit.greeter.guard.refuse", b"\xff{")
            await bus.close()

        asyncio.run(write())
        told = garden.text("audit", "show", "greeter")
        assert told.count("malformed") == 2
        assert garden.json("audit", "verify", code=1)["wrong"]["greeter"]["changed"] == 2
        assert "\n  greeter: 2 changed, 0 missing\n" in garden.run("audit", "verify", code=1).stdout
