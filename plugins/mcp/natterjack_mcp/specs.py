"""Where a tool server is, for `AgentProcess(servers={…})`."""

from __future__ import annotations

from dataclasses import dataclass, field

from natterjack import Bus, ToolClient, ToolSubjects
from natterjack_mcp.client import NatsTools


@dataclass(frozen=True, slots=True)
class NatsServerSpec:
    """A tool server on the team's own NATS server.

    Attributes:
        server: Its name there.
        bearer_token: What the agent shows.

    Raises:
        InvalidNameError: The name is malformed.
    """

    server: str
    bearer_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        ToolSubjects(self.server)

    def client(self, server: str, bus: Bus) -> ToolClient:
        """Return what calls it; the agent does not start where it is not there."""
        del server
        return NatsTools(self.server, bus, self.bearer_token, check=True)
