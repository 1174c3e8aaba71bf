"""Settings of requests to a model: the library takes whatever is there, and leaves out what it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_ai.settings import ModelSettings

from natterjack import ConfigError

_ALIKE: Final = 0.85
"""How much alike an unknown name and a known one are, if one is a slip of the other: `openai_user` is none."""


@with_config(ConfigDict(arbitrary_types_allowed=True, extra="allow"))
class _Settings(ModelSettings, total=False):
    """Those of every provider; each has others, which begin with its name."""


_ADAPTER: Final = TypeAdapter(_Settings)


def settings_of(given: Mapping[str, Any]) -> ModelSettings:
    """Return settings.

    Raises:
        ConfigError: One has a wrong type, or a name that is nearly that of another.
    """
    known = _Settings.__annotations__
    for name in given.keys() - known.keys():
        if found := get_close_matches(name, known, 1, _ALIKE):
            msg = f"unknown key 'settings.{name}'. Did you mean {found[0]!r}?"
            raise ConfigError(msg)
    try:
        return _ADAPTER.validate_python(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = str(first["loc"][0])
        msg = f"'settings.{where}' is {given[where]!r}: {first['msg']}"
        raise ConfigError(msg) from error
