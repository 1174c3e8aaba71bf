"""The runtime: agents hosted in this process, on a broker that it finds or brings along."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from natterjack import subjects
from natterjack.broker import Broker, embed
from natterjack.bus import Bus
from natterjack.client import TeamClient
from natterjack.clock import Clock
from natterjack.context import AgentContext
from natterjack.control import Runs
from natterjack.errors import ConfigError, NatterjackError, StartError, described
from natterjack.events import EventBus
from natterjack.guards import Guards
from natterjack.host import AgentHost, Place
from natterjack.journal import StreamJournal
from natterjack.needs import enforced
from natterjack.plugins import Plugins
from natterjack.process import AgentProcess, TeamProcess
from natterjack.provision import provision
from natterjack.record import stored_team
from natterjack.server import Server, named_server
from natterjack.team import Team, TriggerSpec
from natterjack.toolhost import ToolHost

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger("natterjack.runtime")

STOP_TIMEOUT = 10.0
"""Seconds a runtime gives running work when it stops."""


def _as_operator(method: Callable[Concatenate[TeamClient, P], R]) -> Callable[Concatenate[AgentRuntime, P], R]:
    """Return a method of a runtime that calls one of its client."""

    @wraps(method)
    def call(self: AgentRuntime, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(self._running, *args, **kwargs)

    return call


class AgentRuntime:
    """Hosts agents in this process.

    Example::

        runtime = AgentRuntime()
        runtime.add_process(AgentProcess(name="echo", agent=echo))
        async with runtime:
            print(await runtime.ask_peer("echo", "hello"))

    What needs a team that runs (`event_bus`, `ask_peer`, …) raises `ConfigError` before the start and after the stop.

    Args:
        server: URL of a server; by default `NATS_URL`, or else an embedded one.
        context: The shared context; an empty one by default.
        buckets: Confidential areas beside it, by name: only those may read and write there whom the permissions of
            that `AgentContext` name.
        name: The team's name.
        store: Folder of the embedded broker's data; `.natterjack` by default.
        clock: The time for its triggers; the real one by default.
    """

    def __init__(
        self,
        server: str | Server | None = None,
        *,
        context: AgentContext | None = None,
        buckets: Mapping[str, AgentContext] | None = None,
        name: str = "team",
        store: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.context = context if context is not None else AgentContext()
        self.buckets = {subjects.check_name(each, "bucket name"): own for each, own in (buckets or {}).items()}
        self.name = subjects.check_name(name, "team name")
        self._server, self._store, self._clock = server, store, clock
        self._processes: dict[str, AgentProcess] = {}
        self._hosts: list[AgentHost] = []
        self._tools: list[ToolHost] = []
        self._broker: Broker | None = None
        self._bus: Bus | None = None
        self._client: TeamClient | None = None
        self._lock = asyncio.Lock()
        self._principal = subjects.OPERATOR

    def add_process(self, process: AgentProcess) -> None:
        """Add an agent, before the start.

        Raises:
            ConfigError: There is one of that name, or the runtime runs already.
        """
        if process.name in self._processes:
            msg = f"this runtime already has an agent {process.name!r}; names are unique in a team"
            raise ConfigError(msg)
        if self._client is not None:
            msg = f"agent {process.name!r} comes too late: add it before the start"
            raise ConfigError(msg)
        self._processes[process.name] = process

    def choose_server(self, server: Server | None, principal: str | None = None) -> Server | None:
        """Use this server instead of its own, from before the start; return the choice, None for an embedded one.

        Args:
            server: Where; None leaves it.
            principal: Who provisions there, and acts for the team; None leaves it, at first the operator.
        """
        self._principal = principal or self._principal
        self._server = server or self._server
        return self._server if isinstance(self._server, Server) else named_server(self._server)

    @property
    def team(self) -> Team:
        """The team that these agents make."""
        specs = {name: process.spec.model_copy(update=self._keys(name)) for name, process in self._processes.items()}
        return Team(name=self.name, agents=specs, buckets={name: {} for name in self.buckets})

    def _keys(self, agent: str) -> dict[str, tuple[str, ...]]:
        """Return what the permissions of the contexts come to in an agent's table."""
        found: dict[str, tuple[str, ...]] = {}
        for key, attribute in (("writes", "write_permissions"), ("reads", "read_permissions")):
            main = getattr(self.context, attribute)
            if main is not None or self.buckets:
                beside = {name: getattr(own, attribute) or {} for name, own in self.buckets.items()}
                inside = [f"{name}/{each}" for name, own in beside.items() for each in own.get(agent, ())]
                found[key] = (*((">",) if main is None else main.get(agent, ())), *inside)
        return found

    async def start_all(self) -> None:
        """Find or start a broker, provision, and start every agent. Starting twice is fine.

        Raises:
            StartError: Something cannot start: it names the agent and the cause, and nothing is left running.
        """
        async with self._lock:
            if self._client is not None:
                return
            try:
                await self._start()
            except BaseException as error:
                try:
                    await self._stop(0)
                except NatterjackError:
                    log.exception("what had been started did not stop cleanly")
                if isinstance(error, Exception) and not isinstance(error, StartError):
                    raise StartError(described(error)) from error
                raise

    async def _start(self) -> None:
        plugins = Plugins.load()
        for process in self._processes.values():
            for trigger in process.triggers:
                plugins.triggers.setdefault(trigger.name, type(trigger))
        server = await self._find_server()
        self._bus = await Bus.connect(server, principal=self._principal)
        self._bus.operates = True
        team = enforced(self.team, self._bus.server)
        triggers = {name: process.triggers for name, process in self._processes.items()}
        await provision(self._bus, team, plugins, context=self.context, buckets=self.buckets, triggers=triggers)
        await self.context.attach(self._bus)
        for name, bucket in self.buckets.items():
            await bucket.attach(self._bus, name)
        guards = Guards.load(team.rules(), team.governed(), plugins)
        if self.context.write_permissions is None:
            self.context.guards = guards
        for bucket in self.buckets.values():
            bucket.guards = guards
        agents = {name: process.make_agent(plugins) for name, process in self._processes.items()}
        place = Place(team, plugins, guards, self.context, self.buckets, self._clock)
        for name in team.tools:
            self._tools.append(ToolHost(name, team, plugins, await Bus.connect(server, principal=name)))
        await _start_together(self._tools)
        for name, process in self._processes.items():
            bus = await Bus.connect(server, principal=name)  # last: nothing that can fail may come after it
            made = (agents[name], process.triggers, process.journals)
            self._hosts.append(AgentHost(name, *made, place, bus, servers=process.servers))
        await _start_together(self._hosts)
        self._client = TeamClient(self._bus, self.context, buckets=self.buckets)

    async def _find_server(self) -> Server:
        found = self.choose_server(None)
        if found is None:
            self._broker = await embed(self._store)
            found = Server(self._broker.url)
        return found

    async def wait(self) -> None:
        """Return once the runtime is stopped; raise when an agent or the broker cannot go on.

        Raises:
            StartError: With the agent and the cause.
            ConfigError: It does not run.
        """
        bus = self._running.bus
        tasks = [asyncio.create_task(host.failed()) for host in self._hosts]
        tasks += [asyncio.create_task(host.failed()) for host in self._tools]
        if self._broker is not None:
            tasks.append(asyncio.create_task(_broker_lost(self._broker)))
        tasks.append(asyncio.create_task(_connection_lost(bus)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._bus is bus:
                raise next(task for task in tasks if task in done).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop_all(self, timeout: float = STOP_TIMEOUT) -> None:
        """Drain every agent within `timeout` seconds, then disconnect; nothing is left running.

        Raises:
            NatterjackError: A context write that nobody awaited had failed.
        """
        async with self._lock:
            await self._stop(timeout)

    async def _stop(self, timeout: float) -> None:
        hosts, self._hosts, self._client = self._hosts, [], None
        tools, self._tools = self._tools, []
        bus, self._bus = self._bus, None
        broker, self._broker = self._broker, None
        try:
            await _stop_together(hosts, timeout)
            await _stop_together(tools, timeout)  # agents need them to the end
            if bus is not None:
                async with AsyncExitStack() as closing:
                    for context in (self.context, *self.buckets.values()):
                        closing.push_async_callback(context.close)
        finally:
            if bus is not None:
                await bus.close()
            if broker is not None:
                await broker.stop()

    async def __aenter__(self) -> Self:
        await self.start_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_all()

    # What the operator does

    @property
    def _running(self) -> TeamClient:
        if self._client is None:
            msg = "the runtime does not run yet: `await runtime.start_all()`, or use `async with runtime:`"
            raise ConfigError(msg)
        return self._client

    @property
    def event_bus(self) -> EventBus:
        """Emits and publishes as the operator."""
        return self._running.event_bus

    @property
    def journal(self) -> StreamJournal:
        """What all agents did: `entries`, `tail`."""
        return self._running.journal

    @property
    def runs(self) -> Runs:
        """The agents' runs: `cancel`, `resume`, `waiting`."""
        return self._running.runs

    @property
    def server(self) -> Server:
        """Where it is connected."""
        return self._running.bus.server

    ask_peer = _as_operator(TeamClient.ask_peer)
    ask_stream = _as_operator(TeamClient.ask_stream)
    broadcast = _as_operator(TeamClient.broadcast)
    agents = _as_operator(TeamClient.agents)
    inject_event = _as_operator(TeamClient.inject_event)


async def _stop_together(hosts: Sequence[AgentHost | ToolHost], timeout: float) -> None:
    results = await asyncio.gather(*(host.stop(timeout) for host in hosts), return_exceptions=True)
    for host, result in zip(hosts, results, strict=True):
        if isinstance(result, BaseException):
            log.error("%r did not stop cleanly", host.name, exc_info=result)


async def _start_together(hosts: Sequence[AgentHost | ToolHost]) -> None:
    """Start all or none: when one cannot, those that are still starting are stopped."""
    try:
        async with asyncio.TaskGroup() as group:
            for host in hosts:
                group.create_task(host.start())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__


async def _connection_lost(bus: Bus) -> NatterjackError:
    await bus.closed.wait()
    return StartError(f"the runtime cannot go on: {bus.reason}")


async def _broker_lost(broker: Broker) -> NatterjackError:
    return StartError(await broker.wait_lost())


class TeamRuntime(AgentRuntime):
    """Hosts all agents of a team file in this process.

    Args:
        team: The team, as read from its file.
        server: Where it is provisioned.
        plugins: What is installed.
    """

    def __init__(self, team: Team, server: Server, plugins: Plugins) -> None:
        buckets = {name: AgentContext(state) for name, state in team.buckets.items()}
        super().__init__(server, context=AgentContext(team.context), buckets=buckets, name=team.name)
        self._team = team
        for name, spec in team.agents.items():
            self.add_process(TeamProcess(name, spec, plugins))

    @property
    def team(self) -> Team:
        """The team as it is written."""
        return self._team


async def start_agent(
    name: str,
    server: Server,
    *,
    plugins: Plugins | None = None,
    clock: Clock | None = None,
    doors: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[AgentHost, AgentContext]:
    """Start one agent of the team that is provisioned on a server, with narrow rights only.

    Args:
        name: The agent.
        server: Where its team is provisioned.
        plugins: Where its components come from; the installed plugins by default.
        clock: The time for its triggers; the real one by default.
        doors: Settings of triggers by their kind, over those that its table has; others are added. They must be of
            kinds that need no rights.

    Raises:
        NotProvisionedError: No team has been provisioned there.
        UnknownAgentError: The team has no such agent.
        ConfigError: The agent's table is wrong.
        StartError: It cannot start.
    """
    bus = await Bus.connect(server, principal=subjects.check_name(name))
    context = AgentContext()
    closing: list[AgentContext] = []
    try:
        team = await stored_team(bus)
        spec, plugins = team.agent(name), plugins or Plugins.load()
        context.guards = Guards.load(team.rules(), team.governed(), plugins)
        await context.attach(bus, reads=spec.keys_in("", "read"))
        buckets = {each: AgentContext() for each in team.buckets}
        for each, bucket in buckets.items():
            reads, bucket.guards = spec.keys_in(each, "read"), context.guards
            if reads or spec.keys_in(each, "write"):
                closing.append(bucket)
                await bucket.attach(bus, each, reads=reads)
        process = TeamProcess(name, spec.model_copy(update={"on": opened(spec.on, doors or {})}), plugins)
        place = Place(team, plugins, context.guards, context, buckets, clock)
        agent = process.make_agent(plugins)
        host = AgentHost(name, agent, process.triggers, process.journals, place, bus, closing=closing)
        await host.start()
    except BaseException:
        for begun in (context, *closing):
            await begun.close()
        await bus.close()
        raise
    return host, context


def opened(on: Sequence[TriggerSpec], doors: Mapping[str, Mapping[str, Any]]) -> tuple[TriggerSpec, ...]:
    """Return an agent's triggers with other settings, and those that are added."""
    changed = [each.model_copy(update={"settings": {**each.settings, **doors.get(each.kind, {})}}) for each in on]
    added = doors.keys() - {each.kind for each in on}
    return (*changed, *(TriggerSpec(kind=kind, settings=dict(doors[kind])) for kind in sorted(added)))
