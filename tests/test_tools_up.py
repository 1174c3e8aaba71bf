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


PRESS_TEAM = """\
[team]
name = "desk"

[agents.ann]
kind = "agents:Clerk"
tools = ["press"]
waits = ["approval.answered"]

[tools.press]
server = "press:server"
approve = {approve}
"""
PRESS_AGENTS = """\
from natterjack import Agent


class Clerk(Agent):
    async def answer(self, question, ctx):
        return await ctx.tools.call(f"press.{question}", title="Toads")
"""
PRESS = """\
from natterjack_mcp import MCPServer

server = MCPServer("the-press")


@server.tool(approval=True)
def publish(title: str) -> str:
    return f"{title} is out"


@server.tool()
def shred(title: str) -> str:
    return f"{title} is gone"
"""


@pytest.mark.full
def test_a_team_file_says_which_tools_need_a_human(cli: Cli) -> None:
    cli.write(team_toml=PRESS_TEAM.replace("{approve}", '["publish", "shred"]'), agents_py=PRESS_AGENTS, press_py=PRESS)
    with cli.start("up") as up:
        up.wait_line("^ready +1 agent")
        for tool in ("publish", "shred"):
            with cli.start("ask", "ann", tool) as asking:
                (waiting,) = cli.until_json(bool, "approvals", "list")
                assert waiting["question"] == f'May ann call the-press.{tool} with {{"title":"Toads"}}?'
                cli.run("approvals", "approve", waiting["id"])
                assert asking.wait() == 0
                assert asking.lines[-1].startswith("Toads is ")
        assert up.end() == 0


@pytest.mark.parametrize(
    ("approve", "error"),
    [
        (
            "[]",
            r'a human must allow calls of publish, and .* does not say so; write approve = \["publish"\]',
        ),
        ('["publish", "shed"]', r"names in `approve` what is no tool of it: shed; it has publish, shred"),
    ],
)
def test_a_team_file_that_forgets_or_misspells_one_does_not_start(cli: Cli, approve: str, error: str) -> None:
    cli.write(team_toml=PRESS_TEAM.replace("{approve}", approve), agents_py=PRESS_AGENTS, press_py=PRESS)
    with cli.start("up") as up:
        up.wait_line(error)
        assert up.wait() != 0
