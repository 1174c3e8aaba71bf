"""The checks of a team as a whole: against itself, and against the components that are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from natterjack.addresses import is_foreign, split_foreign
from natterjack.components import Trigger
from natterjack.errors import ConfigError, NatterjackError, PluginError, nearest
from natterjack.plugins import Plugins
from natterjack.settings import details, given, read_settings
from natterjack.subjects import (
    INBOX,
    bucket_stream,
    check_durable,
    context_bucket,
    durable,
    matches,
    overlap,
    split_keys,
    widest,
)
from natterjack.team.model import AgentSpec, Team
from natterjack.team.processes import ProcessSpec, ToolSpec
from natterjack.team.triggers import TriggerSpec
from natterjack.team.users import UserSpec

MAX_PROBLEMS: Final = 20
"""How many problems one error lists."""
MAX_LINE: Final = 400
"""Characters of one problem; what is longer is cut in the middle."""

CONTEXTS: Final = bucket_stream(context_bucket("_")).removesuffix("_")
"""What the names of the streams behind buckets beside the main context begin with."""
_NATS_SCHEMES: Final = ("nats", "tls", "ws", "wss")
_MESSAGES: Final = {
    "model_type": "it must be a table",
    "dict_type": "it must be a table",
    "tuple_type": "it must be a list",
    "string_type": "it must be text",
}


def report(problems: Sequence[str]) -> str:
    """Return problems as text: a line each, and 20 lines at most."""
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[: MAX_PROBLEMS - 1], f"… and {len(problems) - MAX_PROBLEMS + 1} more"]
    return "\n".join(map(_one_line, problems))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} … {line[-MAX_LINE // 2 :]}"


class _Problems:
    """What a check has found so far."""

    def __init__(self) -> None:
        self.errors: list[NatterjackError] = []
        self.lines: list[str] = []

    @contextmanager
    def at(self, place: str) -> Iterator[None]:
        """Note an error that is raised inside, and go on."""
        try:
            yield
        except NatterjackError as error:
            self.add(place, error)

    def add(self, place: str, error: NatterjackError) -> None:
        """Note an error."""
        self.errors.append(error)
        self.lines.append(f"{place} {error}")

    def raise_all(self) -> None:
        if self.errors:
            kind = PluginError if all(isinstance(error, PluginError) for error in self.errors) else ConfigError
            raise kind(report(self.lines))


def check_team(team: Team, plugins: Plugins) -> None:
    """Check a team against itself and against what is installed. All problems are told at once.

    The options of a kind that is imported are checked when it is made: they need its class.

    Raises:
        PluginError: All that is wrong is that plugins are missing or broken.
        ConfigError: Something is written wrongly.
    """
    problems = _Problems()
    for name, spec in team.agents.items():
        with problems.at(team.place(name, "kind")):
            kind = None if spec.imported else plugins.agent(spec.kind)
            for key, text in _option_problems(spec, kind.Config) if kind else ():
                problems.add(team.place(name, key), ConfigError(text))
        _check_triggers(problems, team, name, spec, plugins)
        _check_peers(problems, team, name, spec, plugins)
        for journal in spec.journal:
            with problems.at(team.place(name, "journal")):
                read_settings(plugins.journal(journal).Config, {}, f"the journal {journal!r}")
        _check_keys(problems, team, partial(team.place, name), spec)
        with problems.at(team.place(name, "delays")):
            _check_delays(spec)
        for event in spec.result_types:
            with problems.at(team.place(name, spec.result_key(event), event)):
                _check_result_event(spec, event)
        for server in spec.tools:
            with problems.at(team.place(name, "tools")):
                _check_known(server, team.tools, "tool server")
    for name, tools in team.tools.items():
        _check_tools(problems, team, name, tools, plugins)
    for name, user in team.users.items():
        _check_user(problems, team, name, user)
    problems.raise_all()


def _check_user(problems: _Problems, team: Team, name: str, user: UserSpec) -> None:
    place = partial(team.place, name, table="users")
    with problems.at(place()):
        if name in team.processes:
            msg = f"the team has an agent or a tool server {name!r}, too; give one of them another name"
            raise ConfigError(msg)
    for key in user.surplus():
        with problems.at(place(key)):
            msg = f"{key!r} adds nothing to `operator = true`; remove one of them"
            raise ConfigError(msg)
    for peer in user.asks:
        with problems.at(place("asks")):
            _check_known(peer, team.agents)
    for tool in user.tools:
        with problems.at(place("tools")):
            _check_known(tool, team.tools, "tool server")
    for pattern in user.injects:
        with problems.at(place("injects")):
            agent = pattern.partition(".")[0]
            if agent != "*":
                _check_known(agent, team.agents)
    _check_keys(problems, team, place, user)


def _check_tools(problems: _Problems, team: Team, name: str, spec: ToolSpec, plugins: Plugins) -> None:
    place = partial(team.place, name, table="tools")
    with problems.at(place()):
        if name in team.agents:
            msg = f"the team has an agent {name!r}, too; give one of them another name"
            raise ConfigError(msg)
    with problems.at(place("kind")):
        for key, text in _option_problems(spec, plugins.tool_server(spec.kind).Config):
            problems.add(place(key), ConfigError(text))
    known = {*team.callers, *(role for caller in team.callers.values() for role in caller.roles)}
    for tool, who in (spec.roles or {}).items():
        for each in who:
            with problems.at(place("roles", tool)):
                _check_known(each, known, "agent or user, or role of one,")


def _option_problems(spec: ProcessSpec, config: type[BaseModel]) -> Iterator[tuple[str, str]]:
    known = [*config.model_fields, *type(spec).model_fields]
    for key in _unknown(spec.options, config):
        yield key, f"unknown key {key!r}.{nearest(key, known)}"
    try:
        config.model_validate(spec.options)
    except ValidationError as error:
        for problem in details(error, config):
            if problem["type"] != "extra_forbidden" or len(problem["loc"]) > 1:
                yield str(next(iter(problem["loc"]), "")), sentence(problem, path_text(problem["loc"]), known)


def _unknown(settings: Iterable[str], config: type[BaseModel]) -> list[str]:
    """Return the keys that a model does not know: one that ignores them would hide a mistake."""
    if config.model_config.get("extra") == "allow":
        return []
    known = set(config.model_fields)
    for field in config.model_fields.values():
        known |= {alias for alias in (field.alias, field.validation_alias) if isinstance(alias, str)}
    return [key for key in settings if key not in known]


def path_text(path: Sequence[int | str]) -> str:
    """Return a path inside a table as text: `on[0].every`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def sentence(problem: ErrorDetails, key: str, known: Iterable[str]) -> str:
    """Return what pydantic found at a key as a sentence; `known` are the keys that may stand there."""
    kind, message = problem["type"], problem["msg"]
    if kind == "extra_forbidden":
        return f"unknown key {key!r}.{nearest(str(problem['loc'][-1]), known)}"
    if kind == "missing":
        return f"{key!r} is missing"
    if kind == "value_error":
        return f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    message = _MESSAGES.get(kind, message.replace("Input should be", "it must be"))
    return f"{key!r}{given(problem)}: {message}"


def trigger_settings(trigger: type[Trigger], spec: TriggerSpec) -> dict[str, Any]:
    """Return the settings of a trigger by name: a value without one belongs to the first field that must be given.

    Raises:
        ConfigError: One is unknown, or the kind takes none.
    """
    config: type[BaseModel] = trigger.Config
    if "" in spec.settings and not config.model_fields:
        msg = f"the trigger {spec.kind!r} takes no settings; write {{ {spec.kind} = {{}} }}"
        raise ConfigError(msg)
    required = (name for name, field in config.model_fields.items() if field.is_required())
    main = next(required, next(iter(config.model_fields), ""))
    settings = {key or main: value for key, value in spec.settings.items()}
    for key in _unknown(settings, config):
        msg = f"the trigger {spec.kind!r} has no setting {key!r}.{nearest(key, config.model_fields)}"
        raise ConfigError(msg)
    return settings


def make_trigger(trigger: type[Trigger], spec: TriggerSpec) -> Trigger:
    """Make a trigger of this kind with the settings of an agent's table.

    Raises:
        ConfigError: A setting is wrong.
        PluginError: The trigger's own code failed.
    """
    settings = trigger_settings(trigger, spec)
    try:
        return trigger.create(settings)
    except NatterjackError:
        raise
    except Exception as error:  # a stranger's code may fail in any way
        msg = f"the trigger {spec.kind!r} cannot be made: {type(error).__name__}: {error}"
        raise PluginError(msg) from error


def _check_triggers(problems: _Problems, team: Team, agent: str, spec: AgentSpec, plugins: Plugins) -> None:
    buckets = {bucket_stream(context_bucket(name)) for name in ("", *team.buckets)}
    durables: dict[tuple[str, str], TriggerSpec | None] = {(INBOX, durable(agent, "inbox")): None}  # every agent has it
    for index, trigger in enumerate(spec.on):
        with problems.at(team.place(agent, "on")):
            if trigger in spec.on[:index]:
                msg = f"the trigger {trigger.kind!r} is there twice with the same settings; remove one"
                raise ConfigError(msg)
            for consumer in make_trigger(plugins.trigger(trigger.kind), trigger).consumers(agent):
                if durables.setdefault((consumer.stream, check_durable(consumer.name)), trigger) is not trigger:
                    msg = f"two triggers need one durable consumer, {consumer.name!r}; write them as one"
                    raise ConfigError(msg)
                if consumer.stream.startswith(CONTEXTS) and consumer.stream not in buckets:
                    msg = f"the trigger {trigger.kind!r} waits for keys of a bucket that the team has not."
                    raise ConfigError(msg + _make_bucket(consumer.stream.removeprefix(CONTEXTS), team))


def _check_peers(problems: _Problems, team: Team, agent: str, spec: AgentSpec, plugins: Plugins) -> None:
    for peer in spec.asks or ():
        with problems.at(team.place(agent, "asks")):
            if peer not in spec.cross_agents:
                _check_known(peer, team.agents)
    for peer, address in spec.cross_agents.items():
        scheme, has_scheme, _ = address.partition("://")
        with problems.at(team.place(agent, "cross_agents", peer)):
            if not has_scheme:
                _check_known(address, team.agents)
            elif is_foreign(address):
                split_foreign(address)
            elif scheme not in _NATS_SCHEMES:
                plugins.peer(scheme)


def _check_known(name: str, known: Iterable[str], what: str = "agent") -> None:
    if name not in known:
        msg = f"{name!r} is no {what} of the team.{nearest(name, known)}"
        raise ConfigError(msg)


def _check_keys(problems: _Problems, team: Team, place: Callable[[str], str], spec: AgentSpec | UserSpec) -> None:
    """Check that the buckets that somebody reads or writes are there."""
    for key, patterns in (("writes", spec.writes), ("reads", spec.reads)):
        for pattern in patterns or ():
            bucket, _ = split_keys(pattern)
            with problems.at(place(key)):
                if bucket and bucket not in team.buckets:
                    msg = f"{pattern!r} is in no bucket of the team.{_make_bucket(bucket, team)}"
                    raise ConfigError(msg)


def _make_bucket(name: str, team: Team) -> str:
    return nearest(name, team.buckets) or f" A table [buckets.{name}] makes one."


def _check_delays(spec: AgentSpec) -> None:
    for pattern in spec.delays:
        if spec.emits is not None and not any(matches(allowed, pattern) for allowed in spec.emits):
            msg = f"{pattern!r} is not among what it emits; add it to `emits`"
            raise ConfigError(msg)
    for one, other in combinations(widest(spec.delays), 2):
        if overlap(one, other):
            msg = f"{one!r} and {other!r} overlap, which the broker does not take; write one that covers both"
            raise ConfigError(msg)


def _check_result_event(spec: AgentSpec, event: str) -> None:
    if event == spec.result_event and event in spec.result_events:
        msg = f"{event!r} is both the result_event and among the result_events; remove one"
        raise ConfigError(msg)
    if spec.emits is not None and not any(matches(pattern, event) for pattern in spec.emits):
        msg = f"the result_event {event!r} is not among what it emits; add it to `emits`"
        raise ConfigError(msg)
