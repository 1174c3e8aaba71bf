"""Where in its file each part of a team is written, for messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Origins:
    """Where a team is written: for messages only, so that two teams compare equal wherever they come from.

    Attributes:
        file: Path of its file; empty when it comes from Python.
        lines: Line of each table and key, by its path.
    """

    file: str = field(default="", compare=False)
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict, compare=False)

    def at(self, *path: object) -> str:
        """Return `team.toml:12` for the nearest thing around a path that has a line."""
        line = self.line(*path)
        return f"{self.file}:{line}" if line else self.file

    def line(self, *path: object) -> int:
        """Return its line, 1 first, or 0."""
        names = tuple(str(part) for part in path)
        return next((self.lines[names[:n]] for n in range(len(names), 0, -1) if names[:n] in self.lines), 0)
