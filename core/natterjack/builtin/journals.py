"""The built-in journal beside the stream: files."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import orjson

from natterjack.components import Entry, Journal, Settings
from natterjack.errors import ConfigError


class FileJournal(Journal):
    """A second journal: JSON lines in `<folder>/<agent>.jsonl`.

    Example::

        AgentProcess(name="researcher", agent=Researcher(), journal=FileJournal("./journals/researcher"))
    """

    name: ClassVar[str] = "file"

    class Config(Settings):
        """Settings of the file journal."""

        folder: str = "journals"

    config: Config

    def __init__(self, config: Config | str | Path) -> None:
        super().__init__(config if isinstance(config, self.Config) else self.Config(folder=str(config)))
        self.folder = Path(self.config.folder)

    async def open(self) -> None:
        """Make the folder.

        Raises:
            ConfigError: It cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"the journal folder {str(self.folder)!r} cannot be made: {error}"
            raise ConfigError(msg) from error

    async def write(self, entry: Entry) -> None:
        """Append one line."""
        line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
        await asyncio.to_thread(self._append, self.folder / f"{entry.agent}.jsonl", line)

    @staticmethod
    def _append(path: Path, line: bytes) -> None:
        with path.open("ab") as file:
            file.write(line)
