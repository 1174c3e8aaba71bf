"""Watching a process from outside: one that hangs, or uses too much memory, makes room for a new one."""

from __future__ import annotations

import asyncio
import signal
from typing import Final

import psutil

from natterjack.cli.child import Child
from natterjack.cli.lifeline import MARGIN

TICK: Final = 0.5
"""Seconds between two looks."""
STARTING: Final = 60.0
"""Seconds for which the loop of a process that does not listen yet may stand still in any case: it imports."""


async def watch(child: Child) -> None:
    """Watch a child's process, and end it when it is beyond its limits, until cancelled.

    What is measured has nothing to do with the broker. Time passes by looks: a supervisor that was stopped meanwhile,
    or got no processor, blames nobody for it. A process that never beat is not expected to.
    """
    spec, heard, silent, draining = child.spec, 0, 0.0, 0.0
    while True:
        await asyncio.sleep(TICK)
        if not child.runs:
            continue
        silent = silent + TICK if child.beats and child.beats == heard else 0.0
        draining = draining + TICK if child.told else 0.0
        heard = child.beats
        limit = spec.hang_timeout if child.ready.is_set() else max(spec.hang_timeout, STARTING)
        if spec.hang_timeout and silent > limit:
            child.say(f"its event loop stands still since {limit:g} s; it is ended, and says where:")
            await child.abort()
        elif draining > spec.drain_timeout + MARGIN:
            child.say(f"did not drain within {spec.drain_timeout:g} s and is killed")
            await child.abort()
        else:
            _check_memory(child)


def _check_memory(child: Child) -> None:
    spec = child.spec
    if spec.memory is None and spec.memory_max is None:
        return
    used, most = memory_of(child), spec.most_memory
    if most is not None and used > most:
        child.say(f"uses {megabytes(used)}, more than the {megabytes(most)} at most, and is killed")
        child.signal(signal.SIGKILL)
    elif spec.memory is not None and used > spec.memory and not child.told:
        child.say(f"uses {megabytes(used)} of the {megabytes(spec.memory)} it may; it drains, and starts again")
        child.drain()


def memory_of(child: Child) -> int:
    """Return the bytes that a child's process has in memory; 0 once it has ended."""
    try:
        return int(psutil.Process(child.process.pid).memory_info().rss) if child.process is not None else 0
    except psutil.Error:
        return 0


def megabytes(size: int) -> str:
    """Return a size as humans read it."""
    return f"{size / 1e6:.0f} MB"
