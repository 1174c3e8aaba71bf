"""`graph`: who emits, waits, asks, writes, reads and calls tools, as a tree, as Mermaid, or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from natterjack.cli.options import TEAM_FILE, JsonOption
from natterjack.cli.output import clean, write, write_json
from natterjack.cli.wiring import EdgeKind, Node, NodeKind, Wiring, named_team, wiring

if TYPE_CHECKING:
    from rich.text import Text

TeamNameArgument = Annotated[
    str, typer.Argument(metavar="TEAM", help="A team file, or MODULE:NAME of an AgentRuntime.")
]


class Format(StrEnum):
    """How the graph is printed."""

    TERMINAL = "terminal"
    MERMAID = "mermaid"


def graph(
    team: TeamNameArgument = str(TEAM_FILE),
    *,
    format: Annotated[
        Format, typer.Option("--format", help="`mermaid` is drawn by GitHub and many editors.")
    ] = Format.TERMINAL,
    as_json: JsonOption = False,
) -> None:
    """Show how a team is connected: who emits, waits, asks, writes, reads, and calls which tools."""
    made = wiring(named_team(team))
    if as_json:
        write_json({"team": made.team, "nodes": [*made.nodes.values()], "edges": made.edges})
    elif format is Format.MERMAID:
        write(mermaid(made))
    else:
        _print_tree(made)


# Mermaid

_SHAPES: Final[dict[NodeKind, tuple[str, str]]] = {
    "agent": ("[", "]"),
    "event": ("([", "])"),
    "topic": (">", "]"),
    "key": ("[(", ")]"),
    "tools": ("[/", "/]"),
    "trigger": ("{{", "}}"),
    "peer": ("[[", "]]"),
    "outside": ("((", "))"),
}
_ARROWS: Final[dict[EdgeKind, str]] = {"asks": "-.->", "tools": "-.->", "writes": "==>", "reads": "==>"}
_SILENT: Final = ("emits", "wakes", "reads")
"""Edges that their ends explain."""


def mermaid(made: Wiring) -> str:
    """Return the graph as a Mermaid flowchart; names go by numbers, so that any of them may be any text."""
    ids = {id: f"n{number}" for number, id in enumerate(made.nodes)}
    lines = ["flowchart LR"]
    for node in made.nodes.values():
        left, right = _SHAPES[node.kind]
        lines.append(f'    {ids[node.id]}{left}"{_escaped(node.name)}"{right}')
    for edge in made.edges:
        text = _escaped(" ".join(filter(None, ("" if edge.kind in _SILENT else edge.kind, edge.label))))
        arrow = _ARROWS.get(edge.kind, "-->")
        lines.append(f"    {ids[edge.source]} {arrow}" + (f'|"{text}"|' if text else "") + f" {ids[edge.target]}")
    lost = [ids[node.id] for node in made.nodes.values() if node.note]
    if lost:
        lines += ["    classDef lost stroke:#d33,stroke-dasharray:4 3", f"    class {','.join(lost)} lost"]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Write what Mermaid, or the HTML it makes, would take for its own as a character code."""
    return "".join(each if each.isalnum() or each in " .,-_*:/()=!+" else f"#{ord(each)};" for each in text)


# The terminal


def _print_tree(made: Wiring) -> None:
    from rich.console import Console  # lazy: 50 ms that only a picture needs
    from rich.tree import Tree

    tree = Tree(_text(made.team, "bold"), guide_style="dim")
    for node in made.nodes.values():
        if node.kind == "agent":
            branch = tree.add(_text(node.name, "bold cyan"))
            for line in [*_lines(made, node)]:
                branch.add(line)
    Console(highlight=False).print(tree)


def _lines(made: Wiring, agent: Node) -> Iterator[Text]:
    for edge in made.edges:
        if edge.target == agent.id and edge.kind in ("wakes", "waits"):
            source = made.nodes[edge.source]
            yield _line(
                "on" if edge.kind == "wakes" else "waits for", source, edge.label, _names(made, source, to=True), "from"
            )
        elif edge.source == agent.id and edge.kind in ("emits", "publishes"):
            target = made.nodes[edge.target]
            yield _line(edge.kind, target, edge.label, _names(made, target, to=False), "to")
        elif edge.source == agent.id:
            yield _line(edge.kind, made.nodes[edge.target], edge.label, "", "")
        elif edge.target == agent.id and edge.kind == "reads":
            yield _line("reads", made.nodes[edge.source], edge.label, "", "")


def _names(made: Wiring, node: Node, *, to: bool) -> str:
    """Return who sends what a node stands for, or who is woken by it."""
    ends = [edge.source for edge in made.edges if edge.target == node.id] if to else []
    ends += (
        [] if to else [edge.target for edge in made.edges if edge.source == node.id and edge.kind in ("wakes", "waits")]
    )
    return ", ".join(dict.fromkeys(made.nodes[end].name for end in ends))


def _line(verb: str, node: Node, label: str, others: str, word: str) -> Text:
    kind = {"topic": "message ", "trigger": "", "key": "key "}.get(node.kind, "") if verb == "on" else ""
    line = _text(f"{verb:10}", "dim").append(clean(f"{kind}{node.name}"))
    if label:
        line.append(clean(f"  ({label})"), "dim")
    if others:
        line.append(f"  {word} {others}", "dim")
    if node.note:
        line.append(f"  {node.note}", "yellow")
    return line


def _text(text: str, style: str) -> Text:
    from rich.text import Text

    return Text(clean(text), style)
