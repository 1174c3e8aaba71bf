"""What `import natterjack` offers, what it costs, and what an agent costs that does nothing."""

import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import natterjack
from natterjack.testing import NatsServer

DOCUMENTED = {
    "AgentRuntime AgentProcess EventTrigger MessageTrigger AgentContext FileJournal",  # the table of imports
    "Agent ContextTrigger Event PlainMessage RunContext SubjectTrigger",
    "Right Trigger TriggerContext hookimpl",
    "Answer Answers StreamJournal Transaction connect",
    "NatterjackError PeerError PeerTimeoutError PeerUnavailableError PeerBusyError PeerRefusedError ConflictError",
}


def test_every_documented_name_is_there() -> None:
    wanted = {name for line in DOCUMENTED for name in line.split()}
    assert wanted <= set(natterjack.__all__)


def test_all_is_sorted_complete_and_true() -> None:
    assert natterjack.__all__ == sorted(set(natterjack.__all__))
    assert all(hasattr(natterjack, name) for name in natterjack.__all__)
    public = {
        name for name, value in vars(natterjack).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(natterjack.__all__)


@pytest.mark.parametrize("name", natterjack.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(natterjack, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__.startswith("natterjack")
        assert inspect.getdoc(value)


def test_errors_are_one_tree_and_what_the_standard_library_calls_them() -> None:
    errors = [getattr(natterjack, name) for name in natterjack.__all__ if name.endswith("Error")]
    assert all(issubclass(error, natterjack.NatterjackError) for error in errors)
    builtin = {
        "PeerTimeoutError": TimeoutError,
        "PeerUnavailableError": TimeoutError,
        "PeerRefusedError": PermissionError,
        "RefusedError": PermissionError,
        "ConfigError": ValueError,
        "PatternError": ValueError,
        "PayloadError": ValueError,
        "InvalidNameError": ValueError,
        "ConnectError": ConnectionError,
    }
    for name, kind in builtin.items():
        assert issubclass(getattr(natterjack, name), kind), name
    assert issubclass(natterjack.PeerUnavailableError, natterjack.PeerTimeoutError)


MEASURE = """
import os, time
begun = time.process_time()  # its own: what else the machine does is not the import's doing
import asyncio, nats, orjson, pluggy, pydantic, pydantic_core.core_schema
libraries = time.process_time() - begun
import natterjack
took = (time.process_time() - begun) / libraries
import json, sys
pages = int(open("/proc/self/statm").read().split()[1])
heavy = sorted({"mcp", "rich", "typer", "jwt", "cryptography", "aiohttp", "httpx", "pytest"} & set(sys.modules))
print(json.dumps({"times": took, "megabytes": pages * os.sysconf("SC_PAGE_SIZE") / 2**20, "heavy": heavy}))
"""

IDLE = """
import asyncio, gc, json, os, sys
from natterjack import Agent, AgentProcess, AgentRuntime, EventTrigger
from natterjack.testing import until

class Idle(Agent):
    '''Does nothing.'''

def rss():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def pulls(bus, number):
    return (await bus.api(f"CONSUMER.INFO.EVENTS.idle{number}=event-idle+{number}"))["num_waiting"]

async def run(count):
    runtime = AgentRuntime(sys.argv[1])
    for number in range(count):
        triggers = [EventTrigger(f"idle.{number}")]
        runtime.add_process(AgentProcess(name=f"idle{number}", agent=Idle(), triggers=triggers))
    async with runtime:
        await until(lambda: pulls(runtime._bus, count - 1))  # the last of them, and so all; to ask each takes memory
        return rss()

async def main():
    few = await run(20)  # what is loaded and allocated once
    many = await run(220)
    print(json.dumps({"kilobytes": (many - few) / 200 / 1024}))

asyncio.run(main())
"""


def measure(program: str, *arguments: str, bytecode: Path) -> dict[str, Any]:
    """Run a program in a fresh interpreter, as an installation has it: with bytecode on disk."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTHON"))}
    environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_import_is_quick_and_small(tmp_path: Path) -> None:
    measure(MEASURE, bytecode=tmp_path)  # compiles
    for _ in range(10):  # other work inflates processor time, too
        found = measure(MEASURE, bytecode=tmp_path)
        if found["times"] < 2.5:
            break
    assert found["times"] < 2.5  # as long as the libraries alone: 2.0 to 2.15, in 0.4 s on a quick machine
    assert found["megabytes"] < 60
    assert found["heavy"] == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.open_mode(reason="a program without the tests' keys")
def test_idle_agent_is_small(own_server: NatsServer, tmp_path: Path) -> None:
    for _ in range(5):  # what is allocated for a moment, while other work slows the start down, is not given back
        found = measure(IDLE, own_server.url, bytecode=tmp_path)
        if found["kilobytes"] < 100:
            break
    assert found["kilobytes"] < 100
