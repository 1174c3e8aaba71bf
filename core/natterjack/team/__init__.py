"""The team: its model, the checks of it, and its file."""

from natterjack.team.check import check_team, make_trigger
from natterjack.team.file import read_team, team_schema
from natterjack.team.model import AgentSpec, Team, TriggerSpec

__all__ = [
    "AgentSpec",
    "Team",
    "TriggerSpec",
    "check_team",
    "make_trigger",
    "read_team",
    "team_schema",
]
