"""Shared tool servers (MCP): one server for many agents, which decides who may call which tool."""

from natterjack_mcp.audit import AuditMiddleware
from natterjack_mcp.auth import ApiKeyAuth, Auth, JWTAuth
from natterjack_mcp.caller import Caller
from natterjack_mcp.client import nats_client
from natterjack_mcp.context import ToolContext
from natterjack_mcp.errors import (
    CallError,
    ToolApprovalError,
    ToolBusyError,
    ToolError,
    ToolRefusedError,
    ToolTimeoutError,
    ToolUnavailableError,
    UnauthenticatedError,
)
from natterjack_mcp.guards import (
    All,
    Any,
    HasAllRoles,
    HasAllScopes,
    HasAnyRole,
    HasRole,
    HasScope,
    IsAgent,
    Not,
    RequireAuth,
)
from natterjack_mcp.kind import MCPToolServer
from natterjack_mcp.limits import ConcurrencyMiddleware, RateLimitMiddleware, TimeoutMiddleware
from natterjack_mcp.middleware import AuthMiddleware, Call, Middleware, Proceed, Result
from natterjack_mcp.plugin import natterjack_commands, natterjack_tool_servers
from natterjack_mcp.server import MCPServer
from natterjack_mcp.specs import HttpServerSpec, NatsServerSpec, StdioServerSpec

__all__ = [
    "All",
    "Any",
    "ApiKeyAuth",
    "AuditMiddleware",
    "Auth",
    "AuthMiddleware",
    "Call",
    "CallError",
    "Caller",
    "ConcurrencyMiddleware",
    "HasAllRoles",
    "HasAllScopes",
    "HasAnyRole",
    "HasRole",
    "HasScope",
    "HttpServerSpec",
    "IsAgent",
    "JWTAuth",
    "MCPServer",
    "MCPToolServer",
    "Middleware",
    "NatsServerSpec",
    "Not",
    "Proceed",
    "RateLimitMiddleware",
    "RequireAuth",
    "Result",
    "StdioServerSpec",
    "TimeoutMiddleware",
    "ToolApprovalError",
    "ToolBusyError",
    "ToolContext",
    "ToolError",
    "ToolRefusedError",
    "ToolTimeoutError",
    "ToolUnavailableError",
    "UnauthenticatedError",
    "nats_client",
    "natterjack_commands",
    "natterjack_tool_servers",
]
