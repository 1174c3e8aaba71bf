"""What a plugin can bring: one abstract class per kind of component.

A component has a `name`, a pydantic `Config`, and says what it `needs`. Hooks return the classes; the kernel
makes the objects with `create`. Components are abstract classes and not protocols, because protocols with
attributes reject ordinary plugins under the type checkers.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from natterjack.clock import Clock
from natterjack.errors import ConfigError
from natterjack.messages import Answer, Event, Firing, PlainMessage, Query, Schedule
from natterjack.rights import Right, Rule, Verb
from natterjack.settings import Settings, read_settings
from natterjack.specs import ConsumerSpec, ScheduleSpec

if TYPE_CHECKING:
    from natterjack.admission import Admission
    from natterjack.peers import AnswerStream
    from natterjack.runs import RunContext


class Component(ABC):
    """Base of all components.

    Attributes:
        name: How a team file names it; unique per kind among all installed plugins.
        Config: Its settings, validated from the team file.
    """

    name: ClassVar[str] = ""

    class Config(Settings):
        """No settings."""

    config: Any

    def __init__(self, config: Any = None) -> None:
        self.config = config if config is not None else self.Config()

    @classmethod
    def create(cls, settings: Mapping[str, Any]) -> Self:
        """Make one from the settings of a team file.

        Raises:
            ConfigError: A setting is unknown, missing or of the wrong type.
        """
        return cls(read_settings(cls.Config, settings, f"{cls.name or cls.__name__}"))

    def needs(self, agent: str) -> list[Right]:
        """Return the rights the component needs when it works for this agent. Provisioning grants exactly these."""
        del agent
        return []


# Agents


class Agent(Component):
    """Works on events and answers questions. Override one of the two, or both.

    Example::

        class Counter(Agent):
            async def handle(self, event: Event, ctx: RunContext) -> str:
                count = await ctx.shared.update("count", lambda value: (value or 0) + event.data["by"])
                return f"now {count}"

    Attributes:
        version: Number of the calls that its handlers make (`ctx.step`, `ctx.sleep`, …), and of their order: raise it
            when they change. Runs that have begun keep theirs, as `ctx.version`.
    """

    version: ClassVar[int] = 1

    async def start(self) -> None:
        """Prepare, once, before the first event or question; an error here stops the start."""

    async def stop(self) -> None:
        """Let go of what `start` took, once, after the last."""

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        """Work on one event; what it returns is journaled. Called for each trigger.

        Raises:
            ConfigError: It has no `handle` of its own.
        """
        del ctx
        msg = f"{type(self).__name__} got an event ({event.type}) but has no `async def handle(self, event, ctx)`"
        raise ConfigError(msg)

    def answer(self, question: str, ctx: RunContext) -> Awaitable[Any] | AsyncIterator[Any]:
        """Answer one question. Called for each ask; an `async def`, or an async generator of chunks.

        The chunks stream to who asks with `ask_stream`, and are joined for who asks with `ask_peer`.

        Raises:
            ConfigError: It has no `answer` of its own.
        """
        del question, ctx
        msg = f"{type(self).__name__} was asked but has no `async def answer(self, question, ctx)`"
        raise ConfigError(msg)


# Triggers


class TriggerContext(Protocol):
    """What a running trigger may do.

    Attributes:
        agent: Whom it wakes.
        log: Its logger.
        clock: The time; a trigger that waits with `ctx.clock.sleep` can be tested without waiting.
    """

    agent: str
    log: logging.Logger
    clock: Clock

    @property
    def connected(self) -> bool:
        """Whether the broker can be reached now; what is done meanwhile waits for it."""

    @property
    def admission(self) -> Admission:
        """Tells a trigger that is a door whom it may let in; those ask who show a token."""

    async def fire(
        self, data: Any = None, *, type: str | None = None, id: str | None = None, lasting: bool = False
    ) -> int:
        """Store an event for this agent; it is then handled with attempts and dead letters like any other.

        Args:
            data: JSON data of the event; or a message that `listen` brought, whose payload and headers are stored as
                they are, without those that begin with `Nats-`.
            type: Event type. By default the trigger's name; of a message its subject, where that can be a type (else
                it is in the header `Natterjack-Subject`).
            id: Deduplication id, for what may fire twice within two minutes.
            lasting: Whether the id counts for as long as a journal is kept, 30 days; that costs a look.

        Returns:
            The sequence in the inbox, once stored; 0 where the agent has begun with an event of this id before.

        Raises:
            InvalidNameError: The type is malformed.
            PayloadError: The data cannot be sent.
            StreamError: The inbox is full; nothing was dropped.
        """

    async def ask(self, question: str, *, caller: str, timeout: float = 60.0) -> Answer:
        """Ask the agent, or a replica, within `timeout` seconds, for somebody who has no connection to the broker.

        Guards decide whether the caller may ask, and the agent sees it as `ctx.caller`. Raises as `ask_peer` does.
        """

    def ask_stream(self, question: str, *, caller: str, timeout: float = 60.0) -> AnswerStream:
        """Return the answer as chunks that come within `timeout` seconds; see `ask` and `TeamClient.ask_stream`."""

    def ready(self) -> None:
        """Tell that the trigger can be reached from now on; for one whose class says `tells_ready`."""

    async def consume(self, spec: ConsumerSpec) -> None:
        """Handle what a durable consumer delivers, until cancelled; raise `NotProvisionedError` if there is none."""

    async def follow(self, spec: ScheduleSpec, callback: Callable[[Firing], Awaitable[object]]) -> None:
        """Call `callback` for each firing of a schedule that `schedules` returns, until cancelled.

        Of an agent's replicas one gets each. It counts as taken once the callback returns; after a failure, or with
        its process, it comes again. So the callback should only fire, with an id.

        Raises:
            NotProvisionedError: It has not been provisioned.
        """

    async def schedule(self, spec: ScheduleSpec) -> Schedule | None:
        """Return how a schedule stands; None if it was cancelled, or has fired at its one moment."""

    async def listen(self, pattern: str, callback: Callable[[PlainMessage], Awaitable[object]]) -> None:
        """Call `callback` with what any program publishes on subjects that are none of Natterjack's, until cancelled.

        One message after another; of an agent's replicas one gets each. While a callback fails because the broker is
        away or the inbox is full, it is called again, and what comes meanwhile waits (up to 128 MiB; what is beyond is
        lost, and an error in the log). For any other failure the message becomes a dead letter.

        Args:
            pattern: Of subjects; the trigger's `needs` must have `Right("listen", pattern)`.
            callback: Typically `ctx.fire`.

        Raises:
            PatternError: The pattern is malformed, or could match a subject of Natterjack's or of the server's.
            RefusedError: The broker does not allow it.
        """


class Trigger(Component):
    """Wakes an agent.

    Attributes:
        tells_ready: Whether `run` calls `ctx.ready()` once it can be reached, e.g. at a port. The start of its agent
            then waits for that (5 s), and what `run` fails with before is an error of the start.
        drains: Whether `run`, once cancelled, passes on what it has asked and is still answered. It has as long for
            that as its agent has for what runs; then it is cancelled once more.

    Example::

        class Tick(Trigger):
            name: ClassVar = "tick"

            class Config(BaseModel):
                every: float  # seconds

            async def run(self, ctx: TriggerContext) -> None:
                while True:
                    await ctx.clock.sleep(self.config.every)
                    await ctx.fire({"every": self.config.every})
    """

    tells_ready: ClassVar[bool] = False
    drains: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Name of this trigger within its agent: a part of durable names and dead letters' subjects."""
        return self.name

    def schedules(self, agent: str) -> list[ScheduleSpec]:
        """Return the schedules that provisioning must write."""
        del agent
        return []

    def consumers(self, agent: str) -> list[ConsumerSpec]:
        """Return the durable consumers that provisioning must create; by default those of its schedules."""
        return [spec.consumer for spec in self.schedules(agent)]

    def needs(self, agent: str) -> list[Right]:
        """Return the rights to its consumers and schedules; override to add others."""
        schedules = [spec.right for spec in self.schedules(agent)]
        return [spec.right for spec in self.consumers(agent)] + schedules

    def accepts(self, event: Event, agent: str) -> bool:
        """Tell whether to wake an agent for an event that a consumer delivers; what it refuses is acked without a run.

        Raises:
            PayloadError: It cannot be told; the event becomes a dead letter.
        """
        del event, agent
        return True

    @abstractmethod
    async def run(self, ctx: TriggerContext) -> None:
        """Fire until cancelled. Returning or raising ends the agent's process with an error."""


class StreamTrigger(Trigger):
    """Base of triggers that handle what a durable consumer delivers; they only say which, in `consumers`."""

    async def run(self, ctx: TriggerContext) -> None:
        """Handle until cancelled."""
        (spec,) = self.consumers(ctx.agent)
        await ctx.consume(spec)


# Guards


class Guard(Component):
    """Decides, locally and at once, whether a principal may do something. A refusal of any guard wins.

    Example::

        class OfficeHours(Guard):
            name: ClassVar = "office-hours"

            def refuse(self, principal: str, verb: Verb, what: str) -> str | None:
                return None if 9 <= datetime.now().hour < 17 else "come back between 9 and 17 h"
    """

    def load(self, rules: Sequence[Rule], governed: frozenset[tuple[str, Verb]]) -> None:
        """Take the team's rules, before anything runs.

        Args:
            rules: What is allowed.
            governed: Pairs of principal (`*`: everyone) and verb that are refused unless a rule allows; all else
                is open.
        """
        del rules, governed

    @abstractmethod
    def refuse(self, principal: str, verb: Verb, what: str) -> str | None:
        """Return why not, with who may, or None when it may be done."""


# Journals


@dataclass(frozen=True, slots=True)
class Entry:
    """One journal entry.

    Attributes:
        agent: Whose.
        run: Its run.
        index: Place in its run, 1 first.
        kind: `started`, `failed`, `step`, `done`, `dead`, … (see `core/README.md`), or the agent's own word.
        data: JSON data.
        time: Unix seconds.
    """

    agent: str
    run: str
    index: int
    kind: str
    data: Any
    time: float


class Journal(Component):
    """A further place to which an agent's journal entries go. The stream is always the first.

    Example::

        class LogJournal(Journal):
            name: ClassVar = "log"

            async def write(self, entry: Entry) -> None:
                logging.getLogger("journal").info("%s", entry)
    """

    async def open(self) -> None:
        """Prepare, once, before the first entry; an error here stops the start."""

    @abstractmethod
    async def write(self, entry: Entry) -> None:
        """Keep one entry that the stream already has."""

    async def close(self) -> None:
        """Let go of files and connections."""


# Peers


class PeerScheme(Component):
    """Asks agents that live behind another kind of address, `<name>://…`."""

    @abstractmethod
    async def ask(self, address: str, question: str, timeout: float) -> Answer:
        """Ask the agent at an address, within `timeout` seconds; raise `PeerError`, or the kind of it that fits."""

    async def stream(
        self, address: str, question: str, timeout: float, on_query: Callable[[Query], Awaitable[str]] | None
    ) -> AsyncGenerator[str, None]:
        """Ask, and yield the answer in chunks; here in one, so override it where they come bit by bit.

        Args:
            address: Whom.
            question: Text.
            timeout: Seconds.
            on_query: Answers what the agent asks back; None: nobody does.
        """
        del on_query
        yield await self.ask(address, question, timeout)

    async def close(self) -> None:
        """Let go of connections."""


Kind = Literal["agent", "trigger", "tool server", "guard", "journal", "peer", "middleware", "command"]
