"""Faults: what goes wrong.

A new one is a class with `inject`, and `heal` if it does not pass by itself; put it into a list here.
"""

from .agents import Die, Freeze, Kill
from .fault import Fault
from .network import Cut, Forget, Slow, Unplug
from .payloads import Deadly, Flood, Garbage, Odd
from .servers import FreezeLeader, KillBroker, KillLeader, StepDown, StopBroker
from .storage import Deaf, Full, FullDisk
from .supervisors import KillSupervisor, SecondSupervisor

__all__ = [
    "EVERYWHERE",
    "ON_A_CLUSTER",
    "Fault",
    "Flood",
    "FreezeLeader",
    "FullDisk",
    "Kill",
    "KillBroker",
    "KillLeader",
    "StepDown",
]

OF_AGENTS: list[type[Fault]] = [Kill, Die, Freeze]
OF_SERVERS: list[type[Fault]] = [KillBroker, StopBroker, Full, Deaf]
OF_THE_NETWORK: list[type[Fault]] = [Cut, Slow, Unplug, Forget]
OF_PAYLOADS: list[type[Fault]] = [Odd, Deadly, Flood, Garbage]
OF_SUPERVISORS: list[type[Fault]] = [KillSupervisor, SecondSupervisor]
EVERYWHERE: list[type[Fault]] = [*OF_AGENTS, *OF_SERVERS, *OF_THE_NETWORK, *OF_PAYLOADS, *OF_SUPERVISORS]
ON_A_CLUSTER: list[type[Fault]] = [
    KillLeader,
    FreezeLeader,
    StepDown,
    *OF_AGENTS,
    *OF_THE_NETWORK,
    *OF_PAYLOADS,
    *OF_SUPERVISORS,
]
