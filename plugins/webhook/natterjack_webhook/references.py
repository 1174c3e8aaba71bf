"""Where secrets are: settings name an environment variable or a file, and never hold the secret itself."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator

from natterjack import ConfigError

_REFERENCE: Final = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:.+")


def is_reference(text: str) -> bool:
    """Tell whether a setting names an environment variable or a file."""
    return _REFERENCE.fullmatch(text) is not None


def check_reference(text: str) -> str:
    """Return a reference as it is, or raise `ValueError`, which does not show it: it may be the secret itself."""
    if not is_reference(text):
        msg = "write where the secret is, as 'env:NAME' or 'file:/path/to/it', and never the secret itself"
        raise ValueError(msg)
    return text


def read_reference(reference: str) -> str:
    """Return what a reference stands for; of a file without the line break at its end.

    Raises:
        ConfigError: It is not there, or empty.
    """
    kind, _, where = reference.partition(":")
    if kind == "env":
        found = os.environ.get(where)
        if found is None:
            msg = f"the environment variable {where!r} is not set in this process; set it to the secret"
            raise ConfigError(msg)
    else:
        try:
            found = Path(where).read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"the secret in the file {where!r} cannot be read: {type(error).__name__}"
            raise ConfigError(msg) from error
    if not found:
        msg = f"the secret at {reference!r} is empty, so anybody could sign; put one there"
        raise ConfigError(msg)
    return found


def read_references(references: Sequence[str]) -> list[str]:
    """Return what several references stand for; errors as above."""
    return [read_reference(each) for each in references]


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Reference = Annotated[str, AfterValidator(check_reference)]
References = Annotated[tuple[Reference, ...], BeforeValidator(_listed)]
