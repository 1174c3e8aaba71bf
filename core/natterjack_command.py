"""The command `natterjack` from its first instant on.

Importing the package takes half a second. A module of its own, because Python imports a package before any module
inside it, hears Ctrl-C meanwhile: it ends the process quietly, where Python would print how far the import was.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

INTERRUPTED = 130


def _quit(*_: object) -> NoReturn:
    os._exit(INTERRUPTED)


def main() -> NoReturn:
    """Run the command line."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # it may be ignored, as in a background job
    if heard:
        signal.signal(signal.SIGINT, _quit)
    from natterjack.cli import main as run  # lazy: this is what takes long

    try:
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:  # outside a command, which has its own way to end
        sys.exit(INTERRUPTED)
    finally:
        if heard:
            signal.signal(signal.SIGINT, _quit)  # nothing is left to be cleaned up but the interpreter
