"""What has changed: the difference between what is known and what is there, once it rests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from natterjack_files.folder import Listing, Seen

Kind = Literal["created", "modified", "deleted", "renamed"]


class Change(NamedTuple):
    """One change of one file.

    Attributes:
        kind: What happened to it.
        path: Where it is now, or was before it was deleted.
        seen: What it is, or was.
        origin: Where it was before it was renamed.
    """

    kind: Kind
    path: str
    seen: Seen
    origin: str = ""


class Differences:
    """Differences between what is known and what is there; each counts once it has rested.

    So a file that is still being written is not told, nor is the moment in which an editor has moved the old one away.

    Args:
        settle: Seconds for which size and time of a file must not change.
    """

    def __init__(self, settle: float) -> None:
        self._settle = settle
        self._since: dict[str, tuple[Seen | None, float]] = {}

    def look(self, known: Mapping[str, Seen], listing: Listing, now: float) -> list[Change]:
        """Return the changes that rest, by path; what is returned and not known at the next look comes again."""
        found = _differing(known, listing)
        since = self._since
        self._since = {
            path: since[path] if path in since and since[path][0] == seen else (seen, now)
            for path, seen in found.items()
        }
        origins = _renamed(known, found)
        moved = set(origins.values())
        rested = [path for path, (_, begun) in self._since.items() if now - begun >= self._settle and path not in moved]
        return [_change(path, found[path], known, origins.get(path, "")) for path in sorted(rested)]

    def due(self, now: float) -> float | None:
        """Return the seconds until the next one may rest; None if there is no difference."""
        begun = [begun for _, begun in self._since.values()]
        return max(0.0, min(begun) + self._settle - now) if begun else None


def _differing(known: Mapping[str, Seen], listing: Listing) -> dict[str, Seen | None]:
    found: dict[str, Seen | None] = {
        path: seen for path, seen in listing.files.items() if path not in known or known[path].state != seen.state
    }
    gone = (path for path in known if path not in listing.files and not listing.hides(path))
    return found | dict.fromkeys(gone)


def _renamed(known: Mapping[str, Seen], found: Mapping[str, Seen | None]) -> dict[str, str]:
    """Return the former paths of new files that are gone ones. Inodes are used again, so size and time count, too."""
    gone = {known[path]: path for path, seen in found.items() if seen is None and known[path].inode}
    new = ((path, seen) for path, seen in found.items() if seen is not None and path not in known)
    return {path: gone.pop(seen) for path, seen in new if seen in gone}


def _change(path: str, seen: Seen | None, known: Mapping[str, Seen], origin: str) -> Change:
    if seen is None:
        return Change("deleted", path, known[path])
    if origin:
        return Change("renamed", path, seen, origin)
    return Change("modified" if path in known else "created", path, seen)
