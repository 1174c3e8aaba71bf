"""For the tests of those who build on Natterjack: a real broker, scripted agents and time, waiting without sleeping.

Importing this package needs no pytest. The fixtures are in `natterjack.testing.plugin` and come by themselves; the
contracts, which a plugin's tests subclass, are in `natterjack.testing.contracts`.
"""

from natterjack.testing.agents import ScriptedAgent
from natterjack.testing.clock import ScriptedClock
from natterjack.testing.recordings import Recording, Replay, replay
from natterjack.testing.servers import NatsServer, free_port, free_ports
from natterjack.testing.waiting import until

__all__ = [
    "NatsServer",
    "Recording",
    "Replay",
    "ScriptedAgent",
    "ScriptedClock",
    "free_port",
    "free_ports",
    "replay",
    "until",
]
