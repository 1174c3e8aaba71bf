"""Natterjack: a message-broker based plugin system for multi-agent coordination on NATS."""

from natterjack.builtin import EventTrigger, FileJournal, MessageTrigger
from natterjack.client import Run, TeamClient, connect
from natterjack.clock import Clock
from natterjack.components import (
    Agent,
    Component,
    ConsumerSpec,
    Entry,
    Guard,
    Journal,
    Middleware,
    PeerScheme,
    Rule,
    Settings,
    StreamTrigger,
    ToolServer,
    Trigger,
    TriggerContext,
)
from natterjack.context import AgentContext, Transaction
from natterjack.errors import (
    BrokerError,
    ConfigError,
    ConflictError,
    ConnectError,
    CredentialsError,
    InvalidNameError,
    LoopError,
    NatterjackError,
    NotProvisionedError,
    PatternError,
    PayloadError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    PeerTimeoutError,
    PeerUnavailableError,
    PluginError,
    QueryError,
    QueryTimeoutError,
    RefusedError,
    RunFailedError,
    StartError,
)
from natterjack.hookspecs import hookimpl
from natterjack.journal import StreamJournal
from natterjack.messages import Answer, Answers, Attachment, Event, Query
from natterjack.peers import AnswerStream
from natterjack.process import AgentProcess
from natterjack.rights import Right, Verb
from natterjack.runs import RunContext
from natterjack.runtime import AgentRuntime
from natterjack.server import Server
from natterjack.subjects import matches

__all__ = [
    "Agent",
    "AgentContext",
    "AgentProcess",
    "AgentRuntime",
    "Answer",
    "AnswerStream",
    "Answers",
    "Attachment",
    "BrokerError",
    "Clock",
    "Component",
    "ConfigError",
    "ConflictError",
    "ConnectError",
    "ConsumerSpec",
    "CredentialsError",
    "Entry",
    "Event",
    "EventTrigger",
    "FileJournal",
    "Guard",
    "InvalidNameError",
    "Journal",
    "LoopError",
    "MessageTrigger",
    "Middleware",
    "NatterjackError",
    "NotProvisionedError",
    "PatternError",
    "PayloadError",
    "PeerBusyError",
    "PeerError",
    "PeerRefusedError",
    "PeerScheme",
    "PeerTimeoutError",
    "PeerUnavailableError",
    "PluginError",
    "Query",
    "QueryError",
    "QueryTimeoutError",
    "RefusedError",
    "Right",
    "Rule",
    "Run",
    "RunContext",
    "RunFailedError",
    "Server",
    "Settings",
    "StartError",
    "StreamJournal",
    "StreamTrigger",
    "TeamClient",
    "ToolServer",
    "Transaction",
    "Trigger",
    "TriggerContext",
    "Verb",
    "connect",
    "hookimpl",
    "matches",
]
