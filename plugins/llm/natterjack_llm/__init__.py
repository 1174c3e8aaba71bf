"""Language models as agents: the kind `llm` of a team, and `build_agent` for programs."""

from natterjack_llm.agent import ModelAgent
from natterjack_llm.config import Limits, ModelConfig
from natterjack_llm.errors import LimitError, ModelError
from natterjack_llm.plugin import natterjack_agents
from natterjack_llm.scripted import Call, Seen
from natterjack_llm.standalone import LLMAgent, build_agent

__all__ = [
    "Call",
    "LLMAgent",
    "LimitError",
    "Limits",
    "ModelAgent",
    "ModelConfig",
    "ModelError",
    "Seen",
    "build_agent",
    "natterjack_agents",
]
