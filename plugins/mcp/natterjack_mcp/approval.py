"""Approval: calls that a human must allow. An agent's client asks one (`ctx.tools`), and shows by which events."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

from natterjack_mcp.errors import ToolApprovalError

APPROVAL_LASTS: Final = 86_400.0
"""Seconds for which it is remembered that a human's yes was used; it is good for an hour."""
SHOWN: Final = 2000
"""Characters of the arguments that a human is shown; of longer ones the hash stands for the rest."""


def question(server: str, tool: str, arguments: Mapping[str, Any], caller: str) -> str:
    """Return what a human is asked: the same for the same call, and another for any other."""
    given = orjson.dumps(dict(arguments), option=orjson.OPT_SORT_KEYS)
    text = given.decode()
    if len(text) > SHOWN:
        text = f"{text[:SHOWN]}… ({len(text):,} characters, SHA-256 {hashlib.sha256(given).hexdigest()})"
    return f"May {caller or 'nobody'} call {server}.{tool} with {text}?"


def approval_needed(server: str, tool: str, arguments: Mapping[str, Any], caller: str) -> ToolApprovalError:
    """Return the error that asks for a human."""
    msg = (
        f"a human must allow each call of {server}.{tool}, and a yes is good for one, within an hour; the team's "
        "agents get that done over NATS, by `ctx.tools`"
    )
    return ToolApprovalError(msg, {"question": question(server, tool, arguments, caller)})
