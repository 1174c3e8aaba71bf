"""Nkeys: the seeds by which principals log in, a file each; and how a file of secrets is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import nkeys

from natterjack import ConfigError

OURS_ONCE: Final = "nats-server.conf"
"""What is written where it is not there, and left alone then."""


def path_of(folder: Path, principal: str) -> Path:
    """Return where a principal's seed is."""
    return folder / f"{principal}.nk"


def keep(folder: Path, principals: Iterable[str], rotate: Iterable[str] = ()) -> dict[str, str]:
    """Make a key for each principal that has none, and return all public ones.

    Args:
        folder: Where the seeds are, readable by their owner alone.
        principals: Who needs one.
        rotate: Who gets another one.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    again = set(rotate)
    found: dict[str, str] = {}
    for name in principals:
        path = path_of(folder, name)
        if name in again or not path.exists():
            store(path, nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER) + b"\n")
        found[name] = public(path)
    return found


def public(path: Path) -> str:
    """Return the public key of a seed in a file."""
    return str(pair(path.read_bytes(), path).public_key.decode())


def pair(seed: bytes, path: str | Path) -> nkeys.KeyPair:
    """Return the keys of a seed that was read from a file.

    Raises:
        ConfigError: It is none.
    """
    try:
        return nkeys.from_seed(seed.strip())
    except (nkeys.NkeysError, ValueError) as error:
        msg = f"{path} has no seed of a key; put back what it had, or remove it, and `natterjack secure` makes another"
        raise ConfigError(msg) from error


def differing(out: Path, files: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the files that are not as they would be: by name, what there is and what there would be."""
    found = {}
    for name, text in files.items():
        path = out / name
        before = path.read_text(errors="replace") if path.exists() else None
        if before != text and not (name == OURS_ONCE and before is not None):
            found[name] = before or "", text
    return found


def store(path: str | Path, data: bytes, mode: int = 0o600) -> None:
    """Write a file at once, so that who reads it meanwhile has it whole; readable by its owner alone."""
    folder, name = os.path.split(path)  # plain texts: of 500 agents there are 2,000 files
    new, flags = f"{folder}/.{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        file = os.open(new, flags, mode)
    except FileNotFoundError:
        os.makedirs(folder, 0o700)
        file = os.open(new, flags, mode)
    with os.fdopen(file, "wb") as opened:
        opened.write(data)
    os.replace(new, path)
