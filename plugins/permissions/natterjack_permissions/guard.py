"""The guard that enforces a team's rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import ClassVar, Final

from natterjack import Guard, Rule, Verb, matches

MOST_SHOWN: Final = 5
"""Own rules that a refusal shows; the nearest ones, where there are more."""


class PermissionGuard(Guard):
    """Refuses what is governed and not allowed by a rule.

    Example::

        guard = PermissionGuard()
        guard.load([Rule("writer", "write", "draft", "team.toml:31")], frozenset({("*", "write")}))
        guard.refuse("writer", "write", "draft")  # None: it may
        guard.refuse("researcher", "write", "draft")  # "that is for 'writer' (team.toml:31); …"
    """

    name: ClassVar[str] = "permissions"

    def __init__(self, config: object = None) -> None:
        super().__init__(config)
        self._governed: frozenset[tuple[str, Verb]] = frozenset()
        self._rules: dict[Verb, list[Rule]] = {}

    def load(self, rules: Sequence[Rule], governed: frozenset[tuple[str, Verb]]) -> None:
        """Take the team's rules, instead of any it had."""
        self._governed = governed
        self._rules = {}
        for rule in rules:
            self._rules.setdefault(rule.verb, []).append(rule)

    def refuse(self, principal: str, verb: Verb, what: str) -> str | None:
        """Return who may instead, and what this principal may, with the lines that say so; or None."""
        if not self._governed & {(principal, verb), ("*", verb)}:
            return None
        rules = self._rules.get(verb, [])
        holders = [rule for rule in rules if covers(rule.pattern, what)]
        if any(rule.principal == principal for rule in holders):
            return None
        own = [rule for rule in rules if rule.principal == principal]
        return f"{_whose(holders)}; {_instead(own, verb, what)}"


def covers(pattern: str, what: str) -> bool:
    """Tell whether a pattern allows all of a name or pattern.

    `*` does match the one token `>`, which stands for more than `*` allows.
    """
    return matches(pattern, what) and (not what.endswith(">") or pattern.endswith(">"))


def _whose(holders: Iterable[Rule]) -> str:
    named = _by_origin((rule.principal, rule.origin) for rule in holders)
    return f"that is for {named}" if named else "no rule allows it to anyone"


def _instead(own: Sequence[Rule], verb: Verb, what: str) -> str:
    more = len(own) > MOST_SHOWN
    if more:
        own = sorted(own, key=lambda rule: -SequenceMatcher(None, rule.pattern, what).ratio())[:MOST_SHOWN]
    named = _by_origin((rule.pattern, rule.origin) for rule in own)
    return f"it may {verb} {named or 'nothing'}{', …' if more else ''}"


def _by_origin(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names with where they are written, each place once."""
    places: dict[str, list[str]] = {}
    for name, origin in pairs:
        names = places.setdefault(origin, [])
        if repr(name) not in names:
            names.append(repr(name))
    return ", ".join(", ".join(names) + (f" ({origin})" if origin else "") for origin, names in places.items())
