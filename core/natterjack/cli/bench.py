"""`bench`: what the kernel costs beside raw nats-py and other packages, measured in one run.

The measurements are in `tests/bench`, which an installed package does not carry.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Final

import typer

from natterjack.cli.output import write_json, write_table
from natterjack.cli.run import run
from natterjack.errors import UsageError

_PACKAGE: Final = "natterjack_bench"
_COLUMNS: Final = ("row", "ours", "the other", "which is", "ratio", "target", "ok")


def bench(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Few calls: the order of magnitude, in seconds.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print figures for programs.")] = False,
) -> None:
    """Measure each path of the kernel beside raw nats-py and others. Needs a source checkout."""
    suite = _load(_folder())
    with _progress(len(suite.ROWS) * (1 + suite.rounds(quick=quick))) as step:
        figures = run(suite.measure(suite.ROWS, quick=quick, step=step))
    if json:
        write_json([asdict(figure) for figure in figures])
    else:
        write_table(_COLUMNS, list(map(_told, figures)), empty="no rows")
    for row in filter(suite.missing, suite.ROWS):
        typer.echo(
            f"not measured: {row.name}, beside {row.beside}: {suite.missing(row)!r} is not installed; "
            "`uv sync --group dev` installs it",
            err=True,
        )


def _folder() -> Path:
    """Return `tests/bench` of the source tree that this was installed from, or that is the current folder."""
    for root in (Path(__file__).parents[3], Path.cwd()):
        folder = root / "tests" / "bench"
        if (folder / "__init__.py").is_file() and (root / "core" / "natterjack").is_dir():
            return folder
    msg = (
        "the measurements are in tests/bench of the source tree, which an installed package does not carry; "
        "run `natterjack bench` in the root of a source checkout"
    )
    raise UsageError(msg)


def _load(folder: Path) -> ModuleType:
    """Import the folder as a package of its own name: `tests` may be anybody's."""
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        msg = f"{str(folder)!r} is no Python package"
        raise UsageError(msg)
    module = sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on a terminal's standard error; gives what advances it."""
    # Lazy: no other command has a bar.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting a server", total=total)

        def step(row: str) -> None:
            progress.update(task, advance=1, description=row)

        yield step


def _told(figure: Any) -> tuple[str, ...]:
    sign = "≥" if figure.unit == "/s" else "≤"
    target = f"≥ {figure.floor:,.0f} /s" if figure.floor else f"{sign} {figure.target:g}"
    ours, raw = (f"{value:,.0f} {figure.unit}" for value in (figure.ours, figure.raw))
    return figure.row, ours, raw, figure.beside, f"{figure.ratio:.2f}", target, "ok" if figure.ok else "missed"
