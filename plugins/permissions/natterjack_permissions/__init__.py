"""Permissions of a team: what its rules do not allow is refused, at once and in one clear line."""

from natterjack_permissions.guard import PermissionGuard, natterjack_guards

__all__ = ["PermissionGuard", "natterjack_guards"]
