"""How packages get into the environment that runs: by what manages it, which is pip, uv, pipx or `uv tool`."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import sysconfig
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from natterjack.cli.exits import CommandError

_RECEIPT: Final = "uv-receipt.toml"
_PIPX: Final = "pipx_metadata.json"


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be installed or removed.

    Attributes:
        names: Distributions, requirements, paths or URLs.
        editable: Folders to install so that their changes count at once.
        remove: Whether to remove the names.
        alone: Whether to install nothing that they depend on.
    """

    names: Sequence[str] = ()
    editable: Sequence[str] = ()
    remove: bool = False
    alone: bool = False


def command(change: Change, prefix: Path) -> list[str]:
    """Return the command that makes the change in an environment.

    Args:
        change: The change.
        prefix: The environment's `sys.prefix`; its Python is the one that runs.

    Raises:
        CommandError: Nothing is here that could, or the operating system keeps the environment to itself.
    """
    if (prefix / _RECEIPT).exists():
        if change.alone:  # `uv tool` cannot; an environment of it is one like any other
            return [_tool("uv"), "pip", *_pip_arguments(change, "--python", sys.executable)]
        return [_tool("uv"), "tool", "install", *_tool_arguments(change, prefix)]
    if (prefix / _PIPX).exists():
        return [_tool("pipx"), *_pipx_arguments(change, prefix)]
    if _is_managed(prefix):
        msg = (
            f"the operating system manages the Python in {str(prefix)!r} and lets nobody install into it; make an"
            " environment (`python3 -m venv .venv && .venv/bin/pip install natterjack`), or `pipx install natterjack`"
        )
        raise CommandError(msg)
    with_uv = _is_of_uv(prefix) and _found("uv") is not None
    if with_uv or not find_spec("pip"):
        return [_tool("uv"), "pip", *_pip_arguments(change, "--python", sys.executable)]
    return [sys.executable, "-m", "pip", *_pip_arguments(change, *(["--yes"] if change.remove else []))]


def _found(name: str) -> str | None:
    """Return where a program is: on PATH, or beside this Python."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    return shutil.which(name, path=path)


def _tool(name: str) -> str:
    found = _found(name)
    if found is None:
        msg = f"{name} manages the environment {sys.prefix!r}, and there is no `{name}` on PATH; install {name}"
        if not find_spec("pip"):
            msg += f", or pip by `{sys.executable} -m ensurepip`"
        raise CommandError(msg)
    return found


def _is_managed(prefix: Path) -> bool:
    """Tell whether PEP 668 forbids to install: no virtual environment, and the file that says so."""
    if (prefix / "pyvenv.cfg").exists():
        return False
    return (Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").exists()


def _is_of_uv(prefix: Path) -> bool:
    config = prefix / "pyvenv.cfg"
    return config.exists() and any(line.startswith("uv =") for line in config.read_text("utf-8").splitlines())


def _pip_arguments(change: Change, *options: str) -> list[str]:
    editable = [word for folder in change.editable for word in ("--editable", folder)]
    alone = ["--no-deps"] if change.alone else []
    return ["uninstall" if change.remove else "install", *options, *alone, *editable, *change.names]


def _pipx_arguments(change: Change, prefix: Path) -> list[str]:
    environment = json.loads((prefix / _PIPX).read_text("utf-8")).get("environment") or prefix.name
    if change.remove:  # it would take what a plugin depends on along, and that is Natterjack itself
        return ["uninject", "--leave-deps", environment, *change.names]
    if change.editable and change.names:
        msg = "pipx takes folders (-e) and other packages one after the other; name the folders alone first"
        raise CommandError(msg)
    options = [*(["--editable"] if change.editable else []), *(["--pip-args=--no-deps"] if change.alone else [])]
    return ["inject", *options, environment, *change.editable, *change.names]


# `uv tool install` makes the environment anew from all that it is given: what is in its receipt has to be said again.


def _tool_arguments(change: Change, prefix: Path) -> list[str]:
    main, *others = tomllib.loads((prefix / _RECEIPT).read_text("utf-8"))["tool"]["requirements"]
    named = {canonical(name) for name in change.names}
    kept = [each for each in others if canonical(each["name"]) not in named]
    words: list[str] = []
    for each in kept:
        words += ["--with-editable" if "editable" in each else "--with", _requirement(each)]
    if not change.remove:
        words += [word for name in change.names for word in ("--with", name)]
        words += [word for folder in change.editable for word in ("--with-editable", folder)]
    return [*words, *(["--editable"] if "editable" in main else []), _requirement(main)]


def _requirement(entry: Mapping[str, Any]) -> str:
    """Return a requirement of a receipt as one writes it."""
    for key in ("editable", "directory", "path"):
        if key in entry:
            return str(entry[key])
    extras = f"[{','.join(entry['extras'])}]" if entry.get("extras") else ""
    where = entry.get("url") or (f"git+{entry['git']}" if "git" in entry else "")
    return f"{entry['name']}{extras}" + (f" @ {where}" if where else entry.get("specifier", ""))


def canonical(name: str) -> str:
    """Return the name of a requirement as registries compare it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name, maxsplit=1)[0]).lower()
