"""A shared tool server for a research team: it searches a corpus, searches documents, and publishes."""

from typing import TYPE_CHECKING

from team_tools.kind import natterjack_tool_servers

if TYPE_CHECKING:
    from natterjack_mcp import MCPServer

__all__ = ["natterjack_tool_servers", "server"]


def __getattr__(name: str) -> "MCPServer":
    """Make `server` when it is asked for: each process of a team loads its plugins, and few of them serve tools."""
    if name != "server":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from team_tools.tools import server_of_environment

    globals()["server"] = server = server_of_environment()
    return server
