"""What commands print: JSON for programs, tables on a terminal, aligned plain text where it is piped."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import typer

from natterjack import codec
from natterjack.cli.exits import ExitCode

# Data comes from strangers: what moves the cursor or rings the bell is shown, not done.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PLAIN_WIDTH: Final = 60
_FOLDED: Final = 12
"""Characters that a cell is folded to at the narrowest; less cannot be read."""


def write(line: str) -> None:
    """Print a line on standard output, at once. A reader that has gone ends the command quietly."""
    write_part(f"{line}\n")


def write_part(text: str) -> None:
    """Print text that may go on in the same line."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        raise typer.Exit(ExitCode.OK) from None


def note(line: str) -> None:
    """Print a line on standard error: what a reader should know, and a program must not read."""
    typer.echo(line, err=True)


def write_json(value: Any) -> None:
    """Print one JSON value on one line."""
    write(orjson.dumps(value, default=_readable, option=orjson.OPT_NON_STR_KEYS).decode())


def _readable(value: object) -> object:
    return value.decode(errors="replace") if isinstance(value, bytes) else codec.encode(value).decode()


def text_of(value: Any) -> str:
    """Return a JSON value as a human reads it: text as it is, all else as JSON; without control characters."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return clean(value if isinstance(value, str) else codec.encode(value).decode())


def local(time: datetime | float, *, day: bool = True) -> str:
    """Return a moment in local time, with its day or without; a number is Unix seconds."""
    moment = time if isinstance(time, datetime) else datetime.fromtimestamp(time, UTC)
    return f"{moment.astimezone():{'%Y-%m-%d ' if day else ''}%H:%M:%S}"


def clean(text: str) -> str:
    r"""Return text with control characters spelled out (`\x1b`); line breaks and tabs stay."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(value: Any) -> str:
    """Return a value as one line of text."""
    return " ".join(text_of(value).split())


def write_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Print rows under their columns; on standard error what `empty` says where there are none."""
    if not rows:
        note(empty)
    elif sys.stdout.isatty():
        _write_rich(columns, [[one_line(cell) for cell in row] for row in rows])
    else:
        _write_plain(columns, [[one_line(cell) for cell in row] for row in rows])


def _write_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # Lazy: most commands print no table, and rich takes 50 ms to import.
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if sum(width + 3 for width in _widths(columns, rows, _FOLDED)) > console.width:
        _write_blocks(columns, rows)
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _write_blocks(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print each row as lines of its own, for terminals that are too narrow for the columns."""
    name_width = max(map(len, columns))
    for number, row in enumerate(rows):
        if number:
            write("")
        for column, cell in zip(columns, row, strict=True):
            write(f"{column:{name_width}}  {cell}".rstrip())


def _write_plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = _widths(columns, rows, _PLAIN_WIDTH)
    for line in (columns, *rows):
        write("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> list[int]:
    """Return the width of each column, in characters."""
    return [min(most, max(map(len, cells))) for cells in zip(columns, *rows, strict=True)]
