"""JSON Schemas, and what a model writes that does not fit them: it is told what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

_NOTHING_ELSE: Final[Registry[Any]] = Registry()
"""So that a tool's schema that refers to an address has nobody ask there."""


def misfit(value: Any, schema: Mapping[str, Any]) -> str:
    """Return what is wrong with a value first; nothing if it fits."""
    validator = Draft202012Validator(schema, registry=_NOTHING_ELSE)
    try:
        error = next(iter(validator.iter_errors(value)), None)
    except Unresolvable as problem:
        return f"the schema refers to {problem.ref!r}, which is not in it"
    return "" if error is None else _told(error.absolute_path, error.message)


def broken(schema: Mapping[str, Any]) -> str:
    """Return what is wrong with a schema itself; nothing if it is one."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return _told(error.absolute_path, error.message)
    return ""


def _told(path: Any, message: str) -> str:
    where = ".".join(map(str, path))
    return f"{where}: {message}" if where else message
