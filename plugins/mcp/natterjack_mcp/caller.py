"""Who calls a tool."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Attested = Literal["", "claim", "broker", "jwt", "key", "test"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        name: Of the agent or program; empty: nobody knows.
        roles: What it is.
        scopes: What it was given leave to do.
        claims: All that its token says.
        attested: How it is known: by the `broker`, a token (`jwt`), an API key (`key`), a `test`; `claim`: it only says
            so; empty: it is not known.
        approved: Whether a human allowed this very call.
    """

    name: str = ""
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=dict, hash=False)
    attested: Attested = ""
    approved: bool = False

    @classmethod
    def test(
        cls,
        name: str,
        *,
        roles: Iterable[str] = (),
        scopes: Iterable[str] = (),
        approved: bool = False,
        **claims: Any,
    ) -> Caller:
        """Return a caller for a test, known as if by a token."""
        return cls(name, frozenset(roles), frozenset(scopes), claims, "test", approved)

    @property
    def known(self) -> bool:
        """Whether somebody that the server trusts has said who it is."""
        return bool(self.name) and self.attested not in ("", "claim")

    def __str__(self) -> str:
        return self.name or "nobody"


ANYONE: Final = "anyone"
"""Who calls where nobody shows who it is."""


def name_of(caller: Caller) -> str:
    """Return as whom the rules of a team know a caller."""
    return caller.name or ANYONE


_calling: ContextVar[Caller] = ContextVar("caller")


def who_calls() -> Caller:
    """Return whose request is worked on."""
    return _calling.get(None) or Caller()


@contextmanager
def calling(caller: Caller) -> Iterator[None]:
    """Within the context, and in the tasks that begin there, requests are this caller's; for transports."""
    token = _calling.set(caller)
    try:
        yield
    finally:
        _calling.reset(token)
