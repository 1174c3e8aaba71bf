"""Where in its file each part of a team is written, for messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Origins:
    """Where a team is written: for messages only, so that two teams compare equal wherever they come from.

    Attributes:
        file: Path of its file; empty when it comes from Python.
        lines: Line of each table and key, by its path.
    """

    file: str = field(default="", compare=False)
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, stored: object) -> Origins:
        """Return what `stored` returned; none, if it is something else."""
        try:
            return cls(stored["file"], {tuple(path): line for path, line in stored["lines"]})  # type: ignore[index]
        except (KeyError, TypeError, ValueError):  # of another version: messages then do not say where
            return cls()

    def stored(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {"file": self.file, "lines": [[list(path), line] for path, line in self.lines.items()]}

    def at(self, *path: object) -> str:
        """Return `team.toml:12` for the nearest thing around a path that has a line."""
        line = self.line(*path)
        return f"{self.file}:{line}" if line else self.file

    def line(self, *path: object) -> int:
        """Return its line, 1 first, or 0."""
        names = tuple(str(part) for part in path)
        return next((self.lines[names[:n]] for n in range(len(names), 0, -1) if names[:n] in self.lines), 0)
