"""What both sides of an ask agree on: codes and limits."""

from __future__ import annotations

from typing import Final

from natterjack.messages import Envelope

MAX_DEPTH: Final = 16
"""How many events and asks may lead to one another before it is called a loop."""
ASK_TIMEOUT: Final = 60.0
LONGEST: Final = 86_400.0
"""Seconds one ask may take, whatever its header says."""

DRAINING: Final = 503
"""Code of an agent that is about to stop: another replica may answer."""
CANCELLED: Final = 499


def loop_message(envelope: Envelope) -> str:
    """Return what to say about an envelope that is too deep."""
    return (
        f"{envelope.depth} events and asks led to one another, more than {MAX_DEPTH}: this looks like a loop; "
        f"the last cause was {envelope.cause!r}"
    )
