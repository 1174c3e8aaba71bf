"""The line between an agent's process and its supervisor: the process ends when it is cut, and its loop beats on it.

It is the process's standard input, a socket whose other end the supervisor holds. So nobody has to be told when a
supervisor is killed, and a loop that hangs is noticed from outside.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import socket
import stat
import threading
from contextlib import suppress
from typing import Final

PARENT: Final = "NATTERJACK_PARENT_PIPE"
"""Environment variable that tells a process that its standard input is such a line."""
BEAT_EVERY: Final = 1.0
MARGIN: Final = 5.0
"""Seconds beside its `drain_timeout` that a process may take to end."""

_STDERR: Final = 2


class Lifeline:
    """A process's end of the line; made in its event loop, which beats from then on.

    Args:
        stop: Set once the line is cut.

    Attributes:
        drain: Seconds that running work has to end then. A process that has not ended soon after, as its loop hangs,
            prints where it is and is ended.
    """

    def __init__(self, stop: asyncio.Event) -> None:
        self.drain = 10.0
        faulthandler.enable(_STDERR)  # SIGABRT, which the supervisor sends to a process that hangs, shows where
        self._stop, self._loop = stop, asyncio.get_running_loop()
        is_line = stat.S_ISSOCK(os.fstat(0).st_mode)
        self._socket = socket.socket(fileno=os.dup(0)) if is_line else None
        threading.Thread(target=self._watch, name="natterjack-parent", daemon=True).start()
        self._beat()

    def close(self) -> None:
        """Beat no more; that it is cut still ends the process."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _beat(self) -> None:
        if self._socket is None:
            return
        with suppress(OSError):  # the supervisor is stopped and does not read, or has gone
            self._socket.send(b".", socket.MSG_DONTWAIT)
        self._loop.call_later(BEAT_EVERY, self._beat)

    def _watch(self) -> None:
        with suppress(OSError):  # cut while beats were on their way
            while os.read(0, 4096):
                continue
        faulthandler.dump_traceback_later(self.drain + MARGIN, exit=True, file=_STDERR)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
