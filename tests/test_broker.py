"""The embedded broker, with real servers and real processes that are really killed."""

import asyncio
import os
import signal
import socket
import stat
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path

import nats
import pytest

from natterjack.broker import Broker, embed, find_server, natsserver, running_url, server_version
from natterjack.broker import embedded as broker_module
from natterjack.broker.storelock import StoreLock, read_owner
from natterjack.errors import BrokerNotFoundError, BrokerStartError, ConfigError
from natterjack.testing import free_port, until

# Embeds on the store argv[1], prints what it got, lets go when its standard input ends.
MEMBER = """
import asyncio, pathlib, sys
from natterjack.broker import embed
async def main():
    async with await embed(pathlib.Path(sys.argv[1]), port=-1) as broker:
        print("owner" if broker.owned else "joined", broker.url, flush=True)
        rest = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        lost = asyncio.create_task(broker.wait_lost())
        await asyncio.wait({rest, lost}, return_when=asyncio.FIRST_COMPLETED)
        print(broker.lost_reason, flush=True)
asyncio.run(main())
"""


class Member:
    """Another process on the store."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return (await self.process.stdout.readline()).decode().strip()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def member(store: Path) -> AsyncIterator[Member]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", MEMBER, str(store), stdin=pipe, stdout=pipe)
    try:
        yield Member(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def server_pid(store: Path) -> int:
    owner = read_owner(store)
    assert owner is not None
    return owner.server


def unused(store: Path) -> bool:
    """Whether neither an owner nor a server is left: both hold the lock."""
    lock = StoreLock.acquire(store)
    if lock:
        lock.release()
    return lock is not None


async def command_line(pid: int) -> str:
    """What every user of the machine can read."""
    ps = await asyncio.create_subprocess_exec("ps", "-ww", "-o", "args=", "-p", str(pid), stdout=subprocess.PIPE)
    return (await ps.communicate())[0].decode()


async def refusal_without_token(broker: Broker) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(broker.url.rpartition(":")[2]))
    try:
        await reader.readline()  # INFO
        writer.write(b"CONNECT {}\r\nPING\r\n")
        return await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def busy_port() -> AsyncIterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


@pytest.fixture
def made_store(store: Path) -> Path:
    store.mkdir()
    return store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


async def test_starts_a_server_with_jetstream_on_loopback(store: Path) -> None:
    async with await embed(store, port=-1) as broker:
        assert broker.owned
        assert broker.url.startswith("nats://127.0.0.1:")
        assert running_url(store) == broker.url
        client = await nats.connect(broker.url)
        info = await client.jetstream().account_info()
        assert info.limits.max_storage == -1
        assert client.max_payload == 1024 * 1024
        await client.close()
        assert (store / ".gitignore").read_text() == "*\n"
        assert (store / "jetstream").is_dir()
    assert running_url(store) is None
    assert unused(store)


async def test_ready_fast(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        broker = await embed(store, port=-1)
        times.append(time.perf_counter() - start)
        await broker.stop()
    with capsys.disabled():
        print(f"\nbroker ready in {statistics.median(times) * 1e3:.0f} ms (p50 of {len(times)})")  # noqa: T201
    assert statistics.median(times) < 1


async def test_the_default_port_if_free_else_a_random_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "DEFAULT_PORT", default := free_port())
    async with await embed(tmp_path / "a") as first, await embed(tmp_path / "b") as second:
        assert first.url == f"nats://127.0.0.1:{default}"
        assert second.owned
        assert second.url != first.url


async def test_default_port_taken_after_the_look(store: Path, busy_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([True])
    really_free = broker_module._free
    monkeypatch.setattr(broker_module, "DEFAULT_PORT", busy_port)
    monkeypatch.setattr(broker_module, "_free", lambda host, port: next(looks, False) or really_free(host, port))
    async with await embed(store) as broker:
        assert not broker.url.endswith(f":{busy_port}")


async def test_port_zero_is_random(store: Path) -> None:
    async with await embed(store, port=0) as broker:
        assert not broker.url.endswith((":0", ":4222"))


async def test_busy_port_is_refused(store: Path, busy_port: int) -> None:
    with pytest.raises(BrokerStartError, match=rf"port {busy_port} on '127.0.0.1' is in use.*--listen.*--server"):
        await embed(store, port=busy_port)
    assert unused(store)


async def test_explicit_port(store: Path) -> None:
    async with await embed(store, port=(port := free_port())) as broker:
        assert broker.url == f"nats://127.0.0.1:{port}"


async def test_ipv6_loopback(store: Path) -> None:
    async with await embed(store, port=-1, host="::1") as broker:
        assert broker.url.startswith("nats://[::1]:")
        await (await nats.connect(broker.url)).close()


async def test_others_on_the_store_join(store: Path) -> None:
    async with await embed(store, port=-1) as owner:
        async with await embed(store, port=-1) as joiner:
            assert (joiner.owned, joiner.url) == (False, owner.url)
        assert not joiner.lost.is_set()
        await (await nats.connect(owner.url)).close()


async def test_five_processes_at_once_make_one_server(store: Path) -> None:
    async with member(store) as a, member(store) as b, member(store) as c, member(store) as d, member(store) as e:
        lines = [line.split() for line in await asyncio.gather(*(m.line() for m in (a, b, c, d, e)))]
        assert sorted(role for role, _ in lines) == ["joined"] * 4 + ["owner"]
        assert {url for _, url in lines} == {running_url(store)}


async def test_five_processes_take_over_from_a_killed_owner(store: Path) -> None:
    async with member(store) as first:
        await first.line()
        await first.kill()
    async with member(store) as a, member(store) as b, member(store) as c, member(store) as d, member(store) as e:
        lines = [line.split() for line in await asyncio.gather(*(m.line() for m in (a, b, c, d, e)))]
        assert sorted(role for role, _ in lines) == ["joined"] * 4 + ["owner"]
        assert {url for _, url in lines} == {running_url(store)}


async def test_killed_owner_takes_the_server_along_and_loses_nothing(store: Path) -> None:
    async with member(store) as owner:
        role, url = (await owner.line()).split()
        assert role == "owner"
        client = await nats.connect(url, allow_reconnect=False)
        stream = client.jetstream()
        await stream.add_stream(name="S", subjects=["s"])
        acked = [(await stream.publish("s", str(n).encode())).seq for n in range(200)]
        await owner.kill()
        async with await embed(store, port=-1) as broker:  # waits for the orphan
            assert broker.owned
            await until(lambda: client.is_closed)  # a second server on the store would keep it
            again = await nats.connect(broker.url)
            found = [(await again.jetstream().get_msg("S", seq)).data for seq in acked]
            await again.close()
    assert found == [str(n).encode() for n in range(200)]
    assert unused(store)


async def test_waits_for_an_orphan_that_takes_its_time(store: Path) -> None:
    async with member(store) as owner:
        await owner.line()
        os.kill(orphan := server_pid(store), signal.SIGSTOP)
        await owner.kill()
        start = asyncio.create_task(embed(store, port=-1))
        try:
            await asyncio.wait({start}, timeout=0.3)
            assert not start.done()
            assert running_url(store) is None
        finally:
            os.kill(orphan, signal.SIGCONT)
        async with await start as broker:
            assert broker.owned


async def test_store_that_stays_held_is_an_error(made_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "JOIN_TIMEOUT", 0.1)
    lock = StoreLock.acquire(made_store)
    assert lock is not None
    with pytest.raises(BrokerStartError, match="is held by a process that serves nobody"):
        await embed(made_store, port=-1)
    lock.release()


@pytest.mark.full
async def test_guard_kills_a_server_that_does_not_end(store: Path) -> None:
    async with member(store) as owner:
        await owner.line()
        os.kill(server_pid(store), signal.SIGSTOP)
        await owner.kill()
        await until(lambda: unused(store), timeout=15)
        assert running_url(store) is None


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_joiners_know_when_the_owner_goes(store: Path, how: str) -> None:
    async with member(store) as owner:
        await owner.line()
        async with await embed(store, port=-1) as joiner, member(store) as other:
            assert (await other.line()).startswith("joined")
            start = time.perf_counter()
            if how == "killed":
                owner.process.kill()
            elif owner.process.stdin:
                owner.process.stdin.close()
            async with asyncio.timeout(5):
                reason = await joiner.wait_lost()
            assert time.perf_counter() - start < 1
            pid = owner.process.pid
            assert reason == f"the broker's owner (pid {pid}) has ended; start one with `natterjack broker run`"
            assert await other.line() == reason


async def test_joiner_notices_an_owner_replaced_within_a_blink(store: Path) -> None:
    owner = await embed(store, port=-1)
    async with await embed(store, port=-1) as joiner:
        await owner.stop()
        async with await embed(store, port=-1) as successor:
            assert successor.owned
            assert str(os.getpid()) in await asyncio.wait_for(joiner.wait_lost(), 2)


async def test_owner_knows_when_the_server_dies(store: Path) -> None:
    async with await embed(store, port=-1) as broker:
        os.kill(pid := server_pid(store), signal.SIGKILL)
        reason = await asyncio.wait_for(broker.wait_lost(), 2)
        assert f"nats-server (pid {pid}) has ended with code -9" in reason
        assert str(store / "broker.log") in reason
        async with await embed(store, port=-1) as successor:
            assert successor.owned
        assert unused(store)


async def test_stop_twice_leaves_nothing(store: Path) -> None:
    broker = await embed(store, port=-1)
    pid = server_pid(store)
    await broker.stop()
    await broker.stop()
    assert unused(store)
    assert not broker.lost.is_set()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_stop_kills_a_server_that_does_not_end(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natsserver, "STOP_TIMEOUT", 0.05)
    broker = await embed(store, port=-1)
    os.kill(server_pid(store), signal.SIGSTOP)
    await broker.stop()
    assert unused(store)


async def test_cancelled_stop_kills_the_server(store: Path) -> None:
    broker = await embed(store, port=-1)
    os.kill(server_pid(store), signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(broker.stop(), 0.05)
    assert unused(store)


@pytest.mark.parametrize("after", [0, 0.005, 0.01, 0.015, 0.02, 0.03])
async def test_cancelled_embed_leaves_nothing(made_store: Path, after: float) -> None:
    start = asyncio.create_task(embed(made_store, port=-1))
    await asyncio.wait({start}, timeout=after)
    start.cancel()
    (result,) = await asyncio.gather(start, return_exceptions=True)
    if isinstance(result, Broker):  # it was ready before
        await result.stop()
    else:
        assert isinstance(result, asyncio.CancelledError)
    await until(lambda: unused(made_store))  # a process that was being started for it holds the lock for a moment
    assert not (made_store / "broker.json").exists()


async def test_the_server_hears_no_ctrl_c(store: Path) -> None:
    async with await embed(store, port=-1):
        assert os.getsid(server_pid(store)) != os.getsid(0)


async def test_off_loopback_needs_a_token(store: Path) -> None:
    with pytest.raises(ConfigError, match=r"listening on '0.0.0.0' needs a token"):
        await embed(store, port=-1, host="0.0.0.0")
    assert not (store / "broker.log").exists()


async def test_token_that_would_break_the_url(store: Path) -> None:
    with pytest.raises(ConfigError, match="letters, digits") as caught:
        await embed(store, port=-1, token="p@ss/word")
    assert "p@ss" not in str(caught.value)


async def test_token_is_required_and_kept_secret(store: Path) -> None:
    token = "secret-Token.1"
    async with await embed(store, port=-1, host="0.0.0.0", token=token) as broker:
        assert broker.url.startswith(f"nats://{token}@127.0.0.1:")
        assert token not in repr(broker)
        assert token not in repr(read_owner(store))
        for private in ("broker.conf", "broker.json"):
            assert stat.S_IMODE((store / private).stat().st_mode) == 0o600
        arguments = await command_line(server_pid(store))
        assert "broker.conf" in arguments
        assert token not in arguments
        assert token not in (store / "broker.log").read_text()
        await (await nats.connect(broker.url)).close()
        assert b"Authorization Violation" in await refusal_without_token(broker)
        async with await embed(store) as joiner:
            assert joiner.url == broker.url
    assert not (store / "broker.conf").exists()


async def test_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerStartError, match=r"no broker can run in .*file.*--store"):
        await embed(tmp_path / "file", port=-1)


async def test_broken_store_shows_the_log(made_store: Path) -> None:
    (made_store / "jetstream").write_text("")
    with pytest.raises(BrokerStartError, match=r"(?s)ended with code 1\. The end of .*broker\.log':\n.*\[FTL\]"):
        await embed(made_store, port=-1)
    assert unused(made_store)


async def test_stale_or_broken_note_is_ignored(made_store: Path) -> None:
    (made_store / "broker.json").write_text('{"pid": 1')
    assert running_url(made_store) is None
    async with await embed(made_store, port=-1) as broker:
        assert running_url(made_store) == broker.url


async def test_log_goes_where_it_is_told(tmp_path: Path, store: Path) -> None:
    async with await embed(store, port=-1, log=tmp_path / "my.log"):
        assert "Server is ready" in (tmp_path / "my.log").read_text()


def test_finds_the_wheels_server() -> None:
    assert find_server().name.startswith("nats-server")
    assert server_version(find_server()) >= (2, 12, 0)


def without_wheel(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    def files(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", files)
    monkeypatch.setenv("PATH", str(path))


def fake_server(folder: Path, script: str) -> Path:
    (file := folder / "nats-server").write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


async def test_no_server_on_this_machine(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_wheel(monkeypatch, tmp_path)
    with pytest.raises(BrokerNotFoundError, match=r"--server nats://HOST:4222, or install nats-server 2\.12\.0"):
        await embed(store, port=-1)
    assert unused(store)


async def test_old_server_is_refused_in_one_line(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_wheel(monkeypatch, tmp_path)
    fake_server(tmp_path, "echo nats-server: v2.11.9-beta.1")
    with pytest.raises(BrokerStartError, match=r"nats-server 2\.11\.9 at .* is too old: 2\.12\.0") as caught:
        await embed(store, port=-1)
    assert "\n" not in str(caught.value)
    assert unused(store)


def test_program_that_is_no_server(tmp_path: Path) -> None:
    with pytest.raises(BrokerStartError, match="is no nats-server: --version says 'hello"):
        server_version(fake_server(tmp_path, "echo hello"))
    with pytest.raises(BrokerStartError, match="cannot be run"):
        server_version(tmp_path / "absent")


def test_guard_for_windows_ends_its_server() -> None:
    server = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", natsserver._WINDOWS_GUARD, *server],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert guard.stdout is not None
    assert guard.stdout.readline().strip() == b"up"
    out, _ = guard.communicate(timeout=10)  # closes its input; the end of its output means that both have ended
    assert (out, guard.returncode != 0) == (b"", True)


async def test_repr_says_what_it_is(store: Path) -> None:
    async with await embed(store, port=-1) as broker:
        assert isinstance(broker, Broker)
        assert repr(broker) == f"Broker({broker.url!r}, owned, store={str(store)!r})"
