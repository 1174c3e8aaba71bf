"""The trigger `files`, with real files and a real server."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

import natterjack
from natterjack import AgentProcess, AgentRuntime, Event, StartError, TeamClient
from natterjack.testing import NatsServer, ScriptedAgent, ScriptedClock, until
from natterjack.testing.contracts import TriggerContract
from natterjack_files import FilesTrigger

SETTLE = 0.05


@pytest.fixture
def inbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


@asynccontextmanager
async def watching(
    server: NatsServer, clock: ScriptedClock | None = None, **settings: Any
) -> AsyncIterator[ScriptedAgent]:
    agent = ScriptedAgent()
    trigger = FilesTrigger.create({"path": "inbox", "settle": SETTLE, **settings})
    runtime = AgentRuntime(server.url, clock=clock)
    runtime.add_process(AgentProcess("clerk", agent=agent, triggers=[trigger], concurrency=64))
    async with runtime:
        yield agent


def told(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.data["change"], event.data["path"]) for event in events]


async def next_of(agent: ScriptedAgent, count: int = 1, timeout: float = 30) -> list[Event]:
    """Return the next events, and forget them."""
    await agent.handled(count, timeout)
    events = sorted(agent.events, key=lambda event: str(event.data["path"]))
    agent.events.clear()
    return events


class TestFilesTrigger(TriggerContract):
    component = FilesTrigger
    settings: ClassVar[dict[str, Any]] = {"path": "inbox", "pattern": "*.pdf"}
    wrong_settings = (
        {"path": ""},
        {"path": "x", "pattern": "a/b"},
        {"path": "x", "settle": -1},
        {"path": "x", "changes": ["moved"]},
    )

    @pytest.fixture(autouse=True)
    def _inbox(self, inbox: Path) -> None:
        self.inbox = inbox

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        (self.inbox / "a.pdf").write_text("a")
        for _ in range(3):  # it is seen, it rests, and it is told
            await clock.advance(5)


# --- what is told -------------------------------------------------------------------------------------------------


async def test_each_change_is_one_event(own_server: NatsServer, inbox: Path) -> None:
    async with watching(own_server) as agent:
        (inbox / "a.txt").write_text("hello")
        (event,) = await next_of(agent)
        found = (inbox / "a.txt").stat()
        assert event.type == "files"
        assert event.data == {
            "change": "created",
            "path": "a.txt",
            "absolute": str(inbox / "a.txt"),
            "size": 5,
            "mtime": found.st_mtime_ns / 1e9,
        }
        (inbox / "a.txt").write_text("hello again")
        (event,) = await next_of(agent)
        assert (event.data["change"], event.data["size"]) == ("modified", 11)
        (inbox / "a.txt").rename(inbox / "b.txt")
        (event,) = await next_of(agent)
        assert (event.data["change"], event.data["path"], event.data["renamed_from"]) == ("renamed", "b.txt", "a.txt")
        (inbox / "b.txt").unlink()
        (event,) = await next_of(agent)
        assert (event.data["change"], event.data["path"], event.data["size"]) == ("deleted", "b.txt", 11)
        (inbox / "end").touch()
        assert told(await next_of(agent)) == [("created", "end")]  # nothing else was told meanwhile


async def test_what_changes_while_nobody_watches_is_told_at_the_start(own_server: NatsServer, inbox: Path) -> None:
    for name in ("kept", "changed", "moved", "gone"):
        (inbox / name).write_text(name)
    async with watching(own_server) as agent:
        assert {change for change, _ in told(await next_of(agent, 4))} == {"created"}
    (inbox / "changed").write_text("new")
    (inbox / "moved").rename(inbox / "there")
    (inbox / "gone").unlink()
    (inbox / "new").touch()
    async with watching(own_server) as agent:
        assert told(await next_of(agent, 4)) == [
            ("modified", "changed"), ("deleted", "gone"), ("created", "new"), ("renamed", "there")
        ]  # fmt: skip
    async with watching(own_server) as agent:
        (inbox / "last").touch()
        assert told(await next_of(agent)) == [("created", "last")]


async def test_what_is_there_at_first_need_not_be_told(own_server: NatsServer, inbox: Path) -> None:
    (inbox / "old").touch()
    async with watching(own_server, existing=False) as agent:
        (inbox / "new").touch()
        assert told(await next_of(agent)) == [("created", "new")]
    (inbox / "meanwhile").touch()
    async with watching(own_server, existing=False) as agent:
        assert told(await next_of(agent)) == [("created", "meanwhile")]


async def test_only_names_and_changes_that_are_wanted(own_server: NatsServer, inbox: Path) -> None:
    async with watching(own_server, pattern="*.pdf", changes=["created"]) as agent:
        for name in ("a.txt", ".b.pdf", "c.pdf"):
            (inbox / name).touch()
        assert told(await next_of(agent)) == [("created", "c.pdf")]
        (inbox / "c.pdf").write_text("modified")
        (inbox / "a.txt").rename(inbox / "d.pdf")
        assert told(await next_of(agent)) == [("created", "d.pdf")]


async def test_folders_in_it_count_if_wanted(own_server: NatsServer, inbox: Path) -> None:
    (inbox / "deep" / "er").mkdir(parents=True)
    (inbox / ".git").mkdir()
    async with watching(own_server, recursive=True) as agent:
        (inbox / ".git" / "config").touch()
        (inbox / "deep" / "er" / "a").touch()
        assert told(await next_of(agent)) == [("created", "deep/er/a")]
        (inbox / "deep").rename(inbox / "moved")
        (event,) = await next_of(agent)
        assert (event.data["change"], event.data["path"]) == ("renamed", "moved/er/a")
    async with watching(own_server, pattern="b*") as agent:
        (inbox / "moved" / "b").touch()
        (inbox / "b2").touch()
        assert told(await next_of(agent)) == [("created", "b2")]


async def test_links_are_not_followed(own_server: NatsServer, inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    async with watching(own_server, recursive=True, content=True) as agent:
        (inbox / "link").symlink_to(tmp_path / "outside" / "secret")
        (inbox / "folder").symlink_to(tmp_path / "outside")
        (inbox / "loop").symlink_to(inbox)
        os.mkfifo(inbox / "pipe")
        (inbox / "real").write_text("real")
        assert told(await next_of(agent)) == [("created", "real")]


async def test_the_content_comes_along_if_wanted(own_server: NatsServer, inbox: Path) -> None:
    async with watching(own_server, content=True, content_limit=2_000_000) as agent:
        (inbox / "1").write_text("grüß")
        (inbox / "2").write_bytes(b"\xff\x00")
        (inbox / "3").write_bytes(b"x" * 2_000_001)
        (inbox / "4").write_bytes(b"x" * 1_500_000)
        text, binary, large, beyond = (event.data for event in await next_of(agent, 4))
        assert (text["content"], text["encoding"]) == ("grüß", "utf-8")
        assert (base64.b64decode(binary["content"]), binary["encoding"]) == (b"\xff\x00", "base64")
        assert large["omitted"] == "it is larger than 2000000 bytes"
        assert beyond["size"] == 1_500_000  # larger than a message may be
        assert "content" not in beyond
        assert "but the server takes 1,048,576" in beyond["omitted"]


async def test_names_that_are_no_text_are_told_as_well_as_can_be(
    own_server: NatsServer, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack_files.trigger.LOOK_EVERY", 0.2)  # the system's watch does not tell of them
    async with watching(own_server) as agent:
        os.close(os.open(os.fsencode(inbox) + b"/caf\xe9", os.O_CREAT))
        assert told(await next_of(agent)) == [("created", "caf\ufffd")]
    async with watching(own_server) as agent:
        os.unlink(os.fsencode(inbox) + b"/caf\xe9")
        assert told(await next_of(agent)) == [("deleted", "caf\ufffd")]


# --- when it is told ----------------------------------------------------------------------------------------------


async def test_a_file_is_told_when_it_rests(own_server: NatsServer, inbox: Path, clock: ScriptedClock) -> None:
    async with watching(own_server, clock, settle=60) as agent:
        for size in range(1, 5):  # it grows, and rests never as long as 60 s
            (inbox / "big").write_bytes(b"x" * size)
            for _ in range(9):
                await clock.advance(5)
        assert agent.events == []
        for _ in range(14):
            await clock.advance(5)
        (event,) = await next_of(agent)
        assert (event.data["change"], event.data["size"]) == ("created", 4)


async def test_the_folder_may_go_and_come_back(
    own_server: NatsServer, inbox: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with watching(own_server) as agent:
        (inbox / "a").write_text("a")
        (inbox / "b").write_text("b")
        await next_of(agent, 2)
        shutil.move(inbox, inbox.with_name("elsewhere"))
        await until(lambda: "is gone, or cannot be read; what changed is told when it is back" in caplog.text, 20)
        assert agent.events == []
        os.mkdir(inbox)
        shutil.copy2(inbox.with_name("elsewhere") / "a", inbox / "a")
        (inbox / "c").touch()
        assert told(await next_of(agent, 2)) == [("deleted", "b"), ("created", "c")]
        assert "is back" in caplog.text
        (inbox / "d").touch()  # the new one is watched
        assert told(await next_of(agent)) == [("created", "d")]


@pytest.mark.parametrize(
    ("path", "why"), [("nowhere", "does not exist; create it"), ("file", "cannot be read: Not a dir")]
)
async def test_a_folder_that_is_none_stops_the_start(own_server: NatsServer, inbox: Path, path: str, why: str) -> None:
    inbox.with_name("file").touch()
    with pytest.raises(StartError, match=rf"clerk.*the folder '.*/{path}' {why}"):
        async with watching(own_server, path=path):
            pass


def spoil(folder: Path) -> None:
    (state,) = folder.iterdir()
    state.write_bytes(b"no database, but long enough to be taken for one" * 100)


async def test_a_state_that_is_none_stops_the_start(own_server: NatsServer, inbox: Path) -> None:
    async with watching(own_server):
        pass
    spoil(inbox.parent / ".natterjack" / "files")
    with pytest.raises(StartError, match="file is not a database; correct `state` or the permissions, or remove that"):
        async with watching(own_server):
            pass


# --- how much, and how often --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=[pytest.mark.full, pytest.mark.timeout(300)])])
async def test_a_flood_is_told_file_by_file_though_the_broker_restarts(
    own_server: NatsServer, inbox: Path, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    caplog.set_level("INFO")
    names = {f"{number:05}" for number in range(count)}
    async with watching(own_server) as agent:
        for name in names:
            (inbox / name).touch()
        await agent.handled(count // 4, 60)
        own_server.kill()
        own_server.start()
        await until(lambda: {event.data["path"] for event in agent.events} == names, 240)
        assert len({event.id for event in agent.events}) == count
        assert re.search(r"1000 of \d+ changes are stored", caplog.text)  # the last of them may be told apart


async def test_of_replicas_one_watches(own_server: NatsServer, inbox: Path) -> None:
    async with watching(own_server) as first, watching(own_server) as second:  # it handles its share all the same
        (inbox / "a").touch()
        await until(lambda: first.events or second.events, 20)
    async with watching(own_server) as third:
        (inbox / "b").touch()
        assert told(await next_of(third)) == [("created", "b")]
    assert told([*first.events, *second.events]) == [("created", "a")]


async def test_a_replica_that_stands_by_takes_over(own_server: NatsServer, inbox: Path, clock: ScriptedClock) -> None:
    first = watching(own_server)
    agent = await first.__aenter__()
    try:
        (inbox / "a").touch()
        await next_of(agent)
        async with watching(own_server, clock) as second:
            await first.__aexit__(None, None, None)
            (inbox / "b").touch()
            for _ in range(4):  # it looks whether it may, sees the file, and lets it rest
                await clock.advance(5)
            assert told(await next_of(second)) == [("created", "b")]
    finally:
        await first.__aexit__(None, None, None)


PROGRAM = """
import asyncio, logging, sys
from natterjack import Agent, AgentProcess, AgentRuntime
from natterjack_files import FilesTrigger

class Clerk(Agent):
    async def handle(self, event, ctx):
        pass

async def main():
    runtime = AgentRuntime(sys.argv[1])
    trigger = FilesTrigger.create({"path": "inbox", "settle": 0.05})
    runtime.add_process(AgentProcess(name="clerk", agent=Clerk(), triggers=[trigger], concurrency=64))
    async with runtime:
        await runtime.wait()

logging.disable(logging.CRITICAL)
asyncio.run(main())
"""


async def stored(client: TeamClient) -> int:
    """Return how many events were ever put into an inbox."""
    return int((await client.bus.api("STREAM.INFO.INBOX"))["state"]["last_seq"])


async def reached(client: TeamClient, least: int) -> bool:
    return await stored(client) >= least


async def test_a_process_that_is_killed_loses_and_repeats_nothing(own_server: NatsServer, inbox: Path) -> None:
    process: subprocess.Popen[bytes] | None = None
    async with watching(own_server, state="elsewhere"):  # provisions
        pass
    for number in range(1000):
        (inbox / str(number)).touch()
    async with natterjack.connect(own_server.url) as client:
        try:
            for least in (50, 400, 1000):
                process = subprocess.Popen([sys.executable, "-c", PROGRAM, own_server.url])  # noqa: ASYNC220 - once
                await until(partial(reached, client, least), 50)
                process.send_signal(signal.SIGKILL)
                process.wait()
        finally:
            if process is not None:
                process.kill()
                process.wait()
        async with watching(own_server, changes=["deleted", "created"]) as agent:
            (inbox / "7").unlink()
            await until(lambda: ("deleted", "7") in told(agent.events), 20)
        assert await stored(client) == 1001  # each was put into the inbox once, and so was this
