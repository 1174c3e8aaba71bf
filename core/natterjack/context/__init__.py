"""The shared context: state that a team reads locally and writes through the broker."""

from natterjack.context.shared import AgentContext, SharedContext, Transaction

__all__ = [
    "AgentContext",
    "SharedContext",
    "Transaction",
]
