"""Why an attempt failed: in words, and for the log."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Final

from natterjack.dead import MAX_CAUSE

_OURS: Final = str(Path(__file__).parent) + os.sep


def cause_of(error: BaseException) -> str:
    """Return an error in words: not many, and such as JSON can hold, whatever its class makes of itself."""
    try:
        text = str(error)
    except Exception as problem:
        text = f"it cannot say what is wrong ({type(problem).__name__})"
    name = type(error).__name__
    return (f"{name}: {text}" if text else name)[:MAX_CAUSE].encode(errors="replace").decode()


def seen_once(error: BaseException, attempt: int) -> tuple[type[BaseException], BaseException, TracebackType] | None:
    """Return what a log record shows of an error: with the first attempt, from the handler's own frame on."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_OURS):
        traceback = traceback.tb_next
    if attempt > 1 or traceback is None:
        return None
    return type(error), error, traceback
