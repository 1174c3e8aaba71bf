"""Public names are documented: what each does, in which units, and which errors it raises."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Final

import pytest
from pydantic import BaseModel

import natterjack
from natterjack import errors
from natterjack.context import SharedContext
from natterjack.context.state import Change, Revision
from natterjack.context.writes import Write
from natterjack.events import EventBus, LiveEvents
from natterjack.runjournal import RunJournal
from natterjack.service import AgentInfo

REACHED: Final = (SharedContext, Change, Revision, Write, EventBus, LiveEvents, RunJournal, AgentInfo)
"""Classes that nobody imports, because public objects hand them out."""
DURATIONS: Final = re.compile(r"(timeout|delay|every|pause|budget|ttl|interval|heartbeat|expires|grace|time|since)$")
SIZES: Final = re.compile(r"(size|bytes|max_payload)$")

CLASSES = [value for name in natterjack.__all__ if inspect.isclass(value := getattr(natterjack, name))]
CLASSES += REACHED
FUNCTIONS = [value for name in natterjack.__all__ if inspect.isfunction(value := getattr(natterjack, name))]


def members(owner: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the public methods and properties that a class of ours has, its own or of a base of ours."""
    for name, value in inspect.getmembers_static(owner):
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(function) and function.__module__.startswith("natterjack"):
            yield name, function


CALLABLES = {f"{owner.__name__}.{name}": function for owner in CLASSES for name, function in members(owner)}
CALLABLES |= {function.__name__: function for function in FUNCTIONS}
OWNERS = {f"{owner.__name__}.{name}": owner for owner in CLASSES for name, _ in members(owner)}


def text_of(name: str) -> str:
    """Return the docstring of a callable; what it refers to (`see `x``, `as for `x``) belongs to it."""
    found = inspect.getdoc(CALLABLES[name]) or ""
    for other in re.findall(r"(?:as\s+for|see) `([\w.]+)`", found):
        full = other if "." in other else f"{OWNERS[name].__name__}.{other}"
        assert full in CALLABLES, f"{name} refers to {other!r}, which is no public name"
        found += "\n\n" + (inspect.getdoc(CALLABLES[full]) or "")
    return found


def raised(function: Callable[..., Any]) -> set[type[BaseException]]:
    """Return the errors that stand in its own `raise` statements."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    names = {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    found = [getattr(errors, name, getattr(builtins, name, None)) for name in names]
    return {kind for kind in found if inspect.isclass(kind) and issubclass(kind, BaseException)}


def documented(text: str) -> set[type[BaseException]]:
    """Return the errors that a docstring's `Raises:` names."""
    sections = re.findall(r"^Raises:\n((?:(?: +.*)?\n?)*)", text, re.MULTILINE)
    names = {name for section in sections for name in re.findall(r"^ {4}(\w+):", section, re.MULTILINE)}
    unknown = {name for name in names if not hasattr(errors, name) and not hasattr(builtins, name)}
    assert not unknown, f"no such errors: {unknown}"
    return {getattr(errors, name, None) or getattr(builtins, name) for name in names}


@pytest.mark.parametrize("name", CALLABLES)
def test_every_callable_says_what_it_does_and_in_which_units(name: str) -> None:
    text = text_of(name)
    assert re.match(r"\S.*[.?:]", text), f"{name} has no docstring"
    for parameter in inspect.signature(CALLABLES[name]).parameters:
        if DURATIONS.search(parameter):
            assert re.search("[Ss]econds?", text), (
                f"the docstring of {name} does not say that {parameter!r} is in seconds"
            )
        if SIZES.search(parameter):
            assert re.search("[Bb]ytes", text), f"the docstring of {name} does not say that {parameter!r} is in bytes"


@pytest.mark.parametrize("name", CALLABLES)
def test_every_callable_says_which_errors_it_raises(name: str) -> None:
    said = documented(text_of(name))
    unsaid = {
        kind.__name__ for kind in raised(CALLABLES[name]) - {StopAsyncIteration} if not issubclass(kind, (*said,))
    }
    assert not unsaid, f"the docstring of {name} has no `Raises:` for {unsaid}"
    hidden = {kind.__name__ for kind in said if issubclass(kind, natterjack.NatterjackError)} - set(natterjack.__all__)
    assert not hidden, f"{name} says that it raises {hidden}, which is not in natterjack.__all__"


@pytest.mark.parametrize("owner", CLASSES, ids=lambda owner: owner.__name__)
def test_every_class_tells_of_its_attributes(owner: type) -> None:
    text = inspect.cleandoc(owner.__doc__ or "")
    assert text, f"{owner.__name__} has no docstring of its own"
    known = [*fields(owner)] if is_dataclass(owner) else []
    names = [field.name for field in known]
    if issubclass(owner, BaseModel):
        names = [*owner.model_fields]
    told = re.findall(r"^ {4}(\w+): ", text.partition("Attributes:")[2], re.MULTILINE)
    missing = [name for name in names if not name.startswith("_") and name not in told]
    assert not missing, f"{owner.__name__} says nothing about {missing}"
    for name in names:
        line = re.search(rf"^ {{4}}{name}: ((?:.|\n {{8}})+)", text, re.MULTILINE)
        if DURATIONS.search(name) and line:
            assert re.search(r"second|server stored|deadline|Unix", line[1]), f"{owner.__name__}.{name}: which unit?"


ERRORS = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.NatterjackError)]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_says_when_it_is_raised_and_stands_in_the_tree(kind: type) -> None:
    assert re.match(r".{20,}", kind.__doc__ or ""), f"{kind.__name__} does not say when it is raised"
    tree = errors.__doc__ or ""
    line = next(line for line in tree.splitlines() if re.search(rf"\b{kind.__name__}\b", line))
    standard = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins" and base is not Exception]
    assert all(f"({name})" in line for name in standard), f"the tree does not say that {kind.__name__} is a {standard}"
