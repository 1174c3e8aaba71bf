"""The three tools, and the server that has them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from natterjack.demo.corpus import Corpus, CorpusError, Hit
from natterjack_mcp import AuthMiddleware, HasAnyRole, HasRole, JWTAuth, MCPServer, ToolError
from natterjack_mcp.guards import Check
from team_tools.folders import PREFIX, Folders

LONGEST_NAME = 60
"""Characters of a file's name; with four bytes each they are fewer than the 255 bytes of most file systems."""
MOST_OF_A_NAME = 1000
"""Texts of one title."""


def team_tools(folders: Folders, *, auth: JWTAuth | None = None, trusted: bool = False) -> MCPServer:
    """Return the server.

    Args:
        folders: Where it looks and writes.
        auth: Knows callers by their tokens; without it, the team says who they are.
        trusted: Let everybody call everything: there is one caller, who has started the server.

    Raises:
        CorpusError: There is nothing to search for `web_search`.
    """
    server = MCPServer("team-tools", version="0.1.0")
    corpus = Corpus.from_folder(folders.corpus) if folders.corpus else Corpus.language_reference()

    def guarded(*guards: Check) -> Sequence[Check]:
        return () if trusted else guards

    @server.tool(guards=guarded(HasRole("researcher")), idempotent=True)
    def web_search(query: str) -> list[Hit]:
        """Search the web: a corpus that stands for it. The best passages come first, with their source."""
        return corpus.search(query)

    @server.tool(guards=guarded(HasAnyRole("researcher", "analyst")), idempotent=True)
    def document_search(query: str, folder: str = "") -> list[Hit]:
        """Search our own text and Markdown files, or one folder of them. The best passages come first."""
        return documents(folders.documents, folder).search(query)

    @server.tool(guards=guarded(HasRole("writer")))
    def publish(title: str, content: str) -> str:
        """Publish a text in Markdown, and return the name of its file. What was published before stays."""
        return write(folders.published, title, content)

    server.middleware = [AuthMiddleware(auth)] if auth else []
    return server


def server_of_environment(*, trusted: bool = False) -> MCPServer:
    """Return a server with the folders that the environment names; with TEAM_TOOLS_SECRET, callers show a token."""
    secret = os.environ.get(f"{PREFIX}SECRET")
    return team_tools(
        Folders.of_environment(), auth=JWTAuth(secret) if secret else None, trusted=trusted and not secret
    )


def documents(root: Path, folder: str) -> Corpus:
    """Return the files below a folder of the documents; read anew, because they change.

    Raises:
        ToolError: There is no such folder among them, or no text in it.
    """
    whole = root.resolve()
    wanted = (whole / folder.replace("\0", "")).resolve()
    if not wanted.is_relative_to(whole) or _hidden(wanted.relative_to(whole)) or not wanted.is_dir():
        there = ", ".join(sorted(repr(each.name) for each in whole.glob("[!.]*/") if not each.is_symlink())) or "none"
        msg = f"{folder!r} is no folder of the documents; leave it out for all, or name one of: {there}"
        raise ToolError(msg)
    try:
        return Corpus.from_folder(wanted)
    except CorpusError as error:
        msg = f"the documents in {folder!r} hold no text to search"
        raise ToolError(msg) from error


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def write(folder: Path, title: str, content: str) -> str:
    """Write a text into a file named after its title, beside others of that name, and return the file's name.

    Raises:
        ToolError: There are too many of that title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name, title = file_name(title), " ".join(title.split())
    for number in range(1, MOST_OF_A_NAME + 1):
        path = folder / (f"{name}.md" if number == 1 else f"{name}-{number}.md")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(f"# {title}\n\n{content.strip()}\n")
        except FileExistsError:
            continue
        return path.name
    msg = f"{MOST_OF_A_NAME} texts have the title {title!r}; give this one another"
    raise ToolError(msg)


def file_name(title: str) -> str:
    """Return a title as the name of a file, without suffix: letters, digits and single '-' only."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", title).lower())
    return "-".join(words)[:LONGEST_NAME].strip("-") or "untitled"
