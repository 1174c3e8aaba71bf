"""Who is connected with whom in a team, and through what: the data behind `graph` and `asyncapi`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from natterjack.builtin.agents import import_object
from natterjack.errors import ConfigError
from natterjack.runtime import AgentRuntime
from natterjack.subjects import is_wild, overlap
from natterjack.team import AgentSpec, Team, TriggerSpec
from natterjack.team.file import read_team
from natterjack.team.model import APPROVAL_ANSWERED

NodeKind = Literal["agent", "event", "topic", "key", "tools", "trigger", "peer", "outside"]
EdgeKind = Literal["emits", "wakes", "waits", "publishes", "asks", "writes", "reads", "tools"]

OUTSIDE = "outside"


def is_file(team: str) -> bool:
    """Tell a team file from `MODULE:NAME`."""
    return ":" not in team or Path(team).exists()


def import_runtime(target: str) -> AgentRuntime:
    """Return the runtime that `MODULE:NAME` means.

    Raises:
        ConfigError: It cannot be imported, or is none.
    """
    found = import_object(target)
    if not isinstance(found, AgentRuntime):
        msg = f"{target!r} is {type(found).__name__}; name a team file, or an AgentRuntime that does not run yet"
        raise ConfigError(msg)
    return found


def named_team(team: str) -> Team:
    """Return the team of a file, or of `MODULE:NAME`."""
    return read_team(Path(team)) if is_file(team) else import_runtime(team).team


@dataclass(frozen=True, slots=True)
class Node:
    """Something that is connected.

    Attributes:
        id: Unique: its kind and name.
        kind: What it is.
        name: As the team writes it.
        note: What is probably wrong with it; empty where nothing is.
    """

    id: str
    kind: NodeKind
    name: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """A connection, in the direction in which data or a question goes.

    Attributes:
        source: Id of a node.
        target: Id of a node.
        kind: What it means.
        label: More about it: a condition, or the pattern that it is within.
    """

    source: str
    target: str
    kind: EdgeKind
    label: str = ""


@dataclass(slots=True)
class Wiring:
    """All connections of a team.

    Attributes:
        team: Its name.
        nodes: By id.
        edges: In the order of the team file.
    """

    team: str
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def add(self, kind: NodeKind, name: str, note: str = "") -> str:
        """Add a node, if it is not there yet, and return its id."""
        id = f"{kind}:{name}"
        self.nodes.setdefault(id, Node(id, kind, name, note))
        return id

    def join(self, source: str, target: str, kind: EdgeKind, label: str = "") -> None:
        """Add an edge, once."""
        edge = Edge(source, target, kind, label)
        if edge not in self.edges:
            self.edges.append(edge)


def wiring(team: Team) -> Wiring:
    """Return how a team is connected."""
    made = Wiring(team.name)
    for name in team.agents:
        made.add("agent", name)
    _add_heard(made, team)
    for name, spec in team.agents.items():
        agent = f"agent:{name}"
        others = [pattern for pattern in spec.emits or () if pattern not in spec.result_types]
        _add_sent(made, agent, "event", others, "emits", "no agent waits for it")
        for event in spec.result_types:
            condition = spec.result_events.get(event)
            label = f"when {condition}" if condition else "its result"
            _add_sent(made, agent, "event", [event], "emits", "no agent waits for it", label)
        _add_sent(made, agent, "topic", spec.publishes or (), "publishes", "no agent reads it")
        _add_rest(made, agent, spec)
        _add_tools(made, team, name)
    return made


def _add_heard(made: Wiring, team: Team) -> None:
    """Add what agents wait for, and where it may come from outside."""
    emitted = [pattern for spec in team.agents.values() for pattern in spec.emitted]
    known = [*team.outside, *emitted, APPROVAL_ANSWERED]  # that comes from a human
    for name, spec in team.agents.items():
        for trigger in spec.on:
            source = _source(made, trigger, known)
            condition = trigger.settings.get("where")
            made.join(source, f"agent:{name}", "wakes", f"where {condition}" if condition else "")
        for pattern in spec.waits:
            made.join(_event(made, pattern, known), f"agent:{name}", "waits")
    for node in [node for node in made.nodes.values() if node.kind == "event"]:
        if any(overlap(pattern, node.name) for pattern in team.outside):
            made.join(made.add("outside", OUTSIDE), node.id, "emits")


def followed(trigger: TriggerSpec) -> str:
    """Return the pattern that a built-in trigger follows: its first setting, if that has no name."""
    first = next((str(value) for key, value in trigger.settings.items() if key != "where"), "")
    return next((str(trigger.settings[key]) for key in ("topic", "keys", "subject") if key in trigger.settings), first)


def _source(made: Wiring, trigger: TriggerSpec, known: list[str]) -> str:
    if trigger.event:
        return _event(made, trigger.event, known)
    if trigger.kind == "message":
        return made.add("topic", followed(trigger))
    if trigger.kind == "context":
        return made.add("key", followed(trigger))
    text = " ".join(str(value) for key, value in trigger.settings.items() if key != "where")
    return made.add("trigger", f"{trigger.kind} {text}".rstrip())


def _event(made: Wiring, pattern: str, known: list[str]) -> str:
    heard = any(overlap(each, pattern) for each in known)
    return made.add("event", pattern, "" if heard else "nobody in the team emits it")


def _add_sent(
    made: Wiring,
    agent: str,
    kind: Literal["event", "topic"],
    patterns: Iterable[str],
    edge: EdgeKind,
    unheard: str,
    label: str = "",
) -> None:
    """Join an agent with all that hears what it sends; what nobody hears becomes a node that says so."""
    for pattern in patterns:
        heard = [each for each in made.nodes.values() if each.kind == kind and overlap(each.name, pattern)]
        for node in heard or [made.nodes[made.add(kind, pattern, unheard)]]:
            made.join(agent, node.id, edge, _sent_label(pattern, node.name, label))


def _sent_label(pattern: str, heard: str, label: str) -> str:
    """Return what the name of the node does not say of what is sent: its own name, where the node's is wider."""
    if pattern == heard:
        return label
    if is_wild(heard):
        return f"{pattern}: {label}" if label else pattern
    return label or f"within {pattern}"


def _add_rest(made: Wiring, agent: str, spec: AgentSpec) -> None:
    for name in spec.asks or ():
        address = spec.cross_agents.get(name, name)
        is_agent = f"agent:{address}" in made.nodes
        target = f"agent:{address}" if is_agent else made.add("peer", address)
        made.join(agent, target, "asks", f"as {name}" if address != name else "")
    for key in spec.writes or ():
        made.join(agent, made.add("key", key), "writes")
    for key in spec.reads or ():
        made.join(made.add("key", key), agent, "reads")


def _add_tools(made: Wiring, team: Team, name: str) -> None:
    for server in team.agents[name].tools:
        spec = team.tools.get(server)
        roles = spec.roles or () if spec else ()
        allowed = [tool for tool in roles if spec and spec.admits(tool, name, team.roles_of(name))]
        note = "" if spec else "the team has no such tool server"
        made.join(f"agent:{name}", made.add("tools", server, note), "tools", ", ".join(allowed))
