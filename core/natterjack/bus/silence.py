"""A server that is cut off from its cluster: it keeps its clients, answers their pings, and stores nothing."""

from __future__ import annotations

import math
import time
from typing import Final

APART: Final = 2.0
"""Seconds between two tries that are not of the same moment."""
SILENT: Final = 15.0
"""Seconds within which a second try in vain is about the same silence."""
STAY: Final = 30.0
"""Seconds at the next server at least: a whole cluster that has too much to do is silent, too."""


class Silence:
    """Notes tries to store something that nobody answered, and tells when it is time to go to another server."""

    def __init__(self) -> None:
        self._last = -math.inf

    def lasts(self) -> bool:
        """Note one more; return whether it is the second of a silence, and not of a moment with the first."""
        now = time.monotonic()
        since = now - self._last
        if since < APART:
            return False
        lasting = since < SILENT
        self._last = now + STAY if lasting else now
        return lasting
