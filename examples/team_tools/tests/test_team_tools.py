"""The team tools: who may do what, what stays inside its folder, and every way to serve them."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from mcp import Client, StdioServerParameters

from natterjack import Envelope
from natterjack.testing import NatsServer
from natterjack.testing.command import Cli
from natterjack.testing.contracts import ToolServerContract
from natterjack_mcp import (
    Caller,
    HttpServerSpec,
    JWTAuth,
    MCPServer,
    ToolError,
    ToolRefusedError,
    ToolUnavailableError,
)
from team_tools.folders import Folders
from team_tools.kind import TeamTools
from team_tools.tools import file_name, team_tools

ROOT = Path(__file__).parents[1]
SECRET = "a secret of thirty-two bytes, or more"
TOKEN = JWTAuth(SECRET).token("ann", roles=["researcher"])
RESEARCHER, ANALYST, WRITER = (Caller.test(role, roles=[role]) for role in ("researcher", "analyst", "writer"))


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """A small corpus and documents, and beside them what is nobody's business."""
    for name, text in {
        "corpus/toads.md": "# Toads\n\nThe natterjack runs instead of hopping on its short legs.\n",
        "documents/ponds.md": "# Ponds\n\nA shallow pond warms quickly and is where natterjacks spawn.\n",
        "documents/deep/dunes.txt": "Natterjacks dig themselves into the sand of dunes during the day.\n",
        "documents/.hidden/x.md": "Natterjacks are hidden here, where nobody should look for them.\n",
        "secrets/key.md": "The natterjack keeps its secret under the third stone.\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "documents" / "link.md").symlink_to(tmp_path / "secrets" / "key.md")
    (tmp_path / "documents" / "away").symlink_to(tmp_path / "secrets")
    return Folders(
        corpus=tmp_path / "corpus", documents=tmp_path / "documents", published=tmp_path / "out" / "published"
    )


@pytest.fixture
def server(folders: Folders) -> MCPServer:
    return team_tools(folders)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def sources(hits: list[dict[str, Any]]) -> set[str]:
    return {hit["passage"]["source"].partition(":")[0] for hit in hits}


async def test_a_researcher_searches_the_corpus_and_the_documents(server: MCPServer) -> None:
    found = await server.call("web_search", {"query": "natterjack legs"}, as_caller=RESEARCHER)
    assert found[0]["passage"]["text"] == "The natterjack runs instead of hopping on its short legs."
    assert sources(found) == {"toads.md"}
    found = await server.call("document_search", {"query": "natterjacks"}, as_caller=RESEARCHER)
    assert sources(found) == {"ponds.md", "deep/dunes.txt"}
    found = await server.call("document_search", {"query": "natterjacks", "folder": "deep"}, as_caller=ANALYST)
    assert sources(found) == {"dunes.txt"}
    assert await server.call("document_search", {"query": "zebras"}, as_caller=ANALYST) == []


@pytest.mark.parametrize(
    ("tool", "refused"),
    [("web_search", [ANALYST, WRITER]), ("document_search", [WRITER]), ("publish", [RESEARCHER, ANALYST])],
)
async def test_roles_decide_who_may(server: MCPServer, folders: Folders, tool: str, refused: list[Caller]) -> None:
    given = {"title": "Toads", "content": "…"} if tool == "publish" else {"query": "toads"}
    for caller in [*refused, Caller()]:
        with pytest.raises(ToolRefusedError, match="Role"):
            await server.call(tool, given, as_caller=caller)
    assert not folders.published.exists()


@pytest.mark.parametrize(
    "folder", ["..", "../secrets", "deep/../../secrets", "away", ".hidden", "nowhere", "ponds.md", "{there}", "a\0b"]
)
async def test_nothing_outside_the_documents_is_searched(server: MCPServer, folders: Folders, folder: str) -> None:
    given = {"query": "natterjack", "folder": folder.format(there=folders.documents.parent / "secrets")}
    with pytest.raises(ToolError, match=r"is no folder of the documents; .* name one of: 'deep'"):
        await server.call("document_search", given, as_caller=RESEARCHER)


async def test_documents_without_text_are_told(server: MCPServer, folders: Folders) -> None:
    (folders.documents / "empty").mkdir()
    with pytest.raises(ToolError, match="the documents in 'empty' hold no text"):
        await server.call("document_search", {"query": "x", "folder": "empty"}, as_caller=RESEARCHER)


async def test_what_is_published_stays(server: MCPServer, folders: Folders) -> None:
    names = [
        await server.call("publish", {"title": "On  Toads!", "content": text}, as_caller=WRITER) for text in ("a", "b")
    ]
    assert names == ["on-toads.md", "on-toads-2.md"]
    written = {path.name: path.read_text() for path in folders.published.iterdir()}
    assert written == {"on-toads.md": "# On Toads!\n\na\n", "on-toads-2.md": "# On Toads!\n\nb\n"}


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("C:\\Windows\\a.exe", "c-windows-a-exe"),
        (".bashrc", "bashrc"),
        ("Kröten, 2 Stück", "kröten-2-stück"),
        ("a\nb\0c", "a-b-c"),
        ("???", "untitled"),
        ("", "untitled"),
        ("toad " * 100, "toad-" * 11 + "toad"),
        ("漢" * 300, "漢" * 60),
    ],
)
def test_names_of_files_are_safe(title: str, name: str) -> None:
    assert file_name(title).startswith(name)
    assert len(f"{file_name(title)}-1000.md".encode()) < 255


def test_folders_come_from_the_environment() -> None:
    assert Folders.of_environment({}) == Folders()
    given = {"TEAM_TOOLS_CORPUS": "/a", "TEAM_TOOLS_DOCUMENTS": "b", "TEAM_TOOLS_PUBLISHED": ""}
    assert Folders.of_environment(given) == Folders(corpus=Path("/a"), documents=Path("b"))


class TestTeamTools(ToolServerContract):
    """The contract of tool servers, on this one."""

    component = TeamTools
    settings: ClassVar = {"documents": "documents"}
    wrong_settings = ({"document": "documents"}, {"concurrency": 0})


# Every way to serve them


def environment(folders: Folders, **more: str) -> dict[str, str]:
    return {f"TEAM_TOOLS_{name.upper()}": str(folder) for name, folder in folders} | more


async def test_over_stdio_who_starts_it_may_call_all(folders: Folders) -> None:
    started = StdioServerParameters(
        command=sys.executable, args=["-m", "team_tools"], env={**os.environ, **environment(folders)}
    )
    async with Client(started) as client:
        tools = (await client.list_tools()).tools
        assert [each.name for each in tools] == ["web_search", "document_search", "publish"]
        assert all(each.description for each in tools)
        done = await client.call_tool("publish", {"title": "Toads", "content": "…"})
        assert done.structured_content == {"result": "toads.md"}
        assert (await client.call_tool("document_search", {"query": "ponds", "folder": ".."})).is_error
    assert (folders.published / "toads.md").exists()


async def test_over_stdio_a_token_says_who_calls(folders: Folders) -> None:
    token = JWTAuth(SECRET).token("ann", roles=["analyst"])
    env = {**os.environ, **environment(folders, TEAM_TOOLS_SECRET=SECRET, NATTERJACK_TOKEN=token)}
    async with Client(StdioServerParameters(command=sys.executable, args=["-m", "team_tools"], env=env)) as client:
        assert [each.name for each in (await client.list_tools()).tools] == ["document_search"]


AGENTS = """\
from natterjack import Agent, NatterjackError


class Clerk(Agent):
    async def answer(self, question, ctx):
        tool, _, text = question.partition(" ")
        given = {"title": text, "content": "…"} if tool == "publish" else {"query": text}
        try:
            return await ctx.tools.call_with(f"team-tools.{tool}", given)
        except NatterjackError as error:
            return f"{type(error).__name__}: {error}"
"""
README = (ROOT / "README.md").read_text()
(TEAM,) = re.findall(r"^```toml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "table", ['kind = "team-tools"', pytest.param('server = "team_tools:server"', marks=pytest.mark.full)]
)
def test_in_a_team(cli: Cli, folders: Folders, table: str) -> None:
    team = re.sub(r'^kind = "team-tools".*\ndocuments.*\npublished.*\n', f"{table}\n", TEAM, flags=re.MULTILINE)
    if table.startswith("kind"):
        team += "".join(f"{name} = {json.dumps(str(folder))}\n" for name, folder in folders)
    else:
        cli.env.update(environment(folders))
    cli.write(team_toml=team, agents_py=AGENTS)
    with cli.start("up") as up:
        up.wait_line("^ready +1 agent")
        (hit, *_) = json.loads(cli.text("ask", "clerk", "web_search legs"))
        assert hit["passage"]["source"] == "toads.md:3"
        assert cli.text("ask", "clerk", "publish Toads") == "toads.md"
        assert (folders.published / "toads.md").read_text() == "# Toads\n\n…\n"
        shown = json.loads(cli.text("tools", "inspect", "team-tools", "--as", "clerk"))
        assert [each["tool"] for each in shown] == ["web_search", "document_search", "publish"]
        assert json.loads(cli.text("tools", "inspect", "team-tools")) == []
        assert up.end() == 0


@pytest.mark.full
async def test_over_http_callers_show_a_token(cli: Cli, folders: Folders) -> None:
    cli.env.update(environment(folders, TEAM_TOOLS_SECRET=SECRET))
    with cli.start("tools", "serve", "team_tools:server", "--http", "127.0.0.1:0") as serving:
        url = serving.wait_line(r"is served at (http://\S+)")[1]
        nobody = HttpServerSpec(url).client("team-tools", None)  # type: ignore[arg-type]  # it needs no bus
        with pytest.raises(ToolUnavailableError, match="it wants to know who calls"):
            await nobody.start()
        ann = HttpServerSpec(url, TOKEN).client("team-tools", None)  # type: ignore[arg-type]
        await ann.start()
        try:
            assert {each.tool for each in await ann.list(timeout=20.0)} == {"web_search", "document_search"}
            found = await ann.call("web_search", {"query": "legs"}, timeout=20.0, envelope=Envelope())
            assert sources(found) == {"toads.md"}
        finally:
            await ann.close()
        assert serving.end() == 0


@pytest.mark.full
@pytest.mark.open_mode(reason="a secured broker says who calls, without a token")
def test_over_nats_the_command_line_calls_them(cli: Cli, folders: Folders, own_server: NatsServer) -> None:
    cli.env.update(environment(folders, TEAM_TOOLS_SECRET=SECRET, NATS_URL=own_server.url))
    with cli.start("tools", "serve", "team_tools:server", "--nats") as serving:
        serving.wait_line("team-tools is served over NATS")
        call = ["tools", "call", "team-tools.web_search", '{"query": "legs"}']
        assert "show a token" in cli.error(*call, code=1)
        cli.env["NATTERJACK_TOKEN"] = TOKEN
        assert sources(json.loads(cli.text(*call))) == {"toads.md"}
        assert serving.end() == 0
