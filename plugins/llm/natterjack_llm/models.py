"""From the name of a model to the model; a missing key, or package, is one clear line at the start."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, Final

from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.providers import Provider, infer_provider_class

from natterjack import ConfigError
from natterjack_llm.local import LOCAL, local_model
from natterjack_llm.provider import ProviderModel
from natterjack_llm.scripted import scripted_model

SCRIPTED: Final = "scripted"
_KEY: Final = re.compile(r"`(\w+_API_KEY)`")
NO_KEY: Final = "none"
"""What a server of one's own gets as key, where the environment has none."""


def model_of(names: Sequence[str], base_url: str | None = None) -> Model:
    """Return the model of a name, or of several, each of which stands in for the one before it.

    Args:
        names: E.g. `openai:gpt-5-mini`, or `local`.
        base_url: Where a compatible server is.

    Raises:
        ConfigError: One is unknown, or its key or package is missing.
    """
    first, *others = [_named(name, base_url) for name in names]
    return FallbackModel(first, *others) if others else first


def _named(name: str, base_url: str | None) -> Model:
    kind, _, rest = name.partition(":")
    if kind == SCRIPTED:
        return scripted_model(rest)
    if kind == LOCAL:
        return local_model(rest)
    try:
        found = infer_model(name) if base_url is None else infer_model(name, lambda kind: _provider(kind, base_url))
    except ImportError as error:
        msg = f"the model {name!r} needs a package that is not installed: {_line(error)}"
        raise ConfigError(msg) from error
    except (UserError, ValueError, TypeError) as error:
        key = _KEY.search(str(error))  # the rest is advice for those who use the library
        msg = f"the model {name!r} cannot be used: {f'set {key[1]} in the environment' if key else _line(error)}"
        raise ConfigError(msg) from error
    except Exception as error:  # a provider's client says in its own way that it has no key
        msg = f"the model {name!r} cannot be used: {type(error).__name__}: {_line(error)}"
        raise ConfigError(msg) from error
    return ProviderModel(found)


def _provider(kind: str, base_url: str) -> Provider[Any]:
    provider = kind.removesuffix("-chat").removesuffix("-responses")
    key = os.environ.get(f"{provider.upper().replace('-', '_')}_API_KEY", NO_KEY)
    try:
        made: Provider[Any] = infer_provider_class(kind)(base_url=base_url, api_key=key)  # type: ignore[call-arg]
    except TypeError as error:
        msg = f"{kind!r} takes no 'base_url'; for a server that speaks as OpenAI does, write 'openai-chat:NAME'"
        raise UserError(msg) from error
    return made


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
