"""The kind `team-tools`: the tools of a team whose file has nothing but a table for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from natterjack import ToolServer, hookimpl
from natterjack_mcp import MCPToolServer
from team_tools.folders import Folders

if TYPE_CHECKING:
    from natterjack_mcp import MCPServer


class TeamTools(MCPToolServer):
    """Searches a corpus, searches documents, and publishes.

    Example in a team file::

        [tools.team-tools]
        kind = "team-tools"
        documents = "documents"
        published = "published"
    """

    name: ClassVar[str] = "team-tools"

    class Config(MCPToolServer.Config, Folders):
        """Settings of a table `[tools.<name>]`: the folders, and what every such kind has."""

    config: Config

    def server(self) -> MCPServer:
        """Return the server; the broker, and the team's file, say who calls."""
        from team_tools.tools import team_tools  # lazy: agents' processes need nothing of the SDK

        return team_tools(self.config)


@hookimpl
def natterjack_tool_servers() -> list[type[ToolServer]]:
    """Bring the kind `team-tools`."""
    return [TeamTools]
