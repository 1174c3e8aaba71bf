"""Conditions in one safe expression language, for filters (`where`) and routing (`result_events`).

The language is the Common Expression Language (CEL), without what walks lists (`all`, `exists`, `map`, `filter`) and
without regular expressions: a condition runs no code of its author's, and takes time in proportion to its text and
to the data it looks at.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, Final

from natterjack.errors import ConfigError, PayloadError, nearest
from natterjack.messages import Event

log = logging.getLogger("natterjack.expressions")

EVENT_VARIABLES: Final = ("data", "type", "source", "id", "time")
"""What a condition may say about an event; see `Event`."""
RESULT_VARIABLES: Final = ("result", *EVENT_VARIABLES)
"""What a condition may say about what a handler returned, and about the event it handled."""
MAX_LENGTH: Final = 500
MAX_NESTING: Final = 16  # the parser recurses, and a small stack of a thread has room for little more

_FUNCTIONS: Final = (
    *("size", "contains", "startsWith", "endsWith", "int", "double", "string", "timestamp", "duration"),
    *("_&&_", "_||_", "!_", "_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "@in", "_[_]", "_?_:_"),
    *("_+_", "_-_", "_*_", "_/_", "_%_", "-_"),
)
_WALK: Final = re.compile(r"\.\s*(all|exists|exists_one|existsOne|map|filter)\s*\(")
_SYNTAX: Final = re.compile(r"<input>:\d+:(\d+): (?:Syntax error: )?(.*?)(?: expecting |\n|\Z)")


class Condition:
    """A condition that was checked, to be asked often.

    Example::

        Condition('data.total > 100 && source == "shop"', EVENT_VARIABLES).holds(data={"total": 150}, source="shop")

    Args:
        text: `==`, `!=`, `<`, `>=`, `&&`, `||`, `!`, `in`, arithmetic, `has(data.field)`, `size(x)`,
            `x.contains(y)`, `x.startsWith(y)`, `x.endsWith(y)`, `a ? b : c`, and conversions such as `double(x)`.
        variables: The names it may use.

    Raises:
        ConfigError: It cannot be read, or uses a name or a function that is not there; with the nearest right one.
    """

    def __init__(self, text: str, variables: Sequence[str]) -> None:
        # Only here, because it takes half a second: its package imports a command line of its own.
        import cel

        self.text = text
        _check_size(text)
        try:
            self._program = cel.compile(text)
        except ValueError as error:
            raise ConfigError(_syntax_problem(text, str(error))) from error
        _check_names(text, self._program.variables(), variables, "name")
        _check_names(text, self._program.functions(), _FUNCTIONS, "function")
        if not self._program.variables():
            self._check_constant()
        self._told = False

    def __str__(self) -> str:
        return self.text

    def holds(self, **values: Any) -> bool:
        """Tell whether it holds for these values; where a field or an index is missing, it does not.

        The first time something is missing, a line of the log says what: it may be a misspelt name.

        Raises:
            PayloadError: It cannot be decided, e.g. because it compares text with a number.
        """
        try:
            result = self._program.execute(values)
        except LookupError as error:
            self._tell_missing(error)
            return False
        except BaseException as error:  # a panic of the library is no `Exception`; nothing else can happen here
            reason = str(error).partition(". ")[0]
            msg = f"the condition {self.text!r} cannot be decided: {reason}"
            raise PayloadError(msg) from error
        if not isinstance(result, bool):
            msg = f"the condition {self.text!r} gives {result!r:.80}, which is neither true nor false; compare it"
            raise PayloadError(msg)
        return result

    def _check_constant(self) -> None:
        try:
            self.holds()
        except PayloadError as error:
            raise ConfigError(str(error)) from error

    def _tell_missing(self, error: LookupError) -> None:
        if not self._told:
            self._told = True
            text = "the condition %r does not hold where %s is missing (said once); `has(…)` asks without this line"
            log.warning(text, self.text, error)


def check_filter(text: str) -> str:
    """Return the condition of a filter as it is, or raise `ConfigError` if it is none."""
    return Condition(text, EVENT_VARIABLES).text


def check_routing(text: str) -> str:
    """Return a condition about a result as it is, or raise `ConfigError` if it is none."""
    return Condition(text, RESULT_VARIABLES).text


def about(event: Event) -> dict[str, Any]:
    """Return the values of what a condition may say about an event."""
    return {name: getattr(event, name) for name in EVENT_VARIABLES}


def _check_size(text: str) -> None:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    if len(text) > MAX_LENGTH or deepest > MAX_NESTING or not text.isprintable():
        msg = f"{text[:80]!r}… is no valid condition: one line of {MAX_LENGTH} characters, {MAX_NESTING} brackets deep"
        raise ConfigError(msg)
    if walk := _WALK.search(text):
        msg = f"{text!r} walks a list by `{walk[1]}`, which a condition must not; ask e.g. '\"x\" in data.tags'"
        raise ConfigError(msg)


def _syntax_problem(text: str, problem: str) -> str:
    column, what = found.groups() if (found := _SYNTAX.search(problem)) else ("1", problem)
    example = "'data.total > 100 && source == \"shop\"'"
    return f"{text!r} is no valid condition: {what} (character {column}); write e.g. {example}"


def _check_names(text: str, used: Sequence[str], known: Sequence[str], what: str) -> None:
    for name in used:
        if name not in known:
            right = [each for each in (*known, "true", "false", "null") if each.isalpha()]
            hint = nearest(name, right) or f" There are: {', '.join(each for each in known if each.isalpha())}."
            msg = f"the condition {text!r} uses an unknown {what} {name!r}.{hint}"
            raise ConfigError(msg)
