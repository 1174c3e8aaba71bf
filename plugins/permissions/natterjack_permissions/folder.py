"""The folder that `secure` writes: one command at a time changes it, and what no server takes is put back."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import typer

from natterjack import ConfigError
from natterjack_permissions.keys import store
from natterjack_permissions.reload import NotTakenError

_FOLDERS: Final = ("accounts", "ca", "callout", "contexts", "keys", "seeds", "tls")
"""Below it; what else is there, such as what is stored, is the server's."""


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Within the context no other command changes the folder, which is made if it is not there.

    All of them read first what there is, and write much later: one that came between would be undone without a word,
    be it a revocation. Who has the folder ends sooner or later, and is waited for. (Windows has no locks of folders.)

    Raises:
        ConfigError: It cannot be had.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"{out} cannot be a folder of keys: {error.strerror}; name another one by --out"
        raise ConfigError(msg) from error
    with _locked(out):
        yield


if sys.platform == "win32":

    @contextmanager
    def _locked(out: Path) -> Iterator[None]:
        yield

else:
    import fcntl

    @contextmanager
    def _locked(out: Path) -> Iterator[None]:
        folder = os.open(out, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                typer.echo(f"note: another command changes {out}; this one waits for it", err=True)
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


@contextmanager
def restoring(out: Path) -> Iterator[None]:
    """Put all files back as they were if no server takes what is written in the context.

    Who logs in by a new key before a server knows it is refused, `sys` as well, which could tell the server of it.
    """
    former = dict(_files(out))
    try:
        yield
    except NotTakenError as error:
        if error.taken_by:
            raise
        for path, _ in list(_files(out)):
            if path not in former:
                path.unlink()
        for path, (data, mode) in former.items():
            store(path, data, mode)
        error.args = (f"{error}. All files are as they were",)
        raise


def _files(out: Path) -> Iterator[tuple[Path, tuple[bytes, int]]]:
    """Yield what is written: each file, what it has, and who may read it."""
    for path in (*out.glob("*"), *(path for folder in _FOLDERS for path in (out / folder).rglob("*"))):
        if path.is_file():
            yield path, (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
