"""The team as data: its agents, what wakes them, and what each may do.

A team comes from `team.toml` or from Python, and is stored in the KV bucket `team` as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr

from natterjack.addresses import is_foreign
from natterjack.errors import UnknownAgentError
from natterjack.rights import Right, Rule, Verb
from natterjack.settings import Settings
from natterjack.subjects import OPERATOR, matches, split_keys
from natterjack.team.origins import Origins
from natterjack.team.processes import ProcessSpec, ToolSpec, open_schema
from natterjack.team.triggers import TriggerSpec
from natterjack.team.users import GRANTS, UserSpec
from natterjack.team.values import (
    BucketName,
    EventType,
    FieldPath,
    JournalName,
    Keys,
    Kind,
    Name,
    Names,
    OneOrMore,
    Patterns,
    RoutingCondition,
    State,
    TeamName,
    ToolName,
    listed,
)

_GRANTS: Final[dict[Verb, str]] = {
    "emit": "emits",
    "replay": "replays",
    "publish": "publishes",
    "ask": "asks",
    "write": "writes",
}
APPROVAL_REQUESTED, APPROVAL_ANSWERED = "approval.requested", "approval.answered"
"""Types of the events by which a run asks a human, and is answered."""


class AgentSpec(ProcessSpec):
    """One agent, as it is written, provisioned and stored.

    Attributes:
        kind: `module:Class`, or a kind that a plugin brings.
        on: What wakes it.
        emits: Patterns of the events it may emit; None: any, in open mode.
        delays: Patterns of the events that it may emit with a delay.
        replays: Patterns of the stored events it may read; None: any, in open mode.
        publishes: Patterns of the topics it may publish to; None: any, in open mode.
        waits: Patterns of the events for which its runs may wait (`ctx.wait_for`).
        asks: Agents it may ask; None: any, in open mode.
        writes: Patterns of the context keys it may write, those of a bucket as `<bucket>/<pattern>`; None: any of the
            main context, unless some agent of the team declares writes.
        reads: The same for the keys it may read; None: all of the main context. A list is complete: with
            `["finance/*"]` it reads nothing of the main context, with `[">", "finance/*"]` all of it.
        result_event: Type of the event that carries what `handle` returned.
        result_events: Types of further such events, each with the condition under which it is emitted.
        ordered_by: Dotted path of a field of the data: events with one value of it are handled one after another.
        cross_agents: Addresses of peers by the names it calls them.
        journal: Journals beside the stream.
        tools: Tool servers of the team that it may call.
        roles: What it is to tool servers, for their guards; by default its own name.
        replicas: Processes that share its work.
        concurrency: Events and questions that one process works on at once.
        max_attempts: Failed handlings after which an event is dead.
        retry_delay: How many seconds pass before the second attempt; it doubles with each one, up to 60.
        timeout: How many seconds one handling may take.
        drain_timeout: How many seconds running work has to end when its process is told to.
        hang_timeout: How many seconds the event loop of a supervised process may stand still, before it is ended and
            another one started; 0: for ever.
        memory: Bytes, or text such as "500MB": a supervised process that has more in memory drains and starts again.
        memory_max: The same, for one that is killed; by default half as much again as `memory`.
        options: All other keys of its table: the settings of its kind.
    """

    model_config = ConfigDict(json_schema_extra=open_schema)

    kind: Kind
    on: Annotated[
        tuple[TriggerSpec, ...], BeforeValidator(listed, json_schema_input_type=TriggerSpec | list[TriggerSpec])
    ] = ()
    emits: Patterns | None = None
    delays: Patterns = ()
    replays: Patterns | None = None
    publishes: Patterns | None = None
    waits: Patterns = ()
    asks: Names | None = None
    writes: Keys | None = None
    reads: Keys | None = None
    result_event: EventType | None = None
    result_events: dict[EventType, RoutingCondition] = Field(default_factory=dict)
    ordered_by: FieldPath | None = None
    cross_agents: dict[Name, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    journal: Annotated[tuple[JournalName, ...], OneOrMore] = ()
    tools: Annotated[tuple[ToolName, ...], OneOrMore] = ()
    roles: Names = ()
    concurrency: int = Field(16, strict=True, ge=1, le=10_000)
    max_attempts: int = Field(5, strict=True, ge=1, le=100)
    retry_delay: float = Field(1.0, strict=True, gt=0, le=60, allow_inf_nan=False)
    timeout: float = Field(600.0, strict=True, gt=0, le=7 * 86_400, allow_inf_nan=False)

    @classmethod
    def _own_keys(cls, table: Mapping[Any, Any]) -> set[str]:
        """Of an imported kind, what looks like a key of ours is one: refused."""
        own = set(cls.model_fields)
        if ":" in str(table.get("kind", "")):
            own |= {key for key in table.keys() - own if get_close_matches(str(key), cls.model_fields, 1, cutoff=0.8)}
        return own

    @property
    def imported(self) -> bool:
        """Whether its kind is a class to import, not one that a plugin brings."""
        return ":" in self.kind

    @property
    def component(self) -> tuple[str, dict[str, Any]]:
        """The kind of agent as plugins name it, and its settings; one that is imported is of the kind `python`."""
        if self.imported:
            return "python", {"target": self.kind, "options": self.options}
        return self.kind, self.options

    def allowed(self, verb: Verb) -> tuple[str, ...] | None:
        """Return the patterns of what it may emit, publish, ask or write; None: it declares nothing."""
        found: tuple[str, ...] | None = getattr(self, _GRANTS[verb])
        if verb == "emit" and found is not None and self.asks_humans:
            return (*found, APPROVAL_REQUESTED)
        if verb == "ask" and found:  # who may ask a name may ask the agent that it stands for
            named = (self.cross_agents[name] for name in found if name in self.cross_agents)
            here = (address for address in named if "://" not in address or is_foreign(address))
            return tuple(dict.fromkeys([*found, *here]))
        return found

    def closed(self) -> AgentSpec:
        """Return the same agent where it may do nothing that it does not declare, but read."""
        emits = dict.fromkeys((*self.result_types, *self.delays))
        denied = {"emits": tuple(emits), "asks": tuple(self.cross_agents), "replays": (), "publishes": (), "writes": ()}
        return self.model_copy(update={key: value for key, value in denied.items() if getattr(self, key) is None})

    def keys_in(self, bucket: str, verb: Verb) -> tuple[str, ...] | None:
        """Return the patterns of a bucket's keys that it may read or write; None: all of the main context."""
        declared = self.reads if verb == "read" else self.writes
        if declared is None:
            return () if bucket else None
        return tuple(keys for name, keys in map(split_keys, declared) if name == bucket)

    @property
    def awaited(self) -> tuple[str, ...]:
        """Patterns of the events that wake it."""
        return tuple(trigger.event for trigger in self.on if trigger.event)

    @property
    def heard(self) -> tuple[str, ...]:
        """Patterns of the events that wake it, or for which its runs wait."""
        return (*self.awaited, *self.waits)

    @property
    def topics(self) -> tuple[str, ...]:
        """Patterns of the topics that wake it."""
        return tuple(trigger.topic for trigger in self.on if trigger.topic)

    @property
    def asks_humans(self) -> bool:
        """Whether its runs may wait for what a human answers."""
        return any(matches(pattern, APPROVAL_ANSWERED) for pattern in self.waits)

    @property
    def emitted(self) -> tuple[str, ...]:
        """Patterns of the events that it says it emits."""
        return tuple(dict.fromkeys([*(self.allowed("emit") or ()), *self.result_types]))

    def result_key(self, event: str) -> str:
        """Return the key under which a result event is written."""
        return "result_event" if event == self.result_event else "result_events"

    @property
    def result_types(self) -> tuple[str, ...]:
        """Types of the events that may carry what `handle` returned."""
        return (*([self.result_event] if self.result_event else []), *self.result_events)


class TeamTable(Settings):
    """The table `[team]`.

    Attributes:
        name: The team's name.
        external: Patterns of events that come from outside the team.
        server: Server to connect to, where none is named otherwise.
        transactions: Whether several keys of the context can be written at once, all or nothing. Whoever may write
            the context can hold up the transactions of all others for seconds: only where writers are trusted, so
            by default not in secured mode.
    """

    name: TeamName = "team"
    external: Patterns = ()
    server: Annotated[str, Field(min_length=1)] | None = None
    transactions: bool | None = None


class Team(TeamTable):
    """A team.

    Attributes:
        name: Its name.
        external: See `TeamTable`, as for `server` and `transactions`.
        server: Server to connect to.
        transactions: Whether several keys can be written at once.
        context: The shared context's initial state.
        buckets: Initial state of the buckets beside it, which only those may read and write who declare it.
        agents: Its agents by name.
        tools: Its tool servers by name.
        users: Its users by name.
    """

    context: State = Field(default_factory=dict)
    buckets: dict[BucketName, State] = Field(default_factory=dict)
    agents: dict[Name, AgentSpec] = Field(default_factory=dict)
    tools: dict[ToolName, ToolSpec] = Field(default_factory=dict)
    users: dict[Name, UserSpec] = Field(default_factory=dict)
    _origins: Origins = PrivateAttr(default_factory=Origins)

    def agent(self, name: str) -> AgentSpec:
        """Return one of its agents.

        Raises:
            UnknownAgentError: It has none of that name.
        """
        if name not in self.agents:
            raise UnknownAgentError(self.name, name, self.agents)
        return self.agents[name]

    def tool(self, name: str) -> ToolSpec:
        """Return one of its tool servers.

        Raises:
            UnknownAgentError: It has none of that name, and no agent.
        """
        if name not in self.tools:
            raise UnknownAgentError(self.name, name, self.processes)
        return self.tools[name]

    @property
    def processes(self) -> dict[str, ProcessSpec]:
        """Its tool servers and its agents, by name."""
        return {**self.tools, **self.agents}

    @property
    def outside(self) -> list[str]:
        """Patterns of the events that come from outside, those of users as well."""
        named = (user.emits for user in self.users.values())
        return list(dict.fromkeys([*self.external, *(pattern for patterns in named for pattern in patterns)]))

    def heard(self, verb: Verb) -> list[str]:
        """Return patterns of the events that somebody waits for; with `publish`, of the topics that somebody reads."""
        specs = self.agents.values()
        return [pattern for spec in specs for pattern in (spec.topics if verb == "publish" else spec.heard)]

    @property
    def operators(self) -> list[str]:
        """Its users who may all that the operator may."""
        return [name for name, user in self.users.items() if user.operator]

    @property
    def callers(self) -> dict[str, AgentSpec | UserSpec]:
        """Its users and its agents, by name: who may call tools."""
        return {**self.users, **self.agents}

    def roles_of(self, caller: str) -> frozenset[str]:
        """Return what an agent or a user is to tool servers; nothing for one that the team has not."""
        found = self.agents.get(caller) or self.users.get(caller)
        return frozenset(found.roles or (caller,)) if found else frozenset()

    def calls(self, caller: str) -> list[Right]:
        """Return the rights of an agent or a user to call tools."""
        found = []
        for server in (self.agents.get(caller) or self.users[caller]).tools:
            spec = self.tools[server]
            tools = [tool for tool in spec.roles or () if spec.admits(tool, caller, self.roles_of(caller))]
            found += [Right("call", f"{server}/{tool}") for tool in (["*"] if spec.roles is None else tools)]
        return found

    def closed(self) -> Team:
        """Return the same team where what an agent does not declare is denied, as in secured mode; but for reading."""
        agents = {name: spec.closed() for name, spec in self.agents.items()}
        changes = {"agents": agents, "transactions": bool(self.transactions)}
        return self.model_copy(update=changes).written_in(self._origins)

    def written_in(self, origins: Origins) -> Team:
        """Return the same team, whose messages say where it is written."""
        team = self.model_copy()
        team._origins = origins
        return team

    @property
    def origins(self) -> Origins:
        """Where it is written."""
        return self._origins

    def origin(self, *path: str, table: str = "agents") -> str:
        """Return where an agent, or a key of its table, is written, e.g. `team.toml:12`; or an empty string."""
        return self._origins.at(table, *path)

    def place(self, name: str, *keys: str, table: str = "agents") -> str:
        """Return how a message about it starts: `team.toml:12: [agents.analyst]`."""
        origin = self.origin(name, *keys, table=table)
        return f"{origin}: [{table}.{name}]" if origin else f"[{table}.{name}]"

    def rules(self) -> list[Rule]:
        """Return what each agent and user may do; the operator may do all."""
        rules = [
            Rule(agent, verb, pattern, self.origin(agent, key))
            for agent, spec in self.agents.items()
            for verb, key in _GRANTS.items()
            for pattern in self._allowed(spec, verb)
        ]
        for name, user in self.users.items():
            rules += [Rule(name, *each, self._origins.at("users", name, GRANTS[each.verb])) for each in user.granted()]
        rules += [Rule(OPERATOR, verb, ">") for verb in _GRANTS]
        return rules + self._of_buckets("write")

    def reading(self) -> list[Rule]:
        """Return what agents may read: the rest of the rules, of which their own processes load none.

        There no guard is asked, but the context refuses, so that a team with `reads` alone needs no guard.
        """
        rules = [
            Rule(agent, "read", pattern, self.origin(agent, "reads"))
            for agent, spec in self.agents.items()
            for pattern in ((">",) if spec.reads is None else spec.reads)
        ]
        return [*rules, Rule(OPERATOR, "read", ">"), *self._of_buckets("read")]

    def _of_buckets(self, verb: Verb) -> list[Rule]:
        """Return what operators may in the buckets beside the main context."""
        return [Rule(name, verb, f"{bucket}/>") for name in (OPERATOR, *self.operators) for bucket in self.buckets]

    def _allowed(self, spec: AgentSpec, verb: Verb) -> tuple[str, ...]:
        allowed = spec.allowed(verb)
        # Where there are buckets, writes are governed; who declares none may write the main context as ever.
        free = verb == "write" and self.buckets and all(each.writes is None for each in self.agents.values())
        return (">",) if free else allowed or ()

    def governed(self) -> frozenset[tuple[str, Verb]]:
        """Return who may do what only by a rule: users, an agent that declares it, and for writes then everyone."""
        pairs = {
            (agent, verb) for agent, spec in self.agents.items() for verb in _GRANTS if spec.allowed(verb) is not None
        }
        writes: set[tuple[str, Verb]] = {("*", "write")} if self.buckets else set()
        users = {(name, verb) for name in self.users for verb in GRANTS}
        return frozenset(("*", verb) if verb == "write" else (agent, verb) for agent, verb in pairs) | writes | users
