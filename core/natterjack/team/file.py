"""The team file: reading `team.toml`, with the line of all that is wrong in it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from natterjack.codec import MAX_DEPTH
from natterjack.errors import ConfigError
from natterjack.settings import Settings
from natterjack.team.check import path_text, report, sentence
from natterjack.team.model import AgentSpec, Team, TeamTable
from natterjack.team.origins import Origins
from natterjack.team.processes import ToolSpec
from natterjack.team.triggers import TriggerSpec
from natterjack.team.users import UserSpec
from natterjack.team.values import BucketName, Name, State, ToolName

MAX_BYTES: Final = 1_000_000
"""Size of a team file: provisioning stores the team as one message."""

_SECTIONS: Final = {"team": 1, "context": 1, "agents": 2, "tools": 2, "users": 2}
_PIECE: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'|#[^\n]*|[\[\]{}=\n]|[^\[\]{}=\n#\"']+",
    re.DOTALL,
)
# tomllib takes quadratic time for dotted keys. Possessive, so that the search for one is linear.
_LONG_KEY: Final = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+)""" f"{{{MAX_DEPTH}}}")


class TeamFile(Settings):
    """The tables of a team file.

    Attributes:
        team: The team itself.
        context: The shared context's initial state.
        buckets: A table of initial state for each bucket beside it.
        agents: A table for each agent.
        tools: A table for each tool server.
        users: A table for each user: who acts from outside with a key of its own.
    """

    team: TeamTable = TeamTable()
    context: State = Field(default_factory=dict)
    buckets: dict[BucketName, State] = Field(default_factory=dict)
    agents: dict[Name, AgentSpec] = Field(min_length=1)
    tools: dict[ToolName, ToolSpec] = Field(default_factory=dict)
    users: dict[Name, UserSpec] = Field(default_factory=dict)

    def as_team(self) -> Team:
        """Return the team that it describes."""
        tables = {"context": self.context, "buckets": self.buckets, "agents": self.agents, "tools": self.tools}
        return Team(**self.team.model_dump(), **tables, users=self.users)


def read_team(path: Path) -> Team:
    """Read a team file.

    Raises:
        ConfigError: It cannot be read, or is wrong; each problem is one line that starts with its file and line.
    """
    text = _read(path)
    document = _parse(path, text)
    origins = Origins(str(path), key_lines(text))
    deep = _too_deep(document)
    if deep:
        msg = f"{origins.at(*deep)}: [{'.'.join(deep[:2])}] nests deeper than {MAX_DEPTH} levels; write it flatter"
        raise ConfigError(report([msg]))
    try:
        return TeamFile.model_validate(document).as_team().written_in(origins)
    except ValidationError as error:
        problems = sorted(error.errors(include_url=False), key=lambda problem: origins.line(*_path(problem)))
        raise ConfigError(report([_problem(problem, origins) for problem in problems])) from error


def team_schema() -> dict[str, Any]:
    """Return the JSON Schema of a team file, for editors."""
    schema = TeamFile.model_json_schema()
    for table in (schema, *schema["$defs"].values()):
        table["description"], _, attributes = table["description"].partition("\n\nAttributes:\n")
        for key, text in re.findall(r"^ {4}(\w+): (.+)", attributes, re.MULTILINE):
            if key in table.get("properties", ()):
                table["properties"][key]["description"] = text
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Natterjack team file"}


def _read(path: Path) -> str:
    try:
        if not path.exists():
            msg = f"{path} does not exist. `natterjack init` makes one."
            raise ConfigError(msg)
        if not path.is_file():
            msg = f"{path} is not a file. `natterjack init` makes one."
            raise ConfigError(msg)
        if path.stat().st_size > MAX_BYTES:
            msg = f"{path} is larger than {MAX_BYTES:,} bytes; move long texts into files of their own"
            raise ConfigError(msg)
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise ConfigError(msg) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = f"{error.object[error.start]:#04x}"
        msg = f"{path}:{line}: not UTF-8 (byte {byte}); save it as UTF-8, or let `natterjack init` make a new one"
        raise ConfigError(msg) from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    long = _LONG_KEY.search(text)
    if long:
        msg = (
            f"{path}:{text.count(chr(10), 0, long.start()) + 1}: a key of more than {MAX_DEPTH} parts; write it flatter"
        )
        raise ConfigError(msg)
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        msg = f"{path}: nests too deeply to be read; write it flatter"
        raise ConfigError(msg) from error
    except ValueError as error:  # TOMLDecodeError is one, and so is a number of more than 4,300 digits
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error), re.DOTALL)
        if not found:
            raise ConfigError(report([f"{path}: not valid TOML: {str(error).partition(';')[0]}"])) from error
        what, line, column = found.groups()
        where = f"{path}:{line or text.count(chr(10)) + 1}"
        raise ConfigError(
            report([f"{where}: not valid TOML: {what}" + (f" (column {column})" if column else "")])
        ) from error


def _too_deep(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the path of something that nests too deeply, or nothing."""
    rest: list[tuple[tuple[str, ...], Any]] = [((), document)]
    while rest:
        path, value = rest.pop()
        if len(path) > MAX_DEPTH:
            return path
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        rest += [((*path, str(key)), item) for key, item in items]
    return ()


# Messages


def _path(problem: ErrorDetails) -> tuple[int | str, ...]:
    """Return where in the file a problem is; options are written in the table of what has them."""
    path = tuple(part for part in problem["loc"] if part != "[key]")
    return (
        path[:2] + path[3:]
        if path[:1] in (("agents",), ("tools",)) and path[2:3] == ("options",) and path[3:]
        else path
    )


def _problem(problem: ErrorDetails, origins: Origins) -> str:
    path = _path(problem)
    size = _SECTIONS.get(str(path[0]), 0)
    table = f"[{path_text(path[:size])}] " if len(path) > size > 0 else ""
    known = [*_known(path)]
    if path == ("agents",) and problem["type"] in ("missing", "too_short"):
        return f"{origins.at('agents')}: there are no agents; add a table [agents.NAME] with the `kind` of one"
    return f"{origins.at(*path)}: {table}{sentence(problem, path_text(path[size:] or path), known)}"


def _known(path: tuple[int | str, ...]) -> Iterator[str]:
    """Return the keys that may stand where a path ends."""
    if len(path) == 1:
        yield from TeamFile.model_fields
    elif path[0] == "team":
        yield from TeamTable.model_fields
    elif path[0] == "tools":
        yield from ToolSpec.model_fields
    elif path[0] == "users":
        yield from UserSpec.model_fields
    else:
        yield from AgentSpec.model_fields if len(path) == 3 else TriggerSpec.model_fields


# Lines


def key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line, 1 first, of each table and each key of a valid TOML document, by its path.

    Keys inside inline tables, and items of arrays, have none: they share their key's.
    """
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for line, pieces in _statements(text):
        if pieces[0] == "[":
            path = table = _key("".join(pieces).strip().strip("[]"))
        else:
            path = table + _key("".join(takewhile(lambda piece: piece != "=", pieces)))
        for size in range(1, len(path) + 1):
            lines.setdefault(path[:size], line)
    return lines


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each header and each assignment with the line it starts on, without comments."""
    line = start = 1
    depth, pieces = 0, list[str]()
    for piece in _PIECE.findall(text + "\n"):
        if piece == "\n" and not depth:
            if pieces:
                yield start, pieces
            pieces, start = [], line + 1
        elif piece.strip() and not piece.startswith("#"):
            depth += (piece in "[{") - (piece in "]}")
            pieces.append(piece)
        line += piece.count("\n")


def _key(text: str) -> tuple[str, ...]:
    """Return the parts of a dotted key, quoted ones as they read."""
    table: Any = tomllib.loads(f"{text} = 0")
    parts = []
    while isinstance(table, dict):
        ((part, table),) = table.items()
        parts.append(part)
    return tuple(parts)
