"""The supervisor, with real processes that end, hang, shout and are killed."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from natterjack.bus import Bus
from natterjack.cli import child as process
from natterjack.cli import supervisor as module
from natterjack.cli.supervisor import Supervisor
from natterjack.errors import StartError
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.server import Server
from natterjack.team import AgentSpec, Team
from natterjack.testing import NatsServer, until

READY = """
import os, signal, sys
name = sys.argv[1]
def ready():
    print('agent', name, 'ready', flush=True)
"""
STAY = READY + "ready()\nsys.stdin.read()\n"
NOWHERE = Server("nats://127.0.0.1:4222")


class Shown:
    """The lines that a supervisor showed."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, label: str, line: str) -> None:
        self.lines.append((label, line))

    def of(self, label: str) -> list[str]:
        return [line for who, line in self.lines if who == label]

    def has(self, text: str) -> bool:
        return any(text in line for _, line in self.lines)


def team(*names: str, **limits: Any) -> Team:
    spec = AgentSpec(kind="natterjack.demo.agents:Writer", **limits)
    return Team(name="tested", agents=dict.fromkeys(names, spec))


def command(code: str) -> Sequence[str]:
    """A process that starts in a few milliseconds: no site, no packages."""
    return [sys.executable, "-I", "-S", "-c", code]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(supervisor: Supervisor) -> list[int]:
    return [child.process.pid for child in supervisor.children if child.process is not None]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "FIRST_PAUSE", 0.01)


@asynccontextmanager
async def supervised(supervisor: Supervisor) -> AsyncIterator[Supervisor]:
    """Start, and at the end stop and see that no process is left."""
    try:
        await supervisor.start()
        yield supervisor
    finally:
        await supervisor.stop()
        assert not any(alive(pid) for pid in pids(supervisor))
        assert [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


# --- starting -----------------------------------------------------------------------------------------------------


async def test_start_returns_once_all_are_ready() -> None:
    shown = Shown()
    async with supervised(Supervisor(team("one", "two"), NOWHERE, shown, command=command(STAY))) as supervisor:
        assert all(child.ready.is_set() for child in supervisor.children)
        assert shown.of("one") == ["agent one ready"]
        assert shown.of("two") == ["agent two ready"]


async def test_replicas_are_processes_with_labels_of_their_own() -> None:
    shown = Shown()
    async with supervised(Supervisor(team("one", replicas=3), NOWHERE, shown, command=command(STAY))) as supervisor:
        assert [child.label for child in supervisor.children] == ["one/1", "one/2", "one/3"]
        assert len(set(pids(supervisor))) == 3
        assert shown.of("one/2") == ["agent one ready"]


async def test_each_process_gets_its_server_by_the_environment() -> None:
    code = (
        READY + "print(*(os.environ[each] for each in ('NATS_URL', 'NATS_TOKEN', 'NATTERJACK_PARENT_PIPE')), sep=',')\n"
    )
    shown, own = Shown(), {"two": Server("nats://127.0.0.1:9999", token="secret")}
    supervisor = Supervisor(
        team("one", "two"), NOWHERE, shown, servers=own, command=command(code + "ready()\nsys.stdin.read()")
    )
    async with supervised(supervisor):
        assert shown.of("one")[0] == "nats://127.0.0.1:4222,,1"
        assert shown.of("two")[0] == "nats://127.0.0.1:9999,secret,1"


async def test_what_never_gets_ready_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_TIMEOUT", 0.5)
    code = READY + "if name == 'one':\n    ready()\nsys.stdin.read()\n"
    supervisor = Supervisor(team("one", "two"), NOWHERE, Shown(), command=command(code))
    with pytest.raises(StartError, match=r"not ready after .* s: two$"):
        await supervisor.start()
    assert not any(alive(pid) for pid in pids(supervisor))


async def test_a_command_that_does_not_exist_is_an_error() -> None:
    supervisor = Supervisor(team("one"), NOWHERE, Shown(), command=["/nowhere/natterjack"])
    with pytest.raises(StartError, match="/nowhere/natterjack"):
        await supervisor.start()


async def test_cancelling_the_start_leaves_no_process(tmp_path: Path) -> None:
    code = f"import os, sys\nopen(os.path.join({str(tmp_path)!r}, str(os.getpid())), 'w')\nsys.stdin.read()\n"
    shown = Shown()
    for pause in range(0, 40, 4):
        supervisor = Supervisor(team("one", "two"), NOWHERE, shown, command=command(code))
        starting = asyncio.create_task(supervisor.start())
        for _ in range(pause):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    await until(lambda: not any(alive(int(path.name)) for path in tmp_path.iterdir()))
    assert not shown.has("is killed")  # one that was just being started is told to drain, too


# --- restarting ---------------------------------------------------------------------------------------------------


def flaky(tmp_path: Path, times: int, ending: str) -> str:
    """Code that ends a number of times, and then stays."""
    count = f"count = os.path.join({str(tmp_path)!r}, name)\nopen(count, 'a').write('x')\n"
    return READY + count + f"if os.path.getsize(count) <= {times}:\n    {ending}\nready()\nsys.stdin.read()\n"


async def test_an_ended_process_starts_again_with_growing_pauses(tmp_path: Path) -> None:
    shown = Shown()
    code = flaky(tmp_path, 3, "sys.exit(3)")
    async with supervised(Supervisor(team("one"), NOWHERE, shown, command=command(code))):
        assert shown.of("one") == [
            "ended with exit code 3; it starts again in 0.01 s",
            "ended with exit code 3, 2 times in a row; it starts again in 0.02 s",
            "ended with exit code 3, 3 times in a row; it starts again in 0.04 s",
            "agent one ready",
        ]


async def test_a_killed_process_starts_again() -> None:
    shown = Shown()
    async with supervised(Supervisor(team("one", "two"), NOWHERE, shown, command=command(STAY))) as supervisor:
        first, other = pids(supervisor)
        os.kill(first, signal.SIGKILL)
        await until(lambda: shown.of("one").count("agent one ready") == 2)
        assert "ended with signal SIGKILL; it starts again in 0.01 s" in shown.of("one")
        assert pids(supervisor)[0] != first
        assert pids(supervisor)[1] == other
        assert supervisor.children[0].ready.is_set()


async def test_a_crash_loop_is_given_up_with_its_last_lines() -> None:
    code = READY + "print('loading')\nraise ValueError(f'no {name} today')\n"
    supervisor = Supervisor(team("one"), NOWHERE, Shown(), command=command(code))
    with pytest.raises(StartError) as raised:
        await supervisor.start()
    assert "one ended 5 times before it listened, and is given up" in str(raised.value)
    assert "\n  ValueError: no one today" in str(raised.value)


async def test_what_has_run_is_never_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_PAUSE", 0.02)
    shown = Shown()
    code = flaky(tmp_path, 2 * module.CRASHES, "ready(); sys.exit('cannot go on')")
    async with supervised(Supervisor(team("one", "two"), NOWHERE, shown, command=command(code))) as supervisor:
        waiting = asyncio.create_task(supervisor.wait())
        await until(lambda: shown.of("one").count("agent one ready") == 2 * module.CRASHES + 1, 30)
        assert "ended with exit code 1, 10 times in a row; it starts again in 0.02 s" in shown.of("one")
        assert not waiting.done()
        waiting.cancel()


async def test_rare_ends_are_no_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEADY", 0.0)
    shown = Shown()
    code = flaky(tmp_path, 2 * module.CRASHES, "sys.exit(1)")
    async with supervised(Supervisor(team("one"), NOWHERE, shown, command=command(code))):
        assert shown.of("one") == [
            *["ended with exit code 1; it starts again in 0.01 s"] * (2 * module.CRASHES),
            "agent one ready",
        ]


async def test_what_cannot_be_started_for_a_while_is_tried_again(tmp_path: Path) -> None:
    shown, program = Shown(), tmp_path / "program"
    program.symlink_to(sys.executable)
    supervisor = Supervisor(team("one"), NOWHERE, shown, command=[str(program), *command(STAY)[1:]])
    async with supervised(supervisor):
        program.unlink()
        os.kill(pids(supervisor)[0], signal.SIGKILL)
        await until(lambda: shown.has("cannot be started with"))
        program.symlink_to(sys.executable)
        await until(lambda: shown.of("one").count("agent one ready") == 2)


async def test_what_is_wrong_from_the_start_is_told_once() -> None:
    shown = Shown()
    code = READY + "print('error: no such module')\nsys.exit(2)\n"
    with pytest.raises(StartError, match=r"^one cannot start:\n  error: no such module$"):
        await Supervisor(team("one"), NOWHERE, shown, command=command(code)).start()
    assert shown.of("one") == ["error: no such module"]


async def test_what_has_run_may_be_wrong_for_a_while(tmp_path: Path) -> None:
    shown = Shown()
    code = flaky(tmp_path, 1, "ready(); sys.exit(2)")
    async with supervised(Supervisor(team("one"), NOWHERE, shown, command=command(code))):
        await until(lambda: shown.of("one").count("agent one ready") == 2)
        assert "ended with exit code 2; it starts again in 0.01 s" in shown.of("one")


# --- output -------------------------------------------------------------------------------------------------------


async def test_long_lines_come_in_parts_and_stop_nothing() -> None:
    shown = Shown()
    code = READY + "print('x' * 300_000, 'end')\nready()\nsys.stdin.read()\n"
    async with supervised(Supervisor(team("one"), NOWHERE, shown, command=command(code))):
        *parts, last = shown.of("one")
        assert "".join(parts) == "x" * 300_000 + " end"
        assert last == "agent one ready"


async def test_output_is_shown_whatever_it_is() -> None:
    shown = Shown()
    code = READY + (
        "sys.stdout.buffer.write(b'\\xff\\xfe bytes\\r\\n\\n')\nsys.stdout.flush()\n"
        "print('to stderr', file=sys.stderr, flush=True)\nready()\nsys.stdin.read()\n"
    )
    async with supervised(Supervisor(team("one"), NOWHERE, shown, command=command(code))):
        assert shown.of("one") == ["\ufffd\ufffd bytes", "", "to stderr", "agent one ready"]


# --- stopping -----------------------------------------------------------------------------------------------------

DRAIN = READY + (
    "def end(*_):\n    os.write(1, f'drained {name}\\n'.encode())\n    os._exit(0)\n"
    "signal.signal(signal.SIGTERM, end)\nready()\nwhile True:\n    signal.pause()\n"
)
STUBBORN = READY + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready()\nwhile True:\n    signal.pause()\n"


async def test_stop_lets_every_process_drain_and_shows_what_it_says() -> None:
    shown = Shown()
    async with supervised(Supervisor(team("one", "two"), NOWHERE, shown, command=command(DRAIN))) as supervisor:
        await supervisor.stop()
        assert {label: shown.of(label)[-1] for label in ("one", "two")} == {"one": "drained one", "two": "drained two"}
        assert [child.process.returncode for child in supervisor.children if child.process] == [0, 0]


async def test_stop_kills_what_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MARGIN", 0.2)
    shown = Shown()
    async with supervised(
        Supervisor(team("one", drain_timeout=0), NOWHERE, shown, command=command(STUBBORN))
    ) as supervisor:
        await supervisor.stop()
        assert shown.of("one")[-1] == "did not end within 0.2 s and is killed"
        assert supervisor.children[0].process is not None
        assert supervisor.children[0].process.returncode == -signal.SIGABRT


async def test_stop_before_a_restart_starts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "FIRST_PAUSE", 30.0)
    shown = Shown()
    async with supervised(Supervisor(team("one"), NOWHERE, shown, command=command(STAY))) as supervisor:
        os.kill(pids(supervisor)[0], signal.SIGKILL)
        await until(lambda: shown.has("starts again in 30 s"))
        await supervisor.stop()
        assert shown.of("one").count("agent one ready") == 1


async def test_stopping_twice_and_before_the_start_is_fine() -> None:
    supervisor = Supervisor(team("one"), NOWHERE, Shown(), command=command(STAY))
    await supervisor.stop()
    supervisor = Supervisor(team("one"), NOWHERE, Shown(), command=command(STAY))
    await supervisor.start()
    await supervisor.stop()
    await supervisor.stop()
    assert not any(alive(pid) for pid in pids(supervisor))


# --- real agents --------------------------------------------------------------------------------------------------


async def provisioned(server: Server, team: Team) -> None:
    bus = await Bus.connect(server, principal="operator")
    try:
        await provision(bus, team, Plugins.load())
    finally:
        await bus.close()


SUPERVISING = """
import asyncio, sys
from natterjack.server import Server
from natterjack.cli.supervisor import Supervisor
from natterjack.team import AgentSpec, Team
async def main():
    spec = AgentSpec(kind="natterjack.demo.agents:Writer")
    supervisor = Supervisor(Team(name="tested", agents={"one": spec}), Server(sys.argv[1]), print)
    await supervisor.start()
    print("pids", *(child.process.pid for child in supervisor.children), flush=True)
    await supervisor.wait()
asyncio.run(main())
"""


async def test_agents_end_with_a_killed_supervisor(own_server: NatsServer) -> None:
    await provisioned(Server(own_server.url), team("one"))
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SUPERVISING, own_server.url, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    try:
        async with asyncio.timeout(30):
            while not (line := (await parent.stdout.readline()).decode()).startswith("pids"):
                assert line, "the supervisor ended"
        child = int(line.split()[1])
        assert alive(child)
    finally:
        with contextlib.suppress(ProcessLookupError):
            parent.kill()
        await parent.wait()
    await until(lambda: not alive(child))


async def test_a_killed_agent_is_back_and_serves(own_server: NatsServer) -> None:
    server, shown = Server(own_server.url), Shown()
    await provisioned(server, team("one"))
    async with supervised(Supervisor(team("one"), server, shown)) as supervisor:
        os.kill(pids(supervisor)[0], signal.SIGKILL)
        await until(lambda: shown.of("one").count("agent one ready") == 2, timeout=30)
        bus = await Bus.connect(server, principal="operator")
        try:
            assert len(await bus.gather("$SRV.PING.agents", window=0.5)) == 1
        finally:
            await bus.close()


@pytest.mark.full
async def test_ten_agents_are_ready_in_five_seconds(own_server: NatsServer) -> None:
    names = [f"agent{number}" for number in range(10)]
    server = Server(own_server.url)
    await provisioned(server, team(*names))
    taken: list[float] = []
    for _ in range(3):  # the best of three: the machine may be busy with something else
        began = time.monotonic()
        async with supervised(Supervisor(team(*names), server, Shown())):
            taken.append(time.monotonic() - began)
    assert min(taken) < 5, taken
