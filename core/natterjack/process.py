"""`AgentProcess`: one agent as a program describes it, and what becomes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from natterjack import subjects
from natterjack.builtin.agents import make_agent, target_of
from natterjack.components import Agent, Journal, Trigger
from natterjack.errors import ConfigError, PluginError
from natterjack.plugins import Plugins
from natterjack.settings import explain
from natterjack.team import AgentSpec, TriggerSpec, make_trigger
from natterjack.toolserver import ToolSource

MODEL_KIND = "llm"
"""The kind that an `agent_config` without `kind` means."""


class AgentProcess:
    """One agent of a runtime.

    Example::

        AgentProcess(name="counter", agent=Counter(), triggers=[EventTrigger("count.add")])

    Args:
        name: Its name, unique in the team.
        agent: An `Agent`, its class, or an `async def` that takes a question.
        agent_config: Instead of `agent`: its kind and settings, as in a team file. Without `kind` it is a model
            agent (`llm`).
        triggers: What wakes it.
        journal: Journals beside the stream.
        emits: Patterns of events it may emit; None: any, in open mode.
        delays: Patterns of events that it may emit with a delay, among `emits`.
        replays: Patterns of stored events it may read; None: any, in open mode.
        waits: Patterns of events for which its runs may wait (`ctx.wait_for`).
        publishes: Patterns of topics it may publish to; None: any.
        asks: Agents it may ask; None: any.
        result_event: Type of the event that carries what `handle` returned.
        result_events: Types of further such events, each with the condition under which it is emitted, e.g.
            `{"analysis.approved": "result.quality >= 3"}`; a condition may also name `data`, `type`, `source`, `id`
            and `time` of the event that was handled.
        ordered_by: Dotted path of a field of the data, e.g. `order_id`: of one trigger, the events with one value of
            it are handled one after another, in the order of their stream; those that lack it wait for no other.
        cross_agents: Addresses of peers by the names it calls them; also as a key of `agent_config`.
        servers: Where tool servers are that it may call, by the names it calls them; also as a key of `agent_config`.
        concurrency: Events and questions it works on at once.
        max_attempts: Failed handlings after which an event is dead.
        retry_delay: Seconds before the second attempt; doubles up to 60.
        timeout: Seconds one handling may take.

    Raises:
        ConfigError: Something of it is wrong, at once.
        InvalidNameError: The name is malformed.
    """

    def __init__(
        self,
        name: str,
        *,
        agent: Agent | type[Agent] | Callable[..., Awaitable[Any]] | None = None,
        agent_config: Mapping[str, Any] | None = None,
        triggers: Sequence[Trigger] = (),
        journal: Journal | Sequence[Journal] | None = None,
        emits: Sequence[str] | None = None,
        delays: Sequence[str] = (),
        replays: Sequence[str] | None = None,
        waits: Sequence[str] = (),
        publishes: Sequence[str] | None = None,
        asks: Sequence[str] | None = None,
        result_event: str | None = None,
        result_events: Mapping[str, str] | None = None,
        ordered_by: str | None = None,
        cross_agents: Mapping[str, str] | None = None,
        servers: Mapping[str, ToolSource] | None = None,
        concurrency: int = 16,
        max_attempts: int = 5,
        retry_delay: float = 1.0,
        timeout: float = 600.0,
    ) -> None:
        self.name = subjects.check_name(name)
        if (agent is None) == (agent_config is None):
            msg = f"agent {name!r} needs either `agent` or `agent_config`"
            raise ConfigError(msg)
        self.agent = None if agent is None else make_agent(agent, {}, f"agent {name!r}")
        self.triggers = list(triggers)
        for trigger in self.triggers:
            if not isinstance(trigger, Trigger):
                msg = f"agent {name!r}: {trigger!r} is no trigger; write e.g. EventTrigger('research.complete')"
                raise ConfigError(msg)
        self.journals = [journal] if isinstance(journal, Journal) else list(journal or ())
        self.servers = dict(servers or {})
        self.spec = self._spec(
            self._without_servers(agent_config),
            emits=emits,
            delays=delays,
            replays=replays,
            waits=tuple(waits),
            publishes=publishes,
            asks=asks,
            result_event=result_event,
            result_events=dict(result_events or {}),
            ordered_by=ordered_by,
            cross_agents=_peers(agent_config, cross_agents),
            concurrency=concurrency,
            max_attempts=max_attempts,
            retry_delay=retry_delay,
            timeout=timeout,
        )

    def _without_servers(self, agent_config: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Take the tool servers out of a configuration: they hold secrets, and what cannot be stored."""
        given = (agent_config or {}).get("servers")
        if (
            agent_config is None
            or not isinstance(given, Mapping)
            or not all(hasattr(e, "client") for e in given.values())
        ):
            return agent_config
        self.servers |= given
        return {key: value for key, value in agent_config.items() if key != "servers"}

    def _spec(self, agent_config: Mapping[str, Any] | None, **own: Any) -> AgentSpec:
        described = {"kind": "python", "options": {"target": target_of(self.agent)}}
        if agent_config is not None:
            options = {key: value for key, value in agent_config.items() if key != "cross_agents"}
            described = {"kind": options.pop("kind", MODEL_KIND), "options": options}
        on = [
            TriggerSpec(kind=t.name, settings=t.config.model_dump(mode="json", exclude_unset=True))
            for t in self.triggers
        ]
        try:
            return AgentSpec.model_validate({**described, "on": on, **own})
        except ValidationError as error:
            msg = f"agent {self.name!r}: {explain(error, AgentSpec)}"
            raise ConfigError(msg) from error

    def make_agent(self, plugins: Plugins) -> Agent:
        """Return the agent itself.

        Raises:
            PluginError: No plugin brings its kind.
            ConfigError: It cannot be imported, or a setting is wrong.
        """
        if self.agent is not None:
            return self.agent
        try:
            kind, settings = self.spec.component
            return plugins.agent(kind).create(settings)
        except (PluginError, ConfigError) as error:
            msg = f"agent {self.name!r}: {error}"
            raise (PluginError if isinstance(error, PluginError) else ConfigError)(msg) from error
        except Exception as error:  # a user's class may fail in any way
            msg = f"agent {self.name!r} cannot be made: {type(error).__name__}: {error}"
            raise ConfigError(msg) from error


def _peers(agent_config: Mapping[str, Any] | None, own: Mapping[str, str] | None) -> Any:
    """Return the addresses of peers from both places where they may be given."""
    given = (agent_config or {}).get("cross_agents", {})
    return {**given, **(own or {})} if isinstance(given, Mapping) else given  # what is none, the spec tells


class TeamProcess(AgentProcess):
    """One agent as a team file describes it, or as its team is stored.

    Args:
        name: Its name.
        spec: Its table.
        plugins: What is installed.
    """

    def __init__(self, name: str, spec: AgentSpec, plugins: Plugins) -> None:
        self.name, self.spec, self.agent, self.servers = name, spec, None, {}
        self.triggers = [make_trigger(plugins.trigger(each.kind), each) for each in spec.on]
        self.journals = [plugins.journal(each).create({}) for each in spec.journal if each != "stream"]
