"""The packages that `plugins new` writes: the templates beside this module, filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from natterjack.components import Kind
from natterjack.errors import InvalidNameError
from natterjack.subjects import check_name

_TEMPLATES: Final = Path(__file__).parent / "templates"
_GAP: Final = re.compile(r"\{\{(\w+)\}\}")
_PREFIX: Final = "natterjack-"


@dataclass(frozen=True, slots=True)
class Sort:
    """What a template brings.

    Attributes:
        kind: The kind of its component.
        title: Ends the name of the class; empty where there is none.
        hook: Brings it.
        does: What it does, as it stands.
        use: How it is used where no team file names it.
    """

    kind: Kind
    title: str
    hook: str
    does: str
    use: str = ""


SORTS: Final[Mapping[str, Sort]] = {
    "trigger": Sort("trigger", "Trigger", "natterjack_triggers", "A trigger that fires every so many seconds"),
    "agent": Sort("agent", "Agent", "natterjack_agents", "An agent that says again what it hears"),
    "guard": Sort("guard", "Guard", "natterjack_guards", "A guard that lets nobody touch what is secret"),
    "journal": Sort("journal", "Journal", "natterjack_journals", "A journal in one file of JSON lines"),
    "tool-server": Sort(
        "tool server",
        "ToolServer",
        "natterjack_tool_servers",
        "A tool server that returns what it is sent in capitals",
        '    [tools.{name}]\n    kind = "{name}"',
    ),
    "peer": Sort("peer", "Peers", "natterjack_peers", "An address scheme for agents behind TCP ports"),
    "middleware": Sort(
        "middleware", "Middleware", "natterjack_middleware", "Middleware that logs how long events take"
    ),
    "command": Sort(
        "command", "", "natterjack_commands", "A command that prints who runs", "    natterjack {name} --help"
    ),
}
"""By what `--kind` calls them."""


def check_plugin_name(name: str) -> str:
    """Return a plugin's name without `natterjack-`.

    Raises:
        InvalidNameError: It cannot be the name of a component, a package and a class.
    """
    short = check_name(name.removeprefix(_PREFIX), "plugin name")
    if not re.fullmatch(r"[a-z]+([-_]?[a-z0-9]+)*", short):
        what, rule = "plugin name", "begin with a letter, and put single '-' between words, e.g. 'rain-gauge'"
        raise InvalidNameError(what, name, rule)
    return short


def package_files(name: str, kind: str) -> dict[str, str]:
    """Return the files of a new plugin by their paths, relative to its folder.

    Args:
        name: Its name, checked.
        kind: A key of `SORTS`.
    """
    sort = SORTS[kind]
    words = _words(name, sort)
    module, part = words["module"], words["part"]
    files = {
        "pyproject.toml": _filled("pyproject.toml", words),
        f"{module}/__init__.py": _filled("package.py", words),
        f"{module}/{part}.py": _filled(f"{kind}/component.py", words),
        f"{module}/py.typed": "",
        f"tests/test_{words['identifier']}.py": _filled(f"{kind}/test.py", words),
    }
    if (_TEMPLATES / kind / "team.toml.tmpl").exists():
        team = files["example/team.toml"] = _filled(f"{kind}/team.toml", words)
        if "agents:" in team:
            files["example/agents.py"] = _filled("agents.py", words)
        words["use"] = f"```toml\n{team}```\n\n`natterjack up example/team.toml` runs this team."
    files["README.md"] = _filled("README.md", words)
    return files


def _words(name: str, sort: Sort) -> dict[str, str]:
    """Return what stands for each gap of a template."""
    identifier = name.replace("-", "_")
    title = "".join(part.capitalize() for part in identifier.split("_"))
    cls = title if title.endswith(sort.title) and title != sort.title else f"{title}{sort.title}"
    exports = sorted([cls if sort.title else "app", sort.hook])
    return {
        "name": name,
        "identifier": identifier,
        "class": cls,
        "distribution": f"{_PREFIX}{identifier.replace('_', '-')}",
        "module": f"natterjack_{identifier}",
        "part": sort.kind.replace(" ", "_"),
        "summary": f"{sort.does}.",
        "exports": ",\n    ".join(exports),
        "quoted": ",\n    ".join(f'"{export}"' for export in exports),
        "use": sort.use.format(name=name),
    }


def _filled(template: str, words: Mapping[str, str]) -> str:
    text = (_TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8")
    return _GAP.sub(lambda gap: words[gap[1]], text)
