"""Being told by the system that something has changed, so that it need not be looked for all the time."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from natterjack_files.folder import Folder

_BEGUN: Final = 200
"""Milliseconds after which the system's watch is surely on."""


class Watcher:
    """Sets an event when something has changed in a folder, which may be removed and made anew meanwhile.

    Args:
        folder: Which.
        changed: Set then, and once when the watch has begun.
        log: Where it tells that it cannot watch.
    """

    def __init__(self, folder: Folder, changed: asyncio.Event, log: logging.Logger) -> None:
        self._folder, self._changed, self._log = folder, changed, log
        self._identity: tuple[int, int] | None = None
        self._task: asyncio.Task[None] | None = None

    async def follow(self) -> None:
        """Watch the folder that is at its place now."""
        identity = self._folder.identity
        if identity != self._identity:
            await self.close()
            self._identity = identity
            if identity is not None:
                self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        from watchfiles import awatch  # lazy: all processes of a team load this plugin, and few of them watch

        folder, begun = self._folder, False
        watching = awatch(
            folder.root,
            watch_filter=None,
            recursive=folder.recursive,
            yield_on_timeout=True,
            rust_timeout=_BEGUN,
            ignore_permission_denied=True,
        )
        try:
            async for changes in watching:
                if changes or not begun:
                    self._changed.set()
                begun = True
        except (OSError, RuntimeError) as error:  # e.g. no more watches, or the folder went at this moment
            self._log.warning("%s cannot be watched, and is looked at now and then: %s", folder.root, error)

    async def close(self) -> None:
        """Watch no more."""
        task, self._task, self._identity = self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
