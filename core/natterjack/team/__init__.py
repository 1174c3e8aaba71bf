"""The team: its model, and the checks of it."""

from natterjack.team.check import check_team, make_trigger
from natterjack.team.file import read_team
from natterjack.team.model import AgentSpec, Team
from natterjack.team.triggers import TriggerSpec

__all__ = [
    "AgentSpec",
    "Team",
    "TriggerSpec",
    "check_team",
    "make_trigger",
    "read_team",
]
