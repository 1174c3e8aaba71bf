"""Permissions of a team: what its rules do not allow is refused, at once and in one clear line."""

from natterjack_permissions.guard import PermissionGuard
from natterjack_permissions.plugin import natterjack_commands, natterjack_guards

__all__ = ["PermissionGuard", "natterjack_commands", "natterjack_guards"]
