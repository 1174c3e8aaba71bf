"""As whom a client acts, and what it may do then: the operator all, a user of the team what its table says."""

from __future__ import annotations

from dataclasses import dataclass, field

from natterjack.bus import Bus
from natterjack.context import AgentContext
from natterjack.errors import NotProvisionedError
from natterjack.guards import Guards
from natterjack.record import stored_team
from natterjack.subjects import OPERATOR
from natterjack.team.users import UserSpec


@dataclass(frozen=True, slots=True)
class Acting:
    """What a client may do.

    Attributes:
        guards: Asked before it does something.
        user: Its table, if it is a user of the team.
    """

    guards: Guards = field(default_factory=Guards)
    user: UserSpec | None = None

    async def follow(self, bus: Bus, bucket: str = "") -> AgentContext:
        """Return a bucket as far as it may be read, written in its name.

        Raises:
            NotProvisionedError: The team has no such bucket.
            RefusedError: The broker does not allow to read it.
        """
        context = AgentContext()
        context.guards, context.writer = self.guards, bus.principal
        await context.attach(bus, bucket, reads=self.user.readable(bucket) if self.user else None)
        return context


async def acting(name: str, bus: Bus) -> Acting:
    """Return what somebody may do: who is no user of the team that is provisioned is stopped by the broker alone.

    Raises:
        ConfigError: Users' rights need a guard, and none is installed.
    """
    if name == OPERATOR:
        return Acting()
    try:
        team = await stored_team(bus)
    except NotProvisionedError:
        return Acting()
    if name not in team.users:
        return Acting()
    bus.operates = name in team.operators
    guards = Guards.load(team.rules(), team.governed())
    guards.tell(name, bus.audit.refused)
    return Acting(guards, team.users[name])
