"""The hooks of the built-in components."""

from __future__ import annotations

from natterjack.builtin.agents import PythonAgent
from natterjack.builtin.journals import FileJournal
from natterjack.builtin.peers import NatsPeers
from natterjack.builtin.triggers import ContextTrigger, EventTrigger, InboxTrigger, MessageTrigger, SubjectTrigger
from natterjack.components import Agent, Journal, PeerScheme, Trigger
from natterjack.hookspecs import hookimpl
from natterjack.journal import StreamJournal


@hookimpl
def natterjack_agents() -> list[type[Agent]]:
    """Agents by import."""
    return [PythonAgent]


@hookimpl
def natterjack_triggers() -> list[type[Trigger]]:
    """Events, messages, the inbox, the shared context, and plain subjects."""
    return [ContextTrigger, EventTrigger, InboxTrigger, MessageTrigger, SubjectTrigger]


@hookimpl
def natterjack_journals() -> list[type[Journal]]:
    """The stream, and files."""
    return [FileJournal, StreamJournal]


@hookimpl
def natterjack_peers() -> list[type[PeerScheme]]:
    """Agents of other servers."""
    return [NatsPeers]
