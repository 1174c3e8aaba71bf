"""The hooks."""

from __future__ import annotations

from natterjack import Agent, hookimpl
from natterjack_llm.agent import ModelAgent


@hookimpl
def natterjack_agents() -> list[type[Agent]]:
    """Bring the kind `llm`."""
    return [ModelAgent]
