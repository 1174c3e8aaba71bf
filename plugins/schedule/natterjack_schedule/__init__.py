"""Triggers that the broker's own clock fires: `cron`, `every` and `at`; and the command `natterjack schedule`."""

from natterjack_schedule.plugin import natterjack_commands, natterjack_triggers
from natterjack_schedule.triggers import AtTrigger, CronTrigger, EveryTrigger

__all__ = [
    "AtTrigger",
    "CronTrigger",
    "EveryTrigger",
    "natterjack_commands",
    "natterjack_triggers",
]
