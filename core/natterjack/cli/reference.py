"""The reference of what plugins implement and what they are given, made from the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, Final

from natterjack import hookspecs
from natterjack.clock import Clock
from natterjack.components import (
    Agent,
    Component,
    Entry,
    Guard,
    Journal,
    PeerScheme,
    StreamTrigger,
    Trigger,
    TriggerContext,
)
from natterjack.messages import Answer, Event, Firing, PlainMessage, Schedule
from natterjack.middleware import Middleware
from natterjack.rights import Right, Rule
from natterjack.runs import RunContext
from natterjack.runtools import RunTools
from natterjack.settings import Settings
from natterjack.specs import ConsumerSpec, ScheduleSpec
from natterjack.toolserver import ToolClient, ToolInfo, ToolServer, ToolServerContext

BEGIN: Final = "<!-- reference: begin -->"
END: Final = "<!-- reference: end -->"

COMPONENTS: Final[tuple[type, ...]] = (
    Component,
    Agent,
    Trigger,
    StreamTrigger,
    Guard,
    Journal,
    PeerScheme,
    ToolServer,
    Middleware,
)
GIVEN: Final[tuple[type, ...]] = (
    RunContext,
    RunTools,
    TriggerContext,
    ToolServerContext,
    ToolClient,
    ToolInfo,
    Clock,
    Settings,
    Event,
    PlainMessage,
    Answer,
    Entry,
    Rule,
    Right,
    ConsumerSpec,
    ScheduleSpec,
    Schedule,
    Firing,
)
_ITEM: Final = re.compile(r"^([^:]+):")
_SECTION: Final = re.compile(r"(Attributes|Args|Returns|Raises|Example.*?):{1,2}$")


def hooks() -> dict[str, Any]:
    """Return the specification of each hook by its name."""
    return {name: spec for name, spec in vars(hookspecs).items() if name.startswith("natterjack_")}


def reference() -> str:
    """Return the reference as Markdown."""
    return "\n".join(_lines()).rstrip() + "\n"


def updated(text: str) -> str:
    """Return a text with the reference between its markers.

    Raises:
        ValueError: It has no markers.
    """
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        msg = f"the text has no lines {BEGIN!r} and {END!r}"
        raise ValueError(msg)
    return f"{before}{begin}\n{reference()}\n{end}{after}"


def _lines() -> Iterator[str]:
    yield "## Hooks\n"
    for name, spec in hooks().items():
        deprecated = getattr(spec, "natterjack_spec", {}).get("warn_on_impl")
        yield f"- `{name}{_signature(spec)}`: {_summary(spec)}" + (f" Deprecated: {deprecated}" if deprecated else "")
    yield "\n## What a plugin implements\n"
    for cls in COMPONENTS:
        yield from _of_class(cls)
    yield "## What a plugin is given\n"
    for cls in GIVEN:
        yield from _of_class(cls)


def _of_class(cls: type) -> Iterator[str]:
    bases = [base.__name__ for base in cls.__bases__ if base in COMPONENTS]
    yield f"### {cls.__name__}{f' ({bases[0]})' if bases else ''}\n"
    sections = _sections(inspect.getdoc(cls) or "")
    yield f"{sections.pop('')}\n"
    if "Attributes" in sections:
        yield f"{_listed(sections['Attributes'])}\n"
    for title, text in sections.items():
        if title.startswith("Example"):
            yield f"{title}:\n\n```python\n{text}\n```\n" if "team file" not in title else f"{title}:\n\n{text}\n"
    members = [(name, member) for name, member in vars(cls).items() if not name.startswith("_")]
    methods = [_method(name, member) for name, member in members if _is_method(member)]
    if methods:
        yield "\n".join(methods) + "\n"


def _is_method(member: object) -> bool:
    return inspect.isfunction(member) or isinstance(member, classmethod | property)


def _method(name: str, member: Any) -> str:
    if isinstance(member, property):
        assert member.fget is not None  # noqa: S101 - all of ours can be read
        return f"- `{name}: {member.fget.__annotations__['return']}`: {_summary(member)}"
    function = member.__func__ if isinstance(member, classmethod) else member
    prefix = "await " if inspect.iscoroutinefunction(function) else ""
    must = " To be implemented." if getattr(function, "__isabstractmethod__", False) else ""
    raises = _sections(inspect.getdoc(function) or "").get("Raises", "")
    told = f"\n  Raises:\n{_listed(raises, '  ')}" if raises else ""
    return f"- `{prefix}{name}{_signature(function)}`: {_summary(member)}{must}{told}"


def _signature(function: Any) -> str:
    """Return the arguments as they are written, without `self`."""
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    shown = [each.replace(annotation=_Written(each.annotation)) for each in parameters]
    text = str(signature.replace(parameters=shown, return_annotation=inspect.Signature.empty))
    return f"{text} -> {signature.return_annotation}"


class _Written:
    """An annotation that is shown as it is written: `inspect` would put a text between quotes."""

    def __init__(self, text: object) -> None:
        self._text = text

    def __repr__(self) -> str:
        return str(self._text)


def _summary(member: object) -> str:
    return " ".join(_sections(inspect.getdoc(member) or "")[""].partition("\n\n")[0].split())


def _sections(doc: str) -> dict[str, str]:
    """Return the parts of a docstring by their titles; what stands before them by an empty one."""
    found: dict[str, list[str]] = {"": []}
    title = ""
    for line in doc.splitlines():
        if section := _SECTION.fullmatch(line):
            title = section[1]
            found[title] = []
        else:
            if title and line and not line.startswith(" "):
                title = ""
            found[title].append(line)
    return {title: inspect.cleandoc("\n".join(lines)) for title, lines in found.items()}


def _listed(text: str, indent: str = "") -> str:
    """Return `name: what it is` lines of a docstring as a list."""
    items = [_ITEM.sub(r"- `\1`:", line) for line in re.sub(r"\n +", " ", text).splitlines() if line]
    return "\n".join(f"{indent}{item}" for item in items)
