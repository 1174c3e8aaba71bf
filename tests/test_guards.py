"""All guards as one: any refusal wins, a failure is a refusal, and rules need somebody who enforces them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest

from natterjack.components import Guard
from natterjack.errors import ConfigError, PluginError, RefusedError
from natterjack.guards import Guards
from natterjack.plugins import BrokenPlugin, Plugins
from natterjack.rights import Rule, Verb

WRITES: frozenset[tuple[str, Verb]] = frozenset({("*", "write")})


class Open(Guard):
    """Allows all."""

    name: ClassVar[str] = "open"

    def refuse(self, principal: str, verb: Verb, what: str) -> str | None:
        return None


class Closed(Open):
    """Refuses all."""

    name: ClassVar[str] = "closed"

    def refuse(self, principal: str, verb: Verb, what: str) -> str | None:
        return "it is closed"


class Failing(Open):
    """Fails at all."""

    name: ClassVar[str] = "failing"

    def refuse(self, principal: str, verb: Verb, what: str) -> str | None:
        raise LookupError("no policy")


class Only(Open):
    """Allows what its rules say."""

    name: ClassVar[str] = "only"

    def load(self, rules: Sequence[Rule], governed: frozenset[tuple[str, Verb]]) -> None:
        self.rules, self.governed = {(rule.principal, rule.verb, rule.pattern) for rule in rules}, governed

    def refuse(self, principal: str, verb: Verb, what: str) -> str | None:
        return None if (principal, verb, what) in self.rules else "no rule"


class Picky(Open):
    """Takes no rules."""

    name: ClassVar[str] = "picky"

    def load(self, rules: Sequence[Rule], governed: frozenset[tuple[str, Verb]]) -> None:
        raise ValueError("not these")


def with_guards(*guards: type[Guard]) -> Plugins:
    plugins = Plugins()
    plugins.guards.update({guard.name: guard for guard in guards})
    return plugins


def is_allowed(guards: Guards) -> bool:
    try:
        guards.check("writer", "write", "draft")
    except RefusedError:
        return False
    return True


def test_without_guards_all_may_be_done() -> None:
    assert is_allowed(Guards())
    assert is_allowed(Guards.load([], frozenset(), Plugins()))


@pytest.mark.parametrize("guards", [[Closed()], [Open(), Closed()], [Closed(), Open()], [Open(), Failing()]])
def test_any_refusal_wins(guards: list[Guard]) -> None:
    assert is_allowed(Guards([Open(), Open()]))
    assert not is_allowed(Guards(guards))


def test_a_refusal_says_who_and_what_and_why() -> None:
    with pytest.raises(RefusedError) as caught:
        Guards([Closed()]).check("writer", "write", "draft")
    assert str(caught.value) == "'writer' may not write 'draft': it is closed"
    assert isinstance(caught.value, PermissionError)


def test_a_guard_that_fails_refuses_and_is_named() -> None:
    with pytest.raises(RefusedError, match=r"the guard 'failing' failed \(LookupError: no policy\)") as caught:
        Guards([Failing()]).check("writer", "write", "draft")
    assert isinstance(caught.value.__cause__, LookupError)


def test_guards_take_the_rules() -> None:
    guards = Guards.load([Rule("writer", "write", "draft")], WRITES, with_guards(Only, Open))
    assert is_allowed(guards)
    with pytest.raises(RefusedError, match="no rule"):
        guards.check("writer", "write", "findings")


@pytest.mark.parametrize("installed", [[], [Closed]])
def test_rules_need_a_guard_that_takes_rules(installed: list[type[Guard]]) -> None:
    plugins = with_guards(*installed)
    plugins.broken.append(BrokenPlugin("permissions", "natterjack-permissions", "1.0", "ImportError: x"))
    with pytest.raises(ConfigError, match=r"`natterjack install natterjack-permissions`.*is broken: ImportError: x"):
        Guards.load([], WRITES, plugins)


def test_a_guard_that_takes_no_rules_stops_the_start() -> None:
    with pytest.raises(PluginError, match=r"'picky' does not take the rules \(ValueError: not these\)"):
        Guards.load([], WRITES, with_guards(Picky))


def test_installed_guards_are_the_default() -> None:
    guards = Guards.load([Rule("writer", "write", "draft", "team.toml:31")], WRITES)
    assert is_allowed(guards)
    with pytest.raises(RefusedError) as caught:
        guards.check("researcher", "write", "draft")
    assert str(caught.value) == (
        "'researcher' may not write 'draft': that is for 'writer' (team.toml:31); it may write nothing"
    )
