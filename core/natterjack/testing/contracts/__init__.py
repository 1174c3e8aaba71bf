"""What the kernel relies on, as tests to subclass: one class per kind of component.

Example::

    class TestTick(TriggerContract):
        component = Tick
        settings = {"every": 60}

        async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
            await clock.advance(60)

pytest then runs every test of the contract on `Tick`. The tests run on a server that grants exactly what the component
says it `needs`, so that one which passes works in a secured team, too.
"""

from natterjack.testing.contracts.agent import AgentContract
from natterjack.testing.contracts.component import ComponentContract
from natterjack.testing.contracts.guard import GuardContract
from natterjack.testing.contracts.journal import JournalContract
from natterjack.testing.contracts.middleware import MiddlewareContract
from natterjack.testing.contracts.peer import PeerContract
from natterjack.testing.contracts.toolserver import ToolServerContract
from natterjack.testing.contracts.trigger import TriggerContract

__all__ = [
    "AgentContract",
    "ComponentContract",
    "GuardContract",
    "JournalContract",
    "MiddlewareContract",
    "PeerContract",
    "ToolServerContract",
    "TriggerContract",
]
