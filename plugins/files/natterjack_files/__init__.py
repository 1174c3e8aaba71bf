"""Files that are created, changed, renamed or deleted wake agents, also across restarts."""

from natterjack_files.trigger import FilesTrigger, natterjack_triggers

__all__ = ["FilesTrigger", "natterjack_triggers"]
