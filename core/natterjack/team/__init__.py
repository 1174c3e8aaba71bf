"""The team: its model, and the checks of it."""

from natterjack.team.check import check_team, make_trigger
from natterjack.team.file import read_team
from natterjack.team.model import AgentSpec, Team, TriggerSpec

__all__ = [
    "AgentSpec",
    "Team",
    "TriggerSpec",
    "check_team",
    "make_trigger",
    "read_team",
]
