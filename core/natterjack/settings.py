"""Settings of components: what a team file says, validated, with one clear line for what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from natterjack.errors import ConfigError, nearest

C = TypeVar("C", bound=BaseModel)


class Settings(BaseModel):
    """Base of every `Config`: frozen, and an unknown key is an error with the nearest right one.

    One that takes secrets says `model_config = ConfigDict(hide_input_in_errors=True)`: errors then tell no value of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_settings(config: type[C], settings: Mapping[str, Any], owner: str) -> C:
    """Validate settings, with one clear line for the first thing that is wrong.

    Raises:
        ConfigError: It says where, what, and what was meant.
    """
    try:
        return config.model_validate(settings)
    except ValidationError as error:
        msg = f"{owner}: {explain(error, config)}"
        raise ConfigError(msg) from error


def explain(error: ValidationError, config: type[BaseModel]) -> str:
    """Return the first problem of a validation error as a sentence."""
    first = details(error, config)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the settings"
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}.{nearest(where, config.model_fields)}"
    if first["type"] == "missing":
        return f"{where!r} is missing"
    return f"{where!r}{given(first)}: {first['msg'].removeprefix('Value error, ')}"


def details(error: ValidationError, config: type[BaseModel]) -> list[ErrorDetails]:
    """Return what is wrong; without the values, where these settings hide them."""
    hidden = config.model_config.get("hide_input_in_errors", False)
    return error.errors(include_url=False, include_input=not hidden)


def given(problem: Mapping[str, Any]) -> str:
    """Return what stands there as ` is 7`, for a message; empty where it is hidden."""
    return f" is {problem['input']!r}" if "input" in problem else ""
