"""core/HOOKS.md: the reference that is made from the code is complete and current."""

import inspect
from pathlib import Path

import pytest

import natterjack
from natterjack import hookspecs
from natterjack.cli.reference import BEGIN, COMPONENTS, END, GIVEN, hooks, reference, updated
from natterjack.components import Component
from natterjack.middleware import Middleware
from natterjack.testing.command import Cli
from natterjack.toolserver import ToolServer

PAGE = Path(__file__).parents[1] / "core" / "HOOKS.md"


def test_page_is_current() -> None:
    text = PAGE.read_text()
    assert updated(text) == text, "run `natterjack plugins reference --into core/HOOKS.md`"


def test_every_hook_is_there_with_its_arguments() -> None:
    told = reference()
    assert {name for name in vars(hookspecs) if name.startswith("natterjack_")} == set(hooks())
    for name, spec in hooks().items():
        arguments = ", ".join(inspect.signature(spec).parameters)
        assert f"- `{name}({arguments}) -> {spec.__annotations__['return']}`: " in told


def test_every_component_class_is_there_with_its_methods() -> None:
    told = reference()
    public = {value for value in vars(natterjack).values() if inspect.isclass(value) and issubclass(value, Component)}
    modules = {cls.__module__ for cls in (Component, Middleware, ToolServer)}
    bases = {cls for cls in public if cls.__module__ in modules}
    assert bases == set(COMPONENTS)
    for cls in (*COMPONENTS, *GIVEN):
        section = told.partition(f"\n### {cls.__name__}")[2].partition("\n### ")[0]
        assert section, cls
        methods = [name for name, value in vars(cls).items() if name[0] != "_" and inspect.isroutine(value)]
        assert [name for name in methods if f"{name}(" not in section] == []


def test_what_stands_there_says_something() -> None:
    lines = [line for line in reference().splitlines() if line.startswith("- `")]
    assert len(lines) > 60
    assert [line for line in lines if line.rstrip().endswith(":")] == []
    assert (
        "- `await fire(data: Any = None, *, type: str | None = None, id: str | None = None, lasting: bool = False)"
        in reference()
    )
    assert "- `refuse(principal: str, verb: Verb, what: str) -> str | None`: Return why not" in reference()


def test_a_deprecated_hook_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    @hookspecs.hookspec(warn_on_impl=DeprecationWarning("goes with 0.3"))
    def natterjack_wakers() -> "list[str]":
        """Kinds of trigger."""
        return []

    monkeypatch.setattr(hookspecs, "natterjack_wakers", natterjack_wakers, raising=False)
    assert "- `natterjack_wakers() -> list[str]`: Kinds of trigger. Deprecated: goes with 0.3" in reference()


def test_command_prints_it_or_writes_it(quick: Cli) -> None:
    assert quick.text("plugins", "reference") == reference().strip()
    quick.write(page_md=f"before\n{BEGIN}\nold\n{END}\nafter\n")
    quick.run("plugins", "reference", "--into", "page.md")
    assert (quick.folder / "page.md").read_text() == f"before\n{BEGIN}\n\n{reference()}\n{END}\nafter\n"
    quick.write(page_md="no markers")
    assert "has no lines" in quick.error("plugins", "reference", "--into", "page.md", code=1)
