"""An agent can be one shell line: whatever answers `agents.ask.<name>` is a peer. Needs the `nats` command.

The line is, for any server that NATS_URL names:

    nats reply agents.ask.upper --command "sh -c 'printf %s \"$NATS_REQUEST_BODY\" | tr a-z A-Z'"

Prints:
    TOADS
    {'upper': 'FROGS', 'reverse': 'sgorf'}
"""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from natterjack import AgentProcess, AgentRuntime, Server

UPPER = """sh -c 'printf %s "$NATS_REQUEST_BODY" | tr a-z A-Z'"""


@contextmanager
def shell_line(name: str, command: str, server: Server) -> Iterator[None]:
    """Run `nats reply`; it listens once it says so."""
    line = ["nats", "reply", f"agents.ask.{name}", "--command", command]
    environment = {**os.environ, "NATS_URL": server.url}
    with subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        yield
        process.terminate()


async def reverse(question: str) -> str:
    return question[::-1]


async def main() -> None:
    runtime = AgentRuntime()
    runtime.add_process(AgentProcess(name="reverse", agent=reverse))
    async with runtime:
        with shell_line("upper", UPPER, runtime.server):
            print(await runtime.ask_peer("upper", "toads", timeout=5))
            print(await runtime.broadcast(["upper", "reverse"], "frogs", timeout=5))


asyncio.run(main())
