"""The audit: what it holds, what its chain finds, and what a killed process leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from natterjack import ConfigError
from natterjack_mcp import AuditMiddleware, Caller, HasRole, MCPServer, ToolContext, ToolError, ToolRefusedError
from natterjack_mcp.audit import verify
from natterjack_mcp.commands import app

ANN = Caller.test("ann", roles=["writer"])


def desk(folder: Path) -> MCPServer:
    server = MCPServer("desk")
    server.middleware = [AuditMiddleware(folder)]

    @server.tool(guards=[HasRole("writer")])
    async def publish(title: str, ctx: ToolContext) -> str:
        ctx.journal.append("printed", {"copies": 3})
        return title

    return server


def records(folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.iterdir()
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_each_call_is_written_down_also_a_refused_one(tmp_path: Path) -> None:
    server = desk(tmp_path)
    await server.call("publish", {"title": "toads"}, as_caller=ANN)
    with pytest.raises(ToolRefusedError):
        await server.call("publish", {"title": "newts"}, as_caller=Caller.test("ben"))
    await server.call("publish", {"title": "x" * 5000}, as_caller=ANN)
    with pytest.raises(ToolError):
        await server.call("publish", {}, as_caller=ANN)
    done, refused, long, wrong = records(tmp_path)
    assert (done["caller"], done["tool"], done["outcome"]) == ("ann", "publish", "done")
    assert (done["arguments"], done["notes"]) == ({"title": "toads"}, [["printed", {"copies": 3}]])
    assert refused["caller"] == "ben"
    assert refused["outcome"].endswith("HasRole('writer') refuses")
    assert len(long["arguments"]) == 64
    assert wrong["outcome"] == "error"
    assert len({each["request"] for each in (done, refused, long, wrong)}) == 4
    (verdict,) = verify(tmp_path)
    assert (verdict.records, verdict.problem, verdict.torn) == (4, "", False)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[bytes]]:
    """Name and lines of a good file."""
    import asyncio

    folder = tmp_path_factory.mktemp("audit")
    server = desk(folder)

    async def write() -> None:
        for number in range(6):
            await server.call("publish", {"title": str(number)}, as_caller=ANN)

    asyncio.run(write())
    (path,) = folder.iterdir()
    return path.name, path.read_bytes().splitlines(keepends=True)


@settings(deadline=None)
@given(data=st.data())
def test_what_is_changed_missing_or_moved_is_found(
    lines: tuple[str, list[bytes]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name, good = lines
    what = data.draw(st.sampled_from(["change", "remove", "swap", "repeat"]))
    place = data.draw(st.integers(0, len(good) - 2))
    bad = [*good]
    if what == "change":
        at = data.draw(st.integers(0, len(bad[place]) - 2))
        byte = data.draw(st.integers(32, 126).filter(lambda byte: byte != bad[place][at]))
        bad[place] = bad[place][:at] + bytes([byte]) + bad[place][at + 1 :]
    elif what == "remove":
        del bad[place]
    elif what == "swap":
        bad[place], bad[place + 1] = bad[place + 1], bad[place]
    else:
        bad.insert(place, bad[place])
    folder = tmp_path_factory.mktemp("audit")
    (folder / name).write_bytes(b"".join(bad))
    (verdict,) = verify(folder)
    assert verdict.problem
    assert verdict.records <= place + 1


def test_a_file_of_another_writer_is_found(lines: tuple[str, list[bytes]], tmp_path: Path) -> None:
    (tmp_path / f"x{lines[0]}").write_bytes(b"".join(lines[1]))
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert done.exit_code == 1
    assert "record 1 is missing" in done.output


WRITER = """
import asyncio, sys
from natterjack_mcp import AuditMiddleware, Caller, MCPServer

server = MCPServer("desk")
server.middleware = [AuditMiddleware(sys.argv[1])]
server.tool(name="a")(lambda: 1)

async def main():
    number = 0
    while True:
        await server.call("a", {})
        number += 1
        print(number, flush=True)

asyncio.run(main())
"""


def test_a_killed_process_leaves_every_call_that_was_answered(tmp_path: Path) -> None:
    for wanted in (1, 50, 200):
        folder = tmp_path / str(wanted)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        with writer.stdout as answered:
            for _ in range(wanted):
                last = answered.readline()
            writer.kill()
            last = (answered.read().split() or [last])[-1]
        writer.wait()
        (verdict,) = verify(folder)
        assert verdict.problem == ""
        assert verdict.records >= max(wanted, int(last))


def cut_off(folder: Path) -> None:
    (path,) = folder.iterdir()
    with path.open("ab") as file:
        file.write(b'{"number":2,"ti')


async def test_a_line_that_is_cut_off_is_no_fault_and_another_file_goes_on(tmp_path: Path) -> None:
    await desk(tmp_path).call("publish", {"title": "a"}, as_caller=ANN)
    cut_off(tmp_path)
    await desk(tmp_path).call("publish", {"title": "b"}, as_caller=ANN)
    found = sorted((each.records, each.problem, each.torn) for each in verify(tmp_path))
    assert found == [(1, "", False), (1, "", True)]
    done = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert (done.exit_code, "cut off" in done.output) == (0, True)


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        AuditMiddleware(tmp_path / "file" / "folder")
    assert os.listdir(tmp_path) == ["file"]
