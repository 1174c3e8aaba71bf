"""The kernel's own components, brought through the same hooks as everybody's."""

from __future__ import annotations

from natterjack.components import Agent, Journal, PeerScheme, Trigger
from natterjack.hookspecs import hookimpl
from natterjack.journal import FileJournal, StreamJournal
from natterjack.kinds import PythonAgent
from natterjack.remote import NatsPeers
from natterjack.triggers import EventTrigger, InboxTrigger, MessageTrigger


@hookimpl
def natterjack_agents() -> list[type[Agent]]:
    """Agents by import."""
    return [PythonAgent]


@hookimpl
def natterjack_triggers() -> list[type[Trigger]]:
    """Events, messages, the inbox."""
    return [EventTrigger, InboxTrigger, MessageTrigger]


@hookimpl
def natterjack_journals() -> list[type[Journal]]:
    """The stream, and files."""
    return [FileJournal, StreamJournal]


@hookimpl
def natterjack_peers() -> list[type[PeerScheme]]:
    """Agents of other servers."""
    return [NatsPeers]
