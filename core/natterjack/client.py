"""A team as seen from outside: what scripts, web applications and the command line use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from natterjack import subjects
from natterjack.acting import Acting, acting
from natterjack.approvals import Approvals
from natterjack.broker import running_url
from natterjack.bus import Bus
from natterjack.components import Entry, PeerScheme
from natterjack.context import AgentContext
from natterjack.control import Runs
from natterjack.conversations import named
from natterjack.errors import (
    BrokerError,
    ConfigError,
    DisconnectedError,
    NotProvisionedError,
    PayloadError,
    RequestTimeoutError,
    RunFailedError,
)
from natterjack.events import EventBus, authored
from natterjack.journal import CANCELLED, ENDINGS, StreamJournal, ending
from natterjack.messages import Answer, Answers, Envelope, Schedule, run_id
from natterjack.peers import ASK_TIMEOUT, AnswerStream, OnQuery, Peers
from natterjack.plugins import Plugins
from natterjack.record import stored_team
from natterjack.schedules import cancel, schedules
from natterjack.server import Server, named_server
from natterjack.service import AgentInfo, discover
from natterjack.tools import CALL_TIMEOUT, Tools
from natterjack.toolserver import ToolInfo, ToolSource

_RETRY_PAUSE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Run:
    """A run that was started by `inject_event`.

    Attributes:
        id: Its id.
        agent: Who handles it.
    """

    id: str
    agent: str
    _bus: Bus

    async def result(self, timeout: float = 600.0) -> Any:
        """Return what the handler returned, as soon as it has.

        Args:
            timeout: Seconds to wait.

        Raises:
            RunFailedError: It ended in a dead letter, or was cancelled; with the cause.
            RequestTimeoutError: It has not ended in time; it still may.
            PayloadError: It is done, but its result was no JSON, larger than 64 MiB, or is not kept any more.
            DisconnectedError: The connection was closed meanwhile.
        """
        try:
            async with asyncio.timeout(timeout) as limit:
                end = await self._ending()
        except TimeoutError as error:
            if not limit.expired():
                raise
            what = f"run {self.id} of {self.agent}"
            msg = f"{what} has not ended in {timeout:g} s; `natterjack journal show {self.agent} {self.id}` has more"
            raise RequestTimeoutError(what, timeout, msg) from error
        return self._outcome(await StreamJournal().attach(self._bus).whole(end))

    async def _ending(self) -> Entry:
        """Return the entry that ends the run, once there is one, and the server can be asked."""
        journal = StreamJournal().attach(self._bus)
        while True:
            try:
                async with journal.tail(self.agent, run=self.id, last=None) as entries:
                    async for entry in entries:
                        if entry.kind in ENDINGS and (end := await self._last_end(entry, journal)):
                            return end
            except BrokerError as error:
                if self._bus.closed.is_set():
                    raise DisconnectedError(self._bus.reason) from error
                if not error.retry:
                    raise
            await asyncio.sleep(_RETRY_PAUSE)

    async def _last_end(self, end: Entry, journal: StreamJournal) -> Entry | None:
        """Return the end of a run behind this one, if it was resumed and has ended again; what is done stays so."""
        entries = [] if end.kind == "done" else await journal.read(self.agent, self.id)
        return ending(entries) if len(entries) > end.index else end  # what is fed may be read a moment later

    def _outcome(self, entry: Entry) -> Any:
        data = entry.data if isinstance(entry.data, dict) else {}
        if entry.kind == CANCELLED:
            raise RunFailedError(self.id, f"{data.get('by')} cancelled it{_because(data)}")
        if entry.kind == "dead":
            raise RunFailedError(self.id, str(data.get("cause", "")))
        if "omitted" in data:
            msg = f"run {self.id} of {self.agent} is done, but its result could not be kept: {data['omitted']}"
            raise PayloadError(msg)
        return data.get("result")


def _because(data: Mapping[str, Any]) -> str:
    return f": {data['reason']}" if data.get("reason") else ""


class TeamClient:
    """Acts in a team as its operator, or as one of its users; serves nothing, and provisions nothing.

    Attributes:
        bus: Its connection.
        event_bus: Emits, publishes, subscribes.
        context: The shared context.
        journal: What all agents did: `entries`, `tail`.
        runs: Their runs: `cancel`, `resume`, `rerun`, `waiting`.
        approvals: What they ask humans: `waiting`, `answer`, `deny`.
    """

    def __init__(
        self,
        bus: Bus,
        context: AgentContext,
        buckets: Mapping[str, AgentContext] | None = None,
        peers: Peers | None = None,
        tools: Tools | None = None,
        acting: Acting | None = None,
    ) -> None:
        self._acting = acting or Acting()
        guards = self._acting.guards
        self._tools = tools or Tools(bus.principal, {}, guards)
        self._buckets, self._joining = dict(buckets or {}), asyncio.Lock()
        self.bus, self.context = bus, context
        self.journal, self.runs = StreamJournal().attach(bus), Runs(bus)
        self.event_bus = EventBus(bus, guards, lambda: context.revision)
        self.approvals = Approvals(self.event_bus, self.journal)
        self._peers = peers or Peers(bus, guards)
        self._known: set[str] = set()

    async def ask_peer(
        self,
        name: str,
        question: str,
        *,
        timeout: float = ASK_TIMEOUT,
        asker: str = "",
        conversation_id: str | None = None,
    ) -> Answer:
        """Ask one agent and return its answer.

        Args:
            name: The agent, or what a team file calls it.
            question: Text.
            timeout: Seconds; the peer knows it, and stops working when it is over.
            asker: For whom it asks, as the peer is told; by default for itself.
            conversation_id: A conversation between asker and peer, any text: a model agent goes on with it.

        Raises:
            PeerUnavailableError: Nobody serves that name; known within milliseconds.
            PeerTimeoutError: No answer in time.
            PeerBusyError: It is at its limit.
            PeerRefusedError: A guard or the broker refuses.
            PeerError: It failed; with its code and a safe message.
            InvalidNameError: The name is malformed.
            PayloadError: The question cannot be sent.
        """
        envelope = self._envelope()._replace(source=asker, conversation=named(conversation_id))
        return await self._peers.ask(name, question, timeout=timeout, envelope=envelope)

    def ask_stream(
        self,
        name: str,
        question: str,
        *,
        timeout: float = ASK_TIMEOUT,
        on_query: OnQuery | None = None,
        conversation_id: str | None = None,
    ) -> AnswerStream:
        """Ask one agent, and return its answer as chunks that come while it works.

        Args:
            name: The agent, or what a team file calls it.
            question: Text.
            timeout: Seconds for the whole answer.
            on_query: Answers what the agent asks back; without it the agent is told at once that nobody will.
            conversation_id: See `ask_peer`.

        Raises:
            InvalidNameError: The name is malformed.
            ConfigError: No plugin resolves its address.
            PayloadError: The question cannot be sent.
            PeerRefusedError: A guard refuses. All else is raised where the next chunk would come, as by `ask_peer`.
        """
        envelope = self._envelope()._replace(conversation=named(conversation_id))
        return self._peers.stream(name, question, timeout=timeout, envelope=envelope, on_query=on_query)

    async def broadcast(self, names: Iterable[str], question: str, *, timeout: float = ASK_TIMEOUT) -> Answers:
        """Ask several agents at once; a peer's fault raises nothing.

        Args:
            names: The agents.
            question: Text.
            timeout: Seconds, for all of them together.

        Returns:
            The answers that came, by name, with `.failures` for the others.

        Raises:
            InvalidNameError: A name is malformed; nobody was asked.
            ConfigError: No plugin resolves an address; nobody was asked.
            PayloadError: The question cannot be sent.
        """
        return await self._peers.broadcast(names, question, timeout=timeout, envelope=self._envelope())

    async def call_tool(
        self, tool: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = CALL_TIMEOUT
    ) -> Any:
        """Call a tool of a server that `connect(servers=…)` named, and return its result as JSON.

        Args:
            tool: `server.tool`.
            arguments: The tool's.
            timeout: Seconds.

        Raises:
            ConfigError: No server of this name was given. What the server raises, its plugin says.
        """
        return await self._tools.call(tool, arguments or {}, timeout=timeout, envelope=self._envelope())

    async def list_tools(self) -> Sequence[ToolInfo]:
        """Return the tools that may be called, of all servers that `connect(servers=…)` named."""
        return await self._tools.list()

    async def bucket(self, name: str) -> AgentContext:
        """Return a bucket beside the main context; it is followed from the first call on.

        Raises:
            NotProvisionedError: The team has no such bucket.
            RefusedError: The broker does not allow to read it.
        """
        async with self._joining:
            if name not in self._buckets:
                self._buckets[name] = await self._acting.follow(self.bus, subjects.check_name(name, "bucket name"))
        return self._buckets[name]

    async def close(self) -> None:
        """End what it follows; whoever made its connection closes that.

        Raises:
            NatterjackError: A context write that nobody awaited had failed.
        """
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._tools.close)
            for context in (self.context, *self._buckets.values()):
                closing.push_async_callback(context.close)

    def _envelope(self) -> Envelope:
        return Envelope(revision=self.context.revision)

    async def agents(self) -> list[AgentInfo]:
        """Return the agents that run now, on whatever machine.

        Raises:
            BrokerError: The server is away.
        """
        try:
            names = (await stored_team(self.bus)).agents if self.bus.server.attests else ()
        except NotProvisionedError:  # nobody has an account, so nobody is there to ask
            return []
        return await discover(self.bus, names)

    async def schedules(self) -> list[Schedule]:
        """Return when the broker will wake agents, and the events that it holds until they are due.

        Raises:
            BrokerError: The server is away.
        """
        return await schedules(self.bus)

    async def cancel_schedule(self, owner: str, name: str) -> None:
        """Cancel an event that is held, or a trigger's schedule: that until the team is provisioned again.

        Raises:
            InvalidNameError: It is no name.
            NotProvisionedError: There is none of this name.
            BrokerError: The server is away.
        """
        await cancel(self.bus, owner, name)

    async def inject_event(self, agent: str, event: Mapping[str, Any]) -> Run:
        """Give an event to one agent; `event["type"]` is its type, all of it its data.

        Returns:
            The run that will handle it.

        Raises:
            UnknownAgentError: The team has no such agent.
            NotProvisionedError: No team has been provisioned.
            InvalidNameError: The agent's name or the event's type is malformed.
            PayloadError: The event has no `type`, or cannot be sent.
            RefusedError: The broker refuses.
            StreamError: The agent's inbox is full; nothing was dropped.
        """
        subjects.check_name(agent)
        kind = event.get("type")
        if not isinstance(kind, str):
            msg = f"an event needs its 'type', e.g. {{'type': 'research.start', …}}; this one has {kind!r}"
            raise PayloadError(msg)
        if agent not in self._known:  # a misspelt name would store an event that nobody ever reads
            (await stored_team(self.bus)).agent(agent)
            self._known.add(agent)
        identity = self.bus.new_id()
        await self.event_bus.send("inject", f"{agent}.{kind}", dict(event), Envelope(), identity)
        return Run(run_id(subjects.INBOX, authored(identity, self.bus.author), agent, "inbox"), agent, self.bus)


def find_server(server: str | Server | None = None) -> Server:
    """Return the named server; by default that of `NATS_URL`, or else the embedded broker that runs in this folder.

    Raises:
        ConfigError: No server is named, and none runs in this folder.
    """
    found = server if isinstance(server, Server) else named_server(server)
    if found is None and (running := running_url()):
        found = Server(running)
    if found is None:
        msg = (
            "no server is named, and no broker runs in this folder; set NATS_URL, or name one, e.g."
            " natterjack.connect('nats://127.0.0.1:4222')"
        )
        raise ConfigError(msg)
    return found


@asynccontextmanager
async def connect(
    server: str | Server | None = None,
    *,
    name: str = subjects.OPERATOR,
    context: bool = True,
    cross_agents: Mapping[str, str] | None = None,
    servers: Mapping[str, ToolSource] | None = None,
) -> AsyncIterator[TeamClient]:
    """Join a running team from a program that is no agent.

    Example::

        async with natterjack.connect("nats://127.0.0.1:4222") as team:
            print(await team.ask_peer("researcher", "What is new?"))

    Args:
        server: Its URL; by default `NATS_URL`, or else the embedded broker that runs in this folder.
        name: As whom it acts: a user of the team, whose rights are checked; by default the operator.
        context: Whether to follow the shared context.
        cross_agents: Addresses of peers by the names it calls them.
        servers: Tool servers that it may call, by the names it calls them.

    Raises:
        ConfigError: No server is named, and none runs in this folder; or no plugin resolves an address.
        ConnectError: It cannot be reached, or refuses.
        NotProvisionedError: No team has been provisioned there.
        StartError: A tool server is not there.
    """
    schemes = _schemes(cross_agents or {})
    bus = await Bus.connect(find_server(server), principal=name)
    try:
        who = await acting(name, bus)
        shared = await who.follow(bus) if context else AgentContext()
        clients = {each: source.client(each, bus) for each, source in (servers or {}).items()}
        tools = Tools(name, clients, who.guards)
        peers = Peers(bus, who.guards, cross_agents, schemes)
        client = TeamClient(bus, shared, peers=peers, tools=tools, acting=who)
        try:
            await tools.start()
            yield client
        finally:
            await client.close()
    finally:
        for scheme in schemes.values():
            await scheme.close()
        await bus.close()


def _schemes(cross_agents: Mapping[str, str]) -> dict[str, PeerScheme]:
    """Return what resolves addresses with a scheme; plugins are loaded only where there are some."""
    if not any("://" in address for address in cross_agents.values()):
        return {}
    return {scheme: kind() for scheme, kind in Plugins.load().peers.items()}
