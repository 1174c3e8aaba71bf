"""A team file with a tool server, as a whole: `up`, two agents with rights of their own, replicas, and the end."""

from __future__ import annotations

import json
import os
import signal

import pytest

from natterjack.testing.command import Cli

TEAM = """\
[team]
name = "desk"

[agents.ann]
kind = "agents:Clerk"
tools = ["team-tools"]

[agents.ben]
kind = "agents:Clerk"
tools = ["team-tools"]
roles = ["writer"]

[tools.team-tools]
server = "shelf:server"
replicas = 2
roles = { search = ["ann"], publish = ["writer"] }
"""
AGENTS = """\
import json

from natterjack import Agent, NatterjackError


class Clerk(Agent):
    async def answer(self, question, ctx):
        if question == "list":
            return sorted(each.name for each in await ctx.tools.list())
        try:
            return await ctx.tools.call(f"team-tools.{question}", text="toads")
        except NatterjackError as error:
            return f"{type(error).__name__}: {error}"
"""
TOOLS = """\
import os

from natterjack_mcp import HasRole, MCPServer

server = MCPServer("shelf", version="1.0.0")


@server.tool()
def search(text: str) -> dict:
    return {"found": text, "process": os.getpid()}


@server.tool(guards=[HasRole("writer")])
def publish(text: str) -> str:
    return f"published {text}"
"""


@pytest.mark.timeout(120)
def test_a_team_has_its_tools_from_its_file(cli: Cli) -> None:
    cli.write(team_toml=TEAM, agents_py=AGENTS, shelf_py=TOOLS)
    with cli.start("up") as up:
        up.wait_line("^tools +team-tools$")
        up.wait_line(r"^team-tools/2 \| .*team-tools is served over NATS")
        up.wait_line("^ready +2 agents")
        assert json.loads(cli.text("ask", "ann", "list")) == ["search"]
        assert json.loads(cli.text("ask", "ben", "list")) == ["publish"]
        found = json.loads(cli.text("ask", "ann", "search"))
        assert found["found"] == "toads"
        assert cli.text("ask", "ben", "publish") == "published toads"
        refused = cli.text("ask", "ann", "publish")
        assert refused.startswith("ToolRefusedError: ann may not use the tool 'publish' of team-tools")
        os.kill(found["process"], signal.SIGKILL)
        up.wait_line(r"^team-tools/. \| ended with signal SIGKILL; it starts again")
        assert json.loads(cli.text("ask", "ann", "search"))["process"] != found["process"]
        shown = cli.text("graph")
        assert "team-tools" in shown
        assert up.end() == 0
    assert up.lines[-1].startswith("stopped")
    assert "Traceback" not in up.output
