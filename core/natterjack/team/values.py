"""The values of a team file: what JSON can hold, and the names, types and patterns that stand in it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize

from natterjack.codec import MAX_DEPTH
from natterjack.expressions import check_routing
from natterjack.subjects import check_keys, check_name, check_pattern, check_type

_IMPORT: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*\Z")

_LEAST_MEMORY: Final = 10_000_000


def plain(value: object, depth: int = 0) -> Any:
    """Return a value as JSON will give it back: tuples as lists, dates and times as ISO 8601 text.

    Raises:
        ValueError: JSON has no form for it, or it nests deeper than 64 levels.
    """
    if depth > MAX_DEPTH:
        msg = f"nested deeper than {MAX_DEPTH} levels; write it flatter"
        raise ValueError(msg)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {_text_key(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if value is None or isinstance(value, str | bool) or _is_json_number(value):
        return value
    msg = f"{value!r} has no form in JSON; use text, finite numbers up to 64 bits, lists and tables"
    raise ValueError(msg)


def _is_json_number(value: object) -> bool:
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return isinstance(value, float) and math.isfinite(value)


def _text_key(key: object) -> str:
    if not isinstance(key, str):
        msg = f"the key {key!r} is no text"
        raise ValueError(msg)  # noqa: TRY004 - pydantic reports a ValueError with its place
    return key


def listed(value: object) -> object:
    """One item alone is a list of one."""
    return (value,) if isinstance(value, str | Mapping | BaseModel) else value


def _check_kind(kind: str) -> str:
    if not _IMPORT.match(kind):
        if ":" in kind or "." in kind:
            msg = f"{kind!r} is no valid kind; write 'module:Class', e.g. 'my_package.agents:Counter'"
            raise ValueError(msg)
        check_name(kind, "kind of agent")
    return kind


def _check_memory(size: ByteSize) -> ByteSize:
    if size < _LEAST_MEMORY:
        msg = f'{int(size)} bytes are too few for any process; write the size with its unit, e.g. "500MB"'
        raise ValueError(msg)
    return size


Plain = Annotated[Any, BeforeValidator(plain)]
Name = Annotated[str, AfterValidator(check_name)]
ToolName = Annotated[str, AfterValidator(lambda name: check_name(name, "tool server name"))]
ToolKind = Annotated[str, AfterValidator(lambda name: check_name(name, "kind of tool server"))]
TeamName = Annotated[str, AfterValidator(lambda name: check_name(name, "team name"))]
JournalName = Annotated[str, AfterValidator(lambda name: check_name(name, "journal"))]
TriggerName = Annotated[str, AfterValidator(lambda name: check_name(name, "trigger"))]
RoutingCondition = Annotated[str, AfterValidator(check_routing)]
FieldPath = Annotated[str, AfterValidator(lambda path: check_type(path, "path of a field"))]
EventType = Annotated[str, AfterValidator(check_type)]
ContextKey = Annotated[str, AfterValidator(lambda name: check_type(name, "context key"))]
State = dict[ContextKey, Plain]
BucketName = Annotated[str, AfterValidator(lambda name: check_name(name, "bucket name"))]
Pattern = Annotated[str, AfterValidator(check_pattern)]
OneOrMore = BeforeValidator(listed, json_schema_input_type=str | list[str])
Names = Annotated[tuple[Name, ...], OneOrMore]
Patterns = Annotated[tuple[Pattern, ...], OneOrMore]
Keys = Annotated[tuple[Annotated[str, AfterValidator(check_keys)], ...], OneOrMore]
MemorySize = Annotated[ByteSize, AfterValidator(_check_memory)]
Kind = Annotated[str, AfterValidator(_check_kind)]
