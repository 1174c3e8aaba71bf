"""What the agents and tool servers of a team need: triggers, rights, and the permissions that grant these."""

from __future__ import annotations

from natterjack import addresses
from natterjack.builtin import own_triggers
from natterjack.components import Trigger
from natterjack.plugins import Plugins
from natterjack.rights import Permissions, Right, permissions
from natterjack.server import Server
from natterjack.team import AgentSpec, Team, check_team, make_trigger


def enforced(team: Team, server: Server) -> Team:
    """Return a team as a server has it: where that attests who sends, what an agent does not declare is denied."""
    return team.closed() if server.attests else team


def agent_triggers(spec: AgentSpec, plugins: Plugins) -> list[Trigger]:
    """Return the triggers of an agent, its inbox first."""
    return [*own_triggers(spec.waits), *(make_trigger(plugins.trigger(trigger.kind), trigger) for trigger in spec.on)]


def agent_needs(name: str, spec: AgentSpec, plugins: Plugins) -> list[Right]:
    """Return the rights an agent needs to run: its declared authority, and what its components need."""
    needs = [Right("serve", name), Right("journal", name), Right("bury", name)]
    declared = {"emit": spec.allowed("emit"), "publish": spec.publishes, "write": spec.writes, "read": spec.reads}
    for verb, patterns in declared.items():
        needs += [Right(verb, pattern) for pattern in ((">",) if patterns is None else patterns)]  # type: ignore[arg-type]
    needs += [Right("emit", event) for event in spec.result_types]
    needs += [Right("replay", pattern) for pattern in spec.replays or ()]
    needs += [Right("delay", name)] if spec.delays else []
    foreign = [address for address in spec.cross_agents.values() if addresses.is_foreign(address)]
    needs += [Right("ask", peer) for peer in (("*", *foreign) if spec.asks is None else spec.allowed("ask") or ())]
    for trigger in agent_triggers(spec, plugins):
        needs += trigger.needs(name)
    kind, settings = spec.component
    needs += plugins.agent(kind).create(settings).needs(name)
    for around in (*plugins.middleware.values(), *plugins.peers.values()):
        needs += around().needs(name)
    return sorted(set(needs))


def agent_rights(team: Team, plugins: Plugins | None = None) -> dict[str, list[Right]]:
    """Return what each agent, tool server and user of a team may do, and no more; but for operators, who may all.

    Args:
        team: The team.
        plugins: Where its components come from; the installed plugins by default.

    Raises:
        ConfigError: The team, or a setting of a component, is wrong.
        PluginError: One is not installed.
    """
    plugins = plugins or Plugins.load()
    check_team(team, plugins)
    none = {"writes": ()} if any(spec.writes is not None for spec in team.agents.values()) else {}
    granted = {
        name: [Right("provide", name), *plugins.tool_server(spec.kind).create(spec.options).needs(name)]
        for name, spec in team.tools.items()
    }
    for name, spec in team.agents.items():  # where somebody declares writes, who declares none may write none
        own = spec if spec.writes is not None else spec.model_copy(update=none)
        granted[name] = [*agent_needs(name, own, plugins), *team.calls(name)]
    for name, user in team.users.items():
        granted |= {} if user.operator else {name: [*user.granted(), *team.calls(name)]}
    return granted


def agent_permissions(team: Team, plugins: Plugins | None = None, *, attested: bool = False) -> dict[str, Permissions]:
    """Return the same as narrow NATS permissions; see `agent_rights`, and `permissions` for `attested`."""
    granted = agent_rights(team, plugins)
    return {name: permissions(name, rights, attested=attested) for name, rights in granted.items()}
