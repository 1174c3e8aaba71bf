"""What an agent works with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from natterjack.bus import Bus
from natterjack.clock import Clock
from natterjack.components import Journal
from natterjack.context import AgentContext, SharedContext
from natterjack.errors import ConfigError, RefusedError, nearest
from natterjack.events import EventBus
from natterjack.journal import StreamJournal
from natterjack.middleware import Middleware
from natterjack.peers import Peers
from natterjack.quota import Quota
from natterjack.subjects import ANYONE
from natterjack.team import AgentSpec
from natterjack.tools import Tools
from natterjack.waits import Waits


@dataclass(frozen=True, slots=True)
class Facilities:
    """What an agent works with; one per agent and process."""

    agent: str
    bus: Bus
    events: EventBus
    peers: Peers
    context: AgentContext
    journal: StreamJournal
    sinks: Sequence[Journal]
    middleware: Sequence[Middleware]
    spec: AgentSpec
    buckets: Mapping[str, AgentContext]
    version: int
    clock: Clock
    waits: Waits
    tools: Tools
    topics: Sequence[str]
    quotas: tuple[Quota, Quota] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "quotas", (Quota(self.bus, self.agent), Quota(self.bus, ANYONE)))

    def shared(self) -> SharedContext:
        """Return the main context as this agent has it."""
        return self.context.acting_as(self.agent, self.bus, self.spec.keys_in("", "read"))

    def bucket(self, name: str) -> SharedContext:
        """Return a bucket as this agent has it; see `RunContext.bucket`."""
        context = self.buckets.get(name)
        if context is None:
            msg = f"the team has no bucket {name!r}.{nearest(name, self.buckets)}"
            raise ConfigError(msg)
        reads, writes = (self.spec.keys_in(name, verb) for verb in ("read", "write"))
        if not reads and not writes:
            msg = f"{self.agent!r} may use nothing in the bucket {name!r}: neither its `reads` nor its `writes` name it"
            raise RefusedError(msg)
        return context.acting_as(self.agent, self.bus, reads)
