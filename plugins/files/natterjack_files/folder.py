"""The watched folder: what is in it now, and what is in a file."""

from __future__ import annotations

import base64
import os
import stat
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from natterjack import ConfigError


class Seen(NamedTuple):
    """What can be told of a file from outside.

    Attributes:
        inode: Its number in its file system, which it keeps when it is renamed.
        size: Bytes.
        mtime: When it was last written, nanoseconds.
    """

    inode: int
    size: int
    mtime: int

    @property
    def state(self) -> tuple[int, int]:
        """What changes when it is written."""
        return self.size, self.mtime


@dataclass(slots=True)
class Listing:
    """What is in the folder.

    Attributes:
        files: By path, relative to the folder.
        hidden: Folders in it that cannot be read, each with a slash at its end; of what is there nothing is known.
    """

    files: dict[str, Seen] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)

    def hides(self, path: str) -> bool:
        """Whether nothing is known of a path."""
        return any(path.startswith(folder) for folder in self.hidden)


class Folder:
    """A folder, and which of its files are meant.

    Args:
        root: Where it is.
        pattern: Of the names that are meant, as shells have it: `*` matches no dot at the beginning.
        recursive: Whether the folders in it count, too.
    """

    def __init__(self, root: Path, pattern: str, *, recursive: bool) -> None:
        self.root, self._pattern, self.recursive = root, pattern, recursive

    def check(self) -> None:
        """Raise unless it is there and can be read.

        Raises:
            ConfigError: It says what it is instead.
        """
        try:
            with os.scandir(self.root):
                return
        except FileNotFoundError as error:
            msg = f"the folder {str(self.root)!r} does not exist; create it, or correct `path`"
            raise ConfigError(msg) from error
        except OSError as error:
            msg = f"the folder {str(self.root)!r} cannot be read: {error.strerror}; correct `path`, or its permissions"
            raise ConfigError(msg) from error

    @property
    def identity(self) -> tuple[int, int] | None:
        """What tells it from a folder that is made anew at its place; None while there is none."""
        try:
            found = self.root.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def read(self) -> Listing | None:
        """Return what is in it, or None if it cannot be read now. Links are not followed."""
        listing, rest = Listing(), [""]
        while rest:
            inside = rest.pop()
            try:
                with os.scandir(self.root / inside) as entries:
                    rest += self._take(entries, inside, listing)
            except OSError:
                if not inside:
                    return None
                listing.hidden.append(inside)
        return listing

    def _take(self, entries: Any, inside: str, listing: Listing) -> list[str]:
        """Add the files of one folder, and return the folders in it that count."""
        folders = []
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    if self.recursive and not entry.name.startswith("."):
                        folders.append(f"{inside}{entry.name}/")
                elif self._means(entry.name) and entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    listing.files[inside + entry.name] = Seen(found.st_ino, found.st_size, found.st_mtime_ns)
            except FileNotFoundError:  # it went meanwhile
                continue
        return folders

    def _means(self, name: str) -> bool:
        return fnmatchcase(name, self._pattern) and (not name.startswith(".") or self._pattern.startswith("."))

    def content(self, path: str, limit: int) -> dict[str, str]:
        """Return what is in a file, as fields of an event, or why it is not there."""
        try:
            # A link or a pipe that has taken the file's place meanwhile is not followed, and not waited for.
            descriptor = os.open(self.root / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return {"omitted": "it is no file any more"}
                data = file.read(limit + 1)
        except OSError as error:
            return {"omitted": f"it cannot be read: {error.strerror}"}
        if len(data) > limit:
            return {"omitted": f"it is larger than {limit} bytes"}
        try:
            return {"content": data.decode(), "encoding": "utf-8"}
        except UnicodeDecodeError:
            return {"content": base64.b64encode(data).decode(), "encoding": "base64"}
