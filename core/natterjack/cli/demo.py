"""`demo`: three agents, each a process of its own, turn a question into a cited report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from natterjack.cli.options import JsonOption, NatsContextOption, ServerOption, chosen, read_text
from natterjack.cli.output import clean, note, write, write_json
from natterjack.cli.run import run, stopping
from natterjack.coroutines import first_of

if TYPE_CHECKING:
    from natterjack.cli.play import Stage
    from natterjack.demo.report import Report


def demo(
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="What the report shall answer; by default one on `with`.")
    ] = None,
    *,
    docs: Annotated[
        Path | None,
        typer.Option("--docs", metavar="DIR", help="Text and Markdown files; by default Python's language reference."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Have a model phrase the short answer: local (in this machine, 135 million parameters), or e.g."
            " openai:gpt-5-mini. By default none does.",
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the agents' processes print.")] = False,
    server: ServerOption = None,
    nats_context: NatsContextOption = None,
    json: JsonOption = False,
) -> None:
    """See it work: three agents research, judge and write a report in which each statement is cited.

    The report is extracted from the documents; a question they cannot answer is said to be one. A model may phrase its
    short answer; what the documents do not state is left out of it.
    """
    from natterjack.cli.play import QUESTION, Stage  # lazy: it is a third of what the command line imports

    named = chosen(server, nats_context) if server or nats_context else None
    stage = Stage(show=_show, log=_log if verbose else _quiet, server=named)
    report = run(_play(QUESTION if question is None else read_text(question), docs, stage, model))
    if report is None:
        raise typer.Exit(130)
    if json:
        write_json(report.model_dump(mode="json"))
    else:
        _write_report(report)


async def _play(question: str, docs: Path | None, stage: Stage, model: str | None) -> Report | None:
    """Return the report, or None if the user stops it; then all processes have ended, too."""
    from natterjack.cli.play import play

    with stopping() as stop:
        ended: Report | Literal[True] = await first_of(play(question, docs, stage, model), stop.wait())
        return None if ended is True else ended


def _show(who: str, what: str) -> None:
    label = f"{who:11}"
    colored = typer.style(label, fg="cyan") if sys.stderr.isatty() else label
    note(f"{colored} {clean(what)}")


def _log(who: str, line: str) -> None:
    note(f"  {who} | {clean(line)}")


def _quiet(who: str, line: str) -> None:
    """Show nothing but trouble: a traceback's lines, or that a process starts again."""
    if "ERROR" in line or "ended with" in line:
        _log(who, line)


def _write_report(report: Report) -> None:
    if not sys.stdout.isatty():
        write(report.markdown)
        return
    from rich.console import Console  # lazy: rich takes 50 ms to import
    from rich.markdown import Markdown

    note("")
    Console().print(Markdown(report.markdown))
