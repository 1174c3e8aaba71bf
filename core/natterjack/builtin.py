"""The kernel's own components, brought through the same hooks as everybody's."""

from __future__ import annotations

from natterjack.components import Agent, Journal, Trigger
from natterjack.hookspecs import hookimpl
from natterjack.journal import FileJournal, StreamJournal
from natterjack.kinds import PythonAgent
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
