"""Natterjack: a message-broker based plugin system for multi-agent coordination on NATS."""

from natterjack.admission import Admission
from natterjack.approvals import is_approved
from natterjack.builtin import ContextTrigger, EventTrigger, FileJournal, MessageTrigger, SubjectTrigger
from natterjack.bus import Bus, Message
from natterjack.client import Run, TeamClient, connect, find_server
from natterjack.clock import Clock
from natterjack.components import (
    Agent,
    Component,
    Entry,
    Guard,
    Journal,
    PeerScheme,
    StreamTrigger,
    Trigger,
    TriggerContext,
)
from natterjack.context import AgentContext, SharedContext, Transaction
from natterjack.conversations import Conversations
from natterjack.errors import (
    ApprovalDeniedError,
    ApprovalRequiredError,
    BrokerError,
    BrokerNotFoundError,
    BrokerStartError,
    ConfigError,
    ConflictError,
    ConnectError,
    CredentialsError,
    DisconnectedError,
    FencedError,
    InvalidNameError,
    LoopError,
    NatterjackError,
    NondeterminismError,
    NoRespondersError,
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
    RequestTimeoutError,
    RunFailedError,
    ShareError,
    StartError,
    StreamError,
    TokenError,
    UnknownAgentError,
    UsageError,
    WaitTimeoutError,
)
from natterjack.hookspecs import hookimpl
from natterjack.journal import StreamJournal
from natterjack.messages import Answer, Answers, Attachment, Envelope, Event, Firing, PlainMessage, Query, Schedule
from natterjack.middleware import Middleware
from natterjack.needs import agent_rights
from natterjack.peers import AnswerStream
from natterjack.process import AgentProcess
from natterjack.quota import Quota
from natterjack.rights import Permissions, Right, Rule, Verb, permissions
from natterjack.runs import RunContext
from natterjack.runtime import AgentRuntime
from natterjack.server import Server
from natterjack.service import Endpoint, MicroService
from natterjack.settings import Settings
from natterjack.specs import ConsumerSpec, ScheduleSpec
from natterjack.subjects import matches, widest
from natterjack.team import AgentSpec, Team, read_team
from natterjack.tokens import Claims, Tokens
from natterjack.toolserver import ToolClient, ToolInfo, ToolServer, ToolServerContext, ToolSource
from natterjack.toolsubjects import ToolSubjects

__all__ = [
    "Admission",
    "Agent",
    "AgentContext",
    "AgentProcess",
    "AgentRuntime",
    "AgentSpec",
    "Answer",
    "AnswerStream",
    "Answers",
    "ApprovalDeniedError",
    "ApprovalRequiredError",
    "Attachment",
    "BrokerError",
    "BrokerNotFoundError",
    "BrokerStartError",
    "Bus",
    "Claims",
    "Clock",
    "Component",
    "ConfigError",
    "ConflictError",
    "ConnectError",
    "ConsumerSpec",
    "ContextTrigger",
    "Conversations",
    "CredentialsError",
    "DisconnectedError",
    "Endpoint",
    "Entry",
    "Envelope",
    "Event",
    "EventTrigger",
    "FencedError",
    "FileJournal",
    "Firing",
    "Guard",
    "InvalidNameError",
    "Journal",
    "LoopError",
    "Message",
    "MessageTrigger",
    "MicroService",
    "Middleware",
    "NatterjackError",
    "NoRespondersError",
    "NondeterminismError",
    "NotProvisionedError",
    "PatternError",
    "PayloadError",
    "PeerBusyError",
    "PeerError",
    "PeerRefusedError",
    "PeerScheme",
    "PeerTimeoutError",
    "PeerUnavailableError",
    "Permissions",
    "PlainMessage",
    "PluginError",
    "Query",
    "QueryError",
    "QueryTimeoutError",
    "Quota",
    "RefusedError",
    "RequestTimeoutError",
    "Right",
    "Rule",
    "Run",
    "RunContext",
    "RunFailedError",
    "Schedule",
    "ScheduleSpec",
    "Server",
    "Settings",
    "ShareError",
    "SharedContext",
    "StartError",
    "StreamError",
    "StreamJournal",
    "StreamTrigger",
    "SubjectTrigger",
    "Team",
    "TeamClient",
    "TokenError",
    "Tokens",
    "ToolClient",
    "ToolInfo",
    "ToolServer",
    "ToolServerContext",
    "ToolSource",
    "ToolSubjects",
    "Transaction",
    "Trigger",
    "TriggerContext",
    "UnknownAgentError",
    "UsageError",
    "Verb",
    "WaitTimeoutError",
    "agent_rights",
    "connect",
    "find_server",
    "hookimpl",
    "is_approved",
    "matches",
    "permissions",
    "read_team",
    "widest",
]
