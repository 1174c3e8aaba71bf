"""All guards of a process as one: each installed guard is asked, and a refusal of any wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Self

from natterjack.components import Guard
from natterjack.errors import ConfigError, PluginError, RefusedError
from natterjack.plugins import Plugins
from natterjack.rights import Rule, Verb

FIRST_PARTY: Final = "natterjack-permissions"
"""The distribution whose guard enforces rules."""


class Guards:
    """The guards that are asked before something is done; without any, all may be done.

    Args:
        guards: Guards that have their rules.
    """

    def __init__(self, guards: Sequence[Guard] = ()) -> None:
        self._guards = tuple(guards)
        self._told: dict[str, Callable[[str, str, str], None]] = {}

    @classmethod
    def load(cls, rules: Sequence[Rule], governed: frozenset[tuple[str, Verb]], plugins: Plugins | None = None) -> Self:
        """Make every installed guard and give it the rules.

        Args:
            rules: What is allowed.
            governed: What is refused unless a rule allows it; see `Guard.load`.
            plugins: Where the guards come from; the installed plugins by default.

        Raises:
            ConfigError: Something is governed, and no guard is installed that could refuse it.
            PluginError: A guard does not take the rules.
        """
        plugins = plugins or Plugins.load()
        # A guard without a `load` of its own, such as one for office hours, enforces no rules.
        if governed and all(guard.load is Guard.load for guard in plugins.guards.values()):
            broken = "".join(f" Note that {plugin}." for plugin in plugins.broken)
            msg = f"permissions need a guard, and none is installed: `natterjack install {FIRST_PARTY}`.{broken}"
            raise ConfigError(msg)
        return cls([_loaded(guard, rules, governed) for guard in plugins.guards.values()])

    def tell(self, principal: str, told: Callable[[str, str, str], None]) -> None:
        """Have somebody told what this principal is refused from now on: the verb, of what, and why."""
        self._told[principal] = told

    def check(self, principal: str, verb: Verb, what: str) -> None:
        """Return if all guards allow it.

        Raises:
            RefusedError: One refuses, or fails: who wanted what, and the guard's reason.
        """
        for guard in self._guards:
            failure = None
            try:
                reason = guard.refuse(principal, verb, what)
            except Exception as error:
                failure, reason = error, f"the guard {guard.name!r} failed ({type(error).__name__}: {error})"
            if reason is not None:
                if principal in self._told:
                    self._told[principal](verb, what, reason)
                msg = f"{principal!r} may not {verb} {what!r}: {reason}"
                raise RefusedError(msg) from failure


def _loaded(kind: type[Guard], rules: Sequence[Rule], governed: frozenset[tuple[str, Verb]]) -> Guard:
    guard = kind.create({})
    try:
        guard.load(rules, governed)
    except Exception as error:
        msg = f"the guard {kind.name!r} does not take the rules ({type(error).__name__}: {error})"
        raise PluginError(msg) from error
    return guard
