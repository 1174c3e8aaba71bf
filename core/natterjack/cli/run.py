"""Running a command's coroutine: the event loop, signals and logs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import typer

from natterjack.cli.exits import ExitCode
from natterjack.cli.output import clean

P = ParamSpec("P")
T = TypeVar("T")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command to its end; Ctrl-C cancels it and ends quietly."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(main)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def asynchronous(command: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a coroutine function a command; see `run`.

    Not where it reads standard input: that must be done before, where Ctrl-C still ends it.
    """

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        run(command(*args, **kwargs))

    return wrapped


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop  # not there on Windows

    return uvloop.new_event_loop


def show_logs(*, debug: bool = False) -> None:
    """Print log records on standard error, as processes that serve do."""
    level = logging.DEBUG if debug else logging.INFO
    shown = logging.StreamHandler()
    shown.setFormatter(_Clean("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[shown])


class _Clean(logging.Formatter):
    """Spells out control characters and indents further lines: what strangers sent makes no record of its own."""

    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record)).replace("\n", "\n  ")


@contextmanager
def stopping() -> Iterator[asyncio.Event]:
    """Give an event that the first SIGINT or SIGTERM sets; the second one ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def receive() -> None:
        if stop.is_set():
            os._exit(ExitCode.INTERRUPTED)
        stop.set()

    for number in _SIGNALS:
        if sys.platform == "win32":
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(receive))
        else:
            loop.add_signal_handler(number, receive)
    try:
        yield stop
    finally:
        if sys.platform != "win32":
            for number in _SIGNALS:
                loop.remove_signal_handler(number)


@contextmanager
def renewing(stop: asyncio.Event) -> Iterator[asyncio.Event]:
    """Give an event that each SIGHUP sets. One that comes because the terminal was closed sets `stop` instead."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    if sys.platform == "win32":
        yield asked
        return
    had_terminal = _has_terminal()

    def receive() -> None:
        closed = had_terminal and not _has_terminal()
        (stop if closed else asked).set()

    loop.add_signal_handler(signal.SIGHUP, receive)
    try:
        yield asked
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
