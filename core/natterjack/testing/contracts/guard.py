"""What the kernel relies on in a guard."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import ClassVar, cast, get_args

import pytest

from natterjack.components import Component, Guard, Kind
from natterjack.errors import RefusedError
from natterjack.guards import Guards
from natterjack.rights import Rule, Verb
from natterjack.testing.contracts.component import PROMPTLY, TESTED, ComponentContract


class GuardContract(ComponentContract):
    """What the kernel relies on in a guard.

    Attributes:
        rules: What the team allows.
        governed: What is refused unless a rule allows it.
        refused: Principal, verb and what it must refuse with these rules.
        allowed: The same for what it must allow.
    """

    kind: ClassVar[Kind] = "guard"
    base: ClassVar[type[Component]] = Guard
    rules: ClassVar[Sequence[Rule]] = ()
    governed: ClassVar[frozenset[tuple[str, Verb]]] = frozenset()
    refused: ClassVar[tuple[str, Verb, str]]
    allowed: ClassVar[tuple[str, Verb, str]]

    def _loaded(self) -> Guard:
        guard = cast("Guard", self.component.create({}))  # as the kernel makes it: a guard has no place for settings
        guard.load(self.rules, self.governed)
        return guard

    def test_is_synchronous(self) -> None:
        """It is asked in the midst of an act, and decides at once."""
        assert not inspect.iscoroutinefunction(self.component.load)  # type: ignore[attr-defined]
        assert not inspect.iscoroutinefunction(self.component.refuse)  # type: ignore[attr-defined]
        guard, began = self._loaded(), time.perf_counter()
        for _ in range(100):
            guard.refuse(*self.refused)
        assert time.perf_counter() - began < PROMPTLY

    def test_refuses_by_a_reason(self) -> None:
        """What must not be done is an error that says why; the rest is done."""
        guard = self._loaded()
        assert guard.refuse(*self.allowed) is None
        reason = guard.refuse(*self.refused)
        assert reason is not None
        assert reason.strip()
        with pytest.raises(RefusedError) as caught:
            Guards([guard]).check(*self.refused)
        assert reason in str(caught.value)

    def test_is_total(self) -> None:
        """Whoever wants to do whatever: it answers, and never raises."""
        guard = self._loaded()
        for principal in ("operator", "anyone", "nobody-of-the-team", TESTED):
            for verb in get_args(Verb):
                for what in (">", "*", "a", "a.b.c", "a.*", "a.>", "a" * 255, "ä.ß", ""):
                    reason = guard.refuse(principal, verb, what)
                    assert reason is None or reason.strip(), (principal, verb, what)

    def test_takes_rules_again(self) -> None:
        """No rules are rules, too, and a team may give new ones."""
        guard = self._loaded()
        guard.load((), frozenset())
        guard.load(self.rules, self.governed)
        assert guard.refuse(*self.allowed) is None
        assert guard.refuse(*self.refused) is not None
