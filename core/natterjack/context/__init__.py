"""The shared context: state that a team reads locally and writes through the broker."""

from natterjack.context.shared import AgentContext, SharedContext, Transaction
from natterjack.context.writer import CAUSE

__all__ = [
    "CAUSE",
    "AgentContext",
    "SharedContext",
    "Transaction",
]
