"""`natterjack ask` as it streams: chunks at once, a question to the terminal, Ctrl-C, agents of others."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack

import nats
import pytest
from synadia_ai.agent_service import AgentService, PromptStream
from synadia_ai.agents import Envelope

from natterjack.testing.command import Cli

TEAM = """\
[team]
name = "den"

[agents.slow]
kind = "agents:Slow"

[agents.curious]
kind = "agents:Curious"
"""

AGENTS = '''\
import asyncio

from natterjack import Agent


class Slow(Agent):
    """Takes its time."""

    async def answer(self, question, ctx):
        yield "well\\n"
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await ctx.journal.append("left", question)
            raise


class Curious(Agent):
    """Asks back."""

    async def answer(self, question, ctx):
        yield "hm\\x1b[2J "
        yield await ctx.query("Which year?")
'''


@pytest.fixture(scope="module")
def den(
    tmp_path_factory: pytest.TempPathFactory, served_team: Callable[[Cli], AbstractContextManager[None]]
) -> Iterator[Cli]:
    """The command line of a team that streams."""
    cli = Cli(tmp_path_factory.mktemp("den"))
    cli.write(team_toml=TEAM, agents_py=AGENTS)
    with served_team(cli):
        yield cli


def test_chunks_are_printed_as_they_come_and_ctrl_c_cancels_at_the_peer(den: Cli) -> None:
    with (
        den.start("journal", "tail", "slow", "--follow") as journal,
        den.start("ask", "slow", "for ever") as asking,
    ):
        journal.wait_line("watching")
        asking.wait_line("^well$")
        assert asking.end(signal.SIGINT) == 130
        assert "Traceback" not in asking.output
        assert "for ever" in journal.wait_line("left").string


def test_what_an_agent_asks_back_is_put_to_the_terminal(den: Cli) -> None:
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "natterjack", "ask", "curious", "When?"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=den.folder, env=den.environment, stdin=terminal, stdout=pipe, stderr=pipe
    ) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline() == b"\n"
        assert process.stderr.readline() == b"? Which year?\n"
        os.write(main, b"1990\n")
        assert process.wait(40) == 0
        assert process.stdout.read().decode() == "hm\\x1b[2J 1990\n"
    os.close(terminal)
    os.close(main)


def test_where_nobody_can_be_asked_the_agent_is_told(den: Cli) -> None:
    done = den.run("ask", "curious", "When?", code=1)
    assert "this asker answers no questions" in done.stderr
    assert "this agent asks back" in den.run("ask", "curious", "When?", "--no-stream", code=1).stderr


@pytest.mark.open_mode(reason="agents of others have no account")
async def test_agents_of_others_are_listed_and_asked(den: Cli, stack: AsyncExitStack) -> None:
    async def echo(envelope: Envelope, stream: PromptStream) -> None:
        await stream.send(f"<{envelope.prompt}>")
        await stream.send("!")

    raw = await nats.connect(den.env["NATS_URL"])
    stack.push_async_callback(raw.close)
    service = AgentService(agent="echo", owner="alice", session_name="main", nc=raw)
    service.on_prompt(echo)
    await service.start()
    stack.push_async_callback(service.stop)
    address = "agents://echo/alice/main"
    assert await asyncio.to_thread(den.text, "ask", address, "hi") == "<hi>!"
    told = await asyncio.to_thread(den.json, "ask", address, "hi")
    assert (told["agent"], told["answer"], told["run"]) == (address, "<hi>!", "")
    listed = await asyncio.to_thread(den.text, "agents", "--json")
    assert {agent["name"] for agent in json.loads(listed)} == {address, "slow", "curious"}
    missing = await asyncio.to_thread(den.run, "ask", "agents://echo/bob/main", "hi", code=1)
    assert "nobody serves" in missing.stderr
