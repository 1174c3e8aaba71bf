"""Any team: its file comes back as it was written, and its agents may do what it says, at the broker and at the guard.

What an agent may do is told here a second time, from the file alone and without the kernel's own matching.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from natterjack import codec
from natterjack.components import Agent
from natterjack.errors import ConfigError, PluginError, RefusedError
from natterjack.guards import Guards
from natterjack.needs import agent_permissions
from natterjack.plugins import Plugins
from natterjack.rights import Verb
from natterjack.subjects import OPERATOR
from natterjack.team import Team, check_team
from natterjack.team.file import read_team
from natterjack.team.model import AgentSpec
from natterjack.testing import NatsServer
from natterjack.testing.narrow import narrow_config

Document = dict[str, Any]

NAMES: Final = ("ann", "bob-2", "c_c")
BUCKETS: Final = ("fin", "hr")
LISTS: Final = ("emits", "replays", "publishes", "asks", "writes", "reads", "journal", "external")
DECLARED: Final[dict[Verb, str]] = {
    "emit": "emits",
    "replay": "replays",
    "publish": "publishes",
    "ask": "asks",
    "write": "writes",
    "read": "reads",
}


class Worker(Agent):
    """Takes any options."""

    name: ClassVar[str] = "worker"

    class Config(BaseModel):
        model_config = ConfigDict(extra="allow")


PLUGINS: Final = Plugins.load()
PLUGINS.agents["worker"] = Worker


# Teams

tokens = st.sampled_from(["a", "b", "C-1", "2_"])
types = st.lists(tokens, min_size=1, max_size=3).map(".".join)
patterns = st.builds(
    lambda head, last: ".".join([*head, *last]) or ">",
    st.lists(tokens | st.just("*"), max_size=2),
    st.sampled_from([[], [">"]]),
)
filters = st.sampled_from(["data.total > 100", 'type == "a" && source != "b"', "size(data) > 0 || has(data.x)"])
verdicts = st.sampled_from(["result.ok", "result == data.n", 'result.startsWith("x")'])
text = st.text(st.characters(codec="utf-8"), max_size=8)
values: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
states = st.dictionaries(types, values, max_size=3)


def some(each: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """A few of them as a list, or one alone."""
    return st.lists(each, max_size=3, unique=True) | each


def form(index: int, kind: str, pattern: str, where: str) -> Any:
    """One of the ways in which a trigger is written."""
    field = {"event": "event_type", "message": "topic"}[kind]
    forms = [{kind: pattern}, {kind: pattern, "where": where}, {kind: {field: pattern, "where": where}}]
    return pattern if index == len(forms) and kind == "event" else forms[index % len(forms)]


chosen = st.tuples(st.integers(0, 3), st.sampled_from(["event", "message"]), patterns, filters)
triggers = st.lists(chosen, max_size=3, unique_by=lambda each: each[1:3]).map(
    lambda all_: [form(*each) for each in all_]
)


@cache
def tables(kinds: tuple[str, ...], names: tuple[str, ...], buckets: tuple[str, ...]) -> st.SearchStrategy[Document]:
    """Tables of agents; their result events need not be among what they emit."""
    peers = {"peer": st.sampled_from([*names, "agents://echo/al/main", "nats://host:4222/ann"])}
    known = patterns | st.builds("{}/{}".format, st.sampled_from(buckets), patterns) if buckets else patterns
    optional: dict[str, st.SearchStrategy[Any]] = {
        "on": triggers,
        "emits": st.lists(patterns, max_size=3),
        "replays": some(patterns),
        "publishes": some(patterns),
        "cross_agents": st.fixed_dictionaries({}, optional=peers),
        "asks": some(st.sampled_from(names)),
        "writes": some(known),
        "reads": some(known),
        "result_event": types,
        "result_events": st.dictionaries(types, verdicts, max_size=2),
        "ordered_by": types,
        "journal": some(st.sampled_from(["stream", "file"])),
        "replicas": st.integers(1, 1000),
        "max_attempts": st.integers(1, 100),
        "retry_delay": st.floats(0.001, 60),
        "timeout": st.floats(0.001, 7 * 86_400) | st.integers(1, 1000),
        "style": values,
        "x.y": values,
    }
    return st.fixed_dictionaries({"kind": st.sampled_from(kinds)}, optional=optional)


def fitting(table: Document) -> Document:
    """Return an agent's table whose keys fit each other."""
    results = table.get("result_events", {})
    results.pop(table.get("result_event"), None)
    if "emits" in table:
        table["emits"] += [event for event in (table.get("result_event"), *results) if event]
    if "peer" in table.get("cross_agents", {}) and isinstance(table.get("asks"), list):
        table["asks"].append("peer")
    return table


teams = st.fixed_dictionaries(
    {"name": st.sampled_from(["news", "team"])},
    optional={"external": some(patterns), "transactions": st.booleans(), "server": st.just("nats://host:4222")},
)


@st.composite
def documents(draw: st.DrawFn, kinds: tuple[str, ...] = ("worker", "pack.age:Class.inner")) -> Document:
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    buckets = BUCKETS[: draw(st.integers(0, len(BUCKETS)))]
    return {
        "team": draw(teams),
        "context": draw(states),
        "buckets": {name: draw(states) for name in buckets},
        "agents": {name: fitting(draw(tables(kinds, names, buckets))) for name in names},
    }


# The file


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


@dataclass
class Written:
    """A team file, and the line of each of its keys."""

    path: Path
    lines: dict[tuple[str, ...], int]

    def problems(self) -> list[str]:
        """What is wrong with it; each problem tells its line."""
        try:
            check_team(read_team(self.path), PLUGINS)
        except (ConfigError, PluginError) as error:
            found = str(error).splitlines()
            place = rf"{re.escape(str(self.path))}:(\d+:| there are no agents)"  # what is missing has no line
            assert all(re.match(rf"{place}|… and \d+ more", line) for line in found), found
            return found
        return []

    def blamed(self) -> set[int]:
        """The lines of the problems."""
        return {int(line.removeprefix(f"{self.path}:").partition(":")[0]) for line in self.problems()}


def written(document: Document, folder: Path) -> Written:
    lines: dict[tuple[str, ...], int] = {}
    rows = ["# A team"]
    tables: list[tuple[tuple[str, ...], Document]] = [((name,), document[name]) for name in ("team", "context")]
    tables += [((top, name), table) for top in ("buckets", "agents") for name, table in document[top].items()]
    for path, table in tables:
        rows.append(f"[{'.'.join(map(toml, path))}]")
        for key, value in table.items():
            rows.append(f"{toml(key)} = {toml(value)}")
            lines[(*path, key)] = len(rows)
        rows.append("")
    (folder / "t.toml").write_text("\n".join(rows), encoding="utf-8", newline="")
    return Written(folder / "t.toml", lines)


in_a_folder = settings(
    max_examples=settings().max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def as_list(key: str, value: Any) -> Any:
    return [value] if key in LISTS and isinstance(value, str) else value


def settings_of(trigger: Any) -> tuple[str, dict[str, Any]]:
    """Return the kind and the settings of a trigger, however it is written."""
    form: Document = {"event": trigger} if isinstance(trigger, str) else trigger
    kind, field = ("event", "event_type") if "event" in form else ("message", "topic")
    own = form[kind] if isinstance(form[kind], dict) else {field: form[kind]}
    return kind, own | {key: form[key] for key in form if key == "where"}


@in_a_folder
@given(document=documents())
def test_a_team_survives_its_file_and_its_storage(document: Document, tmp_path: Path) -> None:
    file = written(document, tmp_path)
    assert file.problems() == []
    team = read_team(file.path)
    assert Team.model_validate(codec.decode(codec.encode(team))) == team
    found = codec.decode(codec.encode(team))
    assert {key: found[key] for key in document["team"]} == {
        key: as_list(key, value) for key, value in document["team"].items()
    }
    assert (found["context"], found["buckets"]) == (document["context"], document["buckets"])
    for name, table in document["agents"].items():
        stored = found["agents"][name]
        stored = stored | stored["options"] | {"on": [(each["kind"], each["settings"]) for each in stored["on"]]}
        wanted = table | {"on": [settings_of(each) for each in table.get("on", ())]}
        assert {key: stored[key] for key in wanted} == {key: as_list(key, value) for key, value in wanted.items()}


@in_a_folder
@given(document=documents(), data=st.data())
def test_what_no_key_can_be_is_told_with_its_line(document: Document, data: st.DataObject, tmp_path: Path) -> None:
    places: list[tuple[str, ...]] = [("team", key) for key in document["team"]]
    places += [
        ("agents", name, key) for name in document["agents"] for key in AgentSpec.model_fields if key != "options"
    ]
    *path, key = data.draw(st.sampled_from(places))
    table = document
    for part in path:
        table = table[part]
    table[key] = [[1]]
    file = written(document, tmp_path)
    assert file.blamed() == {file.lines[*path, key]}


@in_a_folder
@given(document=documents(), data=st.data())
def test_any_change_is_a_team_or_told_with_lines(document: Document, data: st.DataObject, tmp_path: Path) -> None:
    tables = [document["team"], document["context"], *document["buckets"].values(), *document["agents"].values()]
    for _ in range(data.draw(st.integers(1, 3))):
        table = data.draw(st.sampled_from(tables))
        keys = [*table, "options", "zzz", *AgentSpec.model_fields]
        value = table.pop(data.draw(st.sampled_from(keys)), 0)
        if data.draw(st.booleans()):
            table[data.draw(st.sampled_from(keys) | text)] = data.draw(st.just(value) | values | types | patterns)
    assert isinstance(written(document, tmp_path).problems(), list)


@in_a_folder
@given(document=documents(), data=st.data())
def test_any_damage_is_a_team_or_told_with_lines(document: Document, data: st.DataObject, tmp_path: Path) -> None:
    file = written(document, tmp_path)
    damaged = file.path.read_text(encoding="utf-8")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged = damaged[:at] + data.draw(st.sampled_from([*"[]{}\"'=.,#\n\\ *>/:", ""])) + damaged[at + 1 :]
    file.path.write_text(damaged, encoding="utf-8", newline="")
    assert isinstance(file.problems(), list)


# What its agents may do


def fits(pattern: str, name: str) -> bool:
    """Tell whether a pattern stands for a name, by a regular expression."""
    parts = {"*": r"[^./]+", ">": r"[^/]+"}
    return bool(re.fullmatch(r"\.".join(parts.get(part, re.escape(part)) for part in re.split(r"\.", pattern)), name))


def may(document: Document, agent: str, verb: Verb, what: str) -> bool:
    """Tell whether a team file lets an agent do something."""
    table = document["agents"][agent]
    declared = as_list(DECLARED[verb], table.get(DECLARED[verb]))
    if verb == "write" and declared is None:
        return "/" not in what and all("writes" not in each for each in document["agents"].values())
    if declared is None:
        return verb == "ask" or "/" not in what
    if verb == "ask":
        named = [table.get("cross_agents", {}).get(name, "nats://") for name in declared]
        return what in declared or (what in named and not what.startswith("nats://"))
    return any(
        fits(pattern.rpartition("/")[2], what.rpartition("/")[2]) for pattern in declared if bucket_is(pattern, what)
    )


def bucket_is(pattern: str, what: str) -> bool:
    return pattern.rpartition("/")[0] == what.rpartition("/")[0]


WORDS: Final = ["a", "b", "C-1", "a.b", "b.a", "a.2_.b", "a.b.C-1.a"]


def things(document: Document, verb: Verb) -> list[str]:
    """Return what somebody might want to do."""
    if verb == "ask":
        return [*document["agents"], "agents://echo/al/main"]
    buckets = document["buckets"] if verb in ("write", "read") else ()
    return [*WORDS, *(f"{bucket}/{word}" for bucket in buckets for word in WORDS)]


@in_a_folder
@given(document=documents(("worker",)))
def test_the_guard_refuses_what_the_file_does_not_say(document: Document, tmp_path: Path) -> None:
    team = read_team(written(document, tmp_path).path)
    guards = Guards.load(team.rules(), team.governed(), PLUGINS)
    verbs: list[Verb] = ["emit", "replay", "publish", "ask", "write"]
    for agent, verb in itertools.product(document["agents"], verbs):
        for what in things(document, verb):
            allowed = may(document, agent, verb, what)
            assert is_allowed(guards, agent, verb, what) == allowed, (agent, verb, what)
    assert all(is_allowed(guards, OPERATOR, verb, what) for verb in verbs for what in things(document, verb))


def is_allowed(guards: Guards, principal: str, verb: Verb, what: str) -> bool:
    try:
        guards.check(principal, verb, what)
    except RefusedError:
        return False
    return True


PUBLISHED: Final[dict[Verb, str]] = {"emit": "events.", "publish": "messages.", "write": "$KV.context"}


def tries(document: Document, agent: str) -> Iterator[tuple[str, str, bool]]:
    """Yield what an agent tries at the broker, and whether it may."""
    for verb, root in PUBLISHED.items():
        for what in things(document, verb):
            bucket, _, name = what.rpartition("/")
            middle = (f"_{bucket}." if bucket else ".") if verb == "write" else ""
            yield "PUB", f"{root}{middle}{name}", may(document, agent, verb, what)
    for what in things(document, "read"):
        bucket, _, name = what.rpartition("/")
        yield "SUB", f"feed.context{f'_{bucket}' if bucket else ''}.{name}", may(document, agent, "read", what)
    for other in NAMES:
        asks = other == agent or may(document, agent, "ask", other)  # itself: for those who come by a door of its own
        yield "PUB", f"agents.ask.{other}", asks
        yield "PUB", f"agents.prompt.natterjack.team.{other}", asks
        for subject in (f"journal.{other}.run.1", f"dead.{other}.inbox", f"agents.hb.natterjack.team.{other}"):
            yield "PUB", subject, other == agent
        for subject in (
            f"agents.ask.{other}",
            f"agents.cancel.{other}.r",
            f"feed.journal.{other}.r.1",
            f"_INBOX.{other}.x",
        ):
            yield "SUB", subject, other == agent
    for subject in ("stored.events.ann.a", "feed.context.a", "$KV.team.team", "$JS.API.STREAM.CREATE.X", "$SYS.x"):
        yield "PUB", subject, False
    for subject in ("events.a", "stored.events.ann.a", "$KV.context.a", "journal.ann.run.1", "$JS.API.>", ">"):
        yield "SUB", subject, False


def refused(server: NatsServer, user: str, wanted: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return what the server refuses a user, as its own protocol tells."""
    login = {"user": user, "pass": f"{user}-password", "verbose": False}
    lines = [f"CONNECT {json.dumps(login)}"]
    for number, (verb, subject) in enumerate(wanted):
        lines.append(f"SUB {subject} {number}" if verb == "SUB" else f"PUB {subject} 0\r\n")
    with socket.create_connection(("127.0.0.1", server.port), 5) as client:
        client.sendall("".join(f"{line}\r\n" for line in [*lines, "PING"]).encode())
        told = b""
        while b"PONG\r\n" not in told:
            more = client.recv(65_536)
            assert more, told
            told += more
    found = re.findall(rb"-ERR 'Permissions Violation for (Publish|Subscription) to \"(.+?)\"", told)
    assert len(found) == told.count(b"-ERR"), told
    return {("PUB" if verb == b"Publish" else "SUB", subject.decode()) for verb, subject in found}


@settings(in_a_folder, max_examples=settings().max_examples // 8)
@given(document=documents(("worker",)))
def test_the_broker_refuses_what_the_file_does_not_say(document: Document, tmp_path: Path) -> None:
    team = read_team(written(document, tmp_path).path)
    with NatsServer(narrow_config(agent_permissions(team, PLUGINS))) as server:
        for agent in document["agents"]:
            tried = {(verb, subject): allowed for verb, subject, allowed in tries(document, agent)}
            assert refused(server, agent, tried) == {each for each, allowed in tried.items() if not allowed}, agent
