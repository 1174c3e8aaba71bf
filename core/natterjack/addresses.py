"""Addresses of agents on this server that Natterjack does not host: `agents://<agent>/<owner>/<session>`."""

from __future__ import annotations

import re

from natterjack import subjects
from natterjack.errors import InvalidNameError

_FOREIGN = re.compile(r"agents://([a-z0-9-]{1,64})/([A-Za-z0-9_-]{1,128})/([A-Za-z0-9_-]{1,128})\Z")


def is_foreign(address: str) -> bool:
    """Tell whether an address names an agent on this server that Natterjack does not host."""
    return address.startswith("agents://")


def split_foreign(address: str, kind: str = "address") -> tuple[str, str, str]:
    """Return agent, owner and session of an address `agents://<agent>/<owner>/<session>`.

    Raises:
        InvalidNameError: It is none.
    """
    found = _FOREIGN.match(address)
    if found is None:
        rule = "write it like agents://<agent>/<owner>/<session>, as `natterjack agents` lists it"
        raise InvalidNameError(kind, address, rule)
    agent, owner, session = found.groups()
    return agent, owner, session


def check_foreign(subject: str, kind: str = "prompt subject") -> str:
    """Return a subject that a stranger registered for prompts, if asking there can do no other harm.

    Raises:
        InvalidNameError: It has wildcards, or is one of ours.
    """
    root, *rest = subject.split(".")
    if not rest or root in subjects.ROOTS or not subjects.is_type(subject):
        raise InvalidNameError(kind, subject, "it must be literal, and none of Natterjack's own")
    return subject
