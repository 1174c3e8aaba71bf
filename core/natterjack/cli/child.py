"""One agent's process as its supervisor has it: started, listened to, told to drain, and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NoReturn

from natterjack.cli.lifeline import MARGIN, PARENT
from natterjack.errors import StartError
from natterjack.team.processes import ProcessSpec

READY: Final = "ready"
"""Last word of the line that an agent's process prints once it listens."""
FIRST_PAUSE: Final = 0.5
"""Seconds before a restart; twice as many for each further end in a row, up to `MAX_PAUSE`."""
MAX_PAUSE: Final = 30.0
LAST_WORDS: Final = 3.0
"""Seconds that a process has to say where it hangs, before it is killed."""
_LOOK: Final = 0.5
_REST: Final = 1.0
"""Seconds for the rest of what an ended process printed."""

Show = Callable[[str, str], None]
"""Shows one line of a process: its label, and the line."""


@dataclass(slots=True, eq=False)
class Child:
    """One agent's process, and the one that comes after it.

    Attributes:
        agent: Its agent, or tool server.
        label: Unique, for humans: `researcher`, or `researcher/2` for a second replica.
        spec: Its limits.
        show: Shows what it prints.
        ready: Set while it listens.
        started: Whether it ever listened.
        crashes: How often it ended by itself in a row.
        last: The last lines it printed.
        process: It itself, or the last of it.
        task: Keeps it running.
        trial: Whether its first end is final: it has still to show that it comes up.
        told: Whether this process was told to drain.
        beats: How often its event loop was heard to beat.
    """

    agent: str
    label: str
    spec: ProcessSpec
    show: Show
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    started: bool = False
    crashes: int = 0
    last: deque[str] = field(default_factory=lambda: deque(maxlen=5))
    process: asyncio.subprocess.Process | None = None
    task: asyncio.Task[None] | None = None
    trial: bool = False
    told: bool = False
    beats: int = 0
    _line: socket.socket | None = None
    _group: int = 0

    @property
    def pause(self) -> float:
        """Seconds to wait before it starts again."""
        return min(MAX_PAUSE, FIRST_PAUSE * 2.0 ** min(16, max(0, self.crashes - 1)))

    @property
    def runs(self) -> bool:
        """Whether its process has not ended."""
        return self.process is not None and self.process.returncode is None

    def say(self, text: str) -> None:
        """Show a line about it among its own."""
        self.show(self.label, text)

    def give_up(self, why: str) -> NoReturn:
        """Raise the error that says so, with its last lines, each once."""
        last = "".join(f"\n  {line}" for line in dict.fromkeys(self.last))
        msg = f"{self.label} {why}:{last}"
        raise StartError(msg)

    async def spawn(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start its process.

        Raises:
            StartError: The operating system cannot.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                self.agent,
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **environment, PARENT: "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which then drains in order
            )
        except BaseException as error:
            ours.close()
            if isinstance(error, OSError):
                msg = f"{self.label} cannot be started with {command[0]!r}: {error}"
                raise StartError(msg) from error
            raise
        finally:
            theirs.close()
        self.told, self.beats, self._line, self._group = False, 0, ours, self.process.pid
        asyncio.get_running_loop().add_reader(ours, self._hear)

    def _hear(self) -> None:
        """Take beats; once the other end is closed, nothing more comes."""
        try:
            heard = self._line.recv(4096) if self._line is not None else b""
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        self.beats += len(heard)
        if not heard:
            self._cut()

    def _cut(self) -> None:
        if self._line is not None:
            asyncio.get_running_loop().remove_reader(self._line)
            self._line.close()
            self._line = None

    async def follow(self) -> int:
        """Show what its process prints, until it has ended; return its exit code."""
        process = self.process
        if process is None:
            return 0
        reading = asyncio.create_task(self._read(process))
        try:
            await self._exit(process)
            await asyncio.wait([reading], timeout=_REST)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            self.ready.clear()
        return process.returncode or 0

    async def _exit(self, process: asyncio.subprocess.Process) -> None:
        """Return once it has ended, and end what it started: that may hold its output open, or be left for ever."""
        waiting = asyncio.create_task(process.wait())
        try:
            while process.returncode is None:  # asyncio's `wait` waits for its output, too
                await asyncio.wait([waiting], timeout=_LOOK)
        finally:
            waiting.cancel()
        group, self._group = self._group, 0
        if group:
            with suppress(ProcessLookupError, PermissionError):  # it left nothing
                os.killpg(group, signal.SIGKILL)
        self._cut()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        while process.stdout is not None and (line := await _line(process.stdout)):
            text = line.decode(errors="replace").rstrip()
            if text == f"agent {self.agent} {READY}":
                self.started = True
                self.ready.set()
            self.last.append(text)
            self.say(text)

    # Ending it

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.process is not None and self.runs:
            with suppress(ProcessLookupError):  # it ended at this very moment
                self.process.send_signal(number)

    def drain(self) -> None:
        """Tell it to finish what runs and end; once, as a second signal would end it at once."""
        if not self.told:
            self.told = True
            self.signal(signal.SIGTERM)

    async def abort(self) -> None:
        """End it by force; first it may say where it is."""
        if self.process is None:
            return
        self.signal(signal.SIGABRT)
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await self.process.wait()
        self.signal(signal.SIGKILL)

    async def retire(self) -> None:
        """Have it drain, and return once it has ended for good, by force if need be."""
        self.drain()
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
            self.drain()  # one that was being started meanwhile
        following = asyncio.create_task(self.follow())
        limit = self.spec.drain_timeout + MARGIN
        await asyncio.wait([following], timeout=limit)
        if not following.done():
            self.say(f"did not end within {limit:g} s and is killed")
            await self.abort()
        await following


async def _line(stream: asyncio.StreamReader) -> bytes:
    """Return the next line; one beyond the reader's limit comes in parts."""
    try:
        return await stream.readuntil()
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.read(error.consumed or 1)
