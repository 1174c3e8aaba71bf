"""Plugins: what each hook brings, and what happens to those that are broken or in each other's way.

The plugins are real distributions: a module and its metadata, in a folder on the import path.
"""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from natterjack import hookspecs
from natterjack.components import Trigger
from natterjack.errors import PluginError
from natterjack.plugins import DISABLED, HOOKS, BrokenPlugin, LoadedPlugin, Plugins
from natterjack.testing.command import Cli

HEAD = "from natterjack.components import *\nfrom natterjack import Middleware, ToolServer, hookimpl\n"
TRIGGER = """
class Tick(Trigger):
    "Fires at once."
    name = "tick"
    async def run(self, ctx): await ctx.fire()

@hookimpl
def natterjack_triggers(): return [Tick]
"""
GUARD = """
class Closed(Guard):
    "Refuses all."
    name = "closed"
    def refuse(self, principal, verb, what): return "it is closed"

@hookimpl
def natterjack_guards(): return [Closed]
"""

Install = Callable[..., None]


def write_distribution(folder: Path, name: str, source: str, entry: str, version: str = "1.2") -> None:
    """Write a distribution of one module, with one entry point in our group."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(HEAD + source)
    metadata = folder / f"{module}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[natterjack]\n{entry} = {module}\n")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution for this test: `install("natterjack-tick", source, "tick")`."""
    before = set(sys.modules)
    monkeypatch.delenv(DISABLED, raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, source: str, entry: str | None = None) -> None:
        write_distribution(tmp_path, name, source, entry or name.removeprefix("natterjack-"))
        importlib.invalidate_caches()

    yield install
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def loaded(plugins: Plugins, name: str) -> LoadedPlugin:
    (found,) = [plugin for plugin in plugins.loaded if plugin.name == name]
    return found


def broken(plugins: Plugins, name: str) -> BrokenPlugin:
    assert name not in [plugin.name for plugin in plugins.loaded]
    (found,) = [plugin for plugin in plugins.broken if plugin.name == name]
    return found


# One test for each hook


def test_hook_agents(install: Install) -> None:
    install(
        "natterjack-parrot",
        """
class Parrot(Agent):
    "Says the same."
    name = "parrot"
    async def answer(self, question, ctx): return question

@hookimpl
def natterjack_agents(): return [Parrot]
""",
    )
    plugins = Plugins.load()
    assert loaded(plugins, "parrot") == LoadedPlugin("parrot", "natterjack-parrot", "1.2", {"agent": ("parrot",)})
    assert plugins.agent("parrot").create({}).name == "parrot"


def test_hook_triggers(install: Install) -> None:
    install("natterjack-tick", TRIGGER)
    plugins = Plugins.load()
    assert loaded(plugins, "tick").brings == {"trigger": ("tick",)}
    assert plugins.trigger("tick") is plugins.triggers["tick"]


def test_hook_tool_servers(install: Install) -> None:
    install(
        "natterjack-tools",
        """
class Tools(ToolServer):
    "Serves nothing."
    name = "nothing"
    async def serve(self, ctx): pass

@hookimpl
def natterjack_tool_servers(): return [Tools]
""",
    )
    assert Plugins.load().tool_servers["nothing"].__name__ == "Tools"


def test_hook_guards(install: Install) -> None:
    install("natterjack-closed", GUARD)
    assert Plugins.load().guards["closed"].create({}).refuse("a", "write", "b") == "it is closed"


def test_hook_journals(install: Install) -> None:
    install(
        "natterjack-log",
        """
class LogJournal(Journal):
    "Logs."
    name = "log"
    async def write(self, entry): print(entry)

@hookimpl
def natterjack_journals(): return (LogJournal,)
""",
    )
    assert Plugins.load().journal("log").__name__ == "LogJournal"


def test_hook_peers(install: Install) -> None:
    install(
        "natterjack-gopher",
        """
class Gopher(PeerScheme):
    "Asks gophers."
    name = "gopher"
    async def ask(self, address, question, timeout): return Answer("")

@hookimpl
def natterjack_peers(): return [Gopher]
""",
    )
    assert Plugins.load().peer("gopher").__name__ == "Gopher"


def test_hook_middleware(install: Install) -> None:
    install(
        "natterjack-timing",
        """
class Timing(Middleware):
    "Measures."
    name = "timing"

@hookimpl
def natterjack_middleware(): return [Timing]
""",
    )
    assert Plugins.load().middleware["timing"].__name__ == "Timing"


def test_hook_commands(install: Install) -> None:
    install(
        "natterjack-extra",
        """
import typer
app = typer.Typer(name="extra")

@hookimpl
def natterjack_commands(): return [app]
""",
    )
    plugins = Plugins.load()
    assert "extra" in [app.info.name for app in plugins.commands]
    assert loaded(plugins, "extra").brings == {"command": ("extra",)}


def test_every_hook_has_a_test() -> None:
    hooks = {name.removeprefix("natterjack_") for name in vars(hookspecs) if name.startswith("natterjack_")}
    assert {name for name in hooks if f"test_hook_{name}" not in globals()} == set()


# Broken plugins


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import sys; sys.exit('gone')", "SystemExit: gone"),
        ("def f(:", "SyntaxError: invalid syntax (natterjack_bad.py, line 3)"),
        ("", "natterjack_bad has no hooks; mark its functions with @hookimpl"),
        (
            TRIGGER.replace("triggers", "trigers"),
            "there is no hook 'natterjack_trigers'. Did you mean 'natterjack_triggers'?",
        ),
        (
            TRIGGER.replace("def natterjack", "async def natterjack"),
            "natterjack_triggers is async; hooks are plain functions, and only the objects they bring are async",
        ),
        (TRIGGER.replace("return [Tick]", "yield [Tick]"), "natterjack_triggers returned <generator object"),
        (TRIGGER.replace("return [Tick]", "[Tick]"), "natterjack_triggers returned None; return a list"),
        (
            TRIGGER.replace("[Tick]", "Tick"),
            "natterjack_triggers returned <class 'natterjack_bad.Tick'>; return a list",
        ),
        (TRIGGER.replace("[Tick]", "1 / 0"), "ZeroDivisionError: division by zero"),
        (TRIGGER.replace("triggers()", "triggers(config)"), "PluginValidationError: Plugin 'bad' for hook"),
        (TRIGGER.replace("[Tick]", "[Tick()]"), "object at 0x"),
        (TRIGGER.replace("[Tick]", "[Agent]"), "is no class derived from natterjack.Trigger"),
        (TRIGGER.replace("[Tick]", "[Tick, Tick]"), "natterjack_triggers returned two of the name 'tick'"),
        (TRIGGER.replace('name = "tick"', ""), "Tick has no name; add `name: ClassVar = 'tick'`"),
        (TRIGGER.replace('"tick"', '"a tick"'), "'a tick' is no valid name of a trigger (Tick.name)"),
        (TRIGGER.replace('"tick"', "7"), "7 is no valid name of a trigger (Tick.name)"),
        (TRIGGER.replace('"Fires at once."', ""), "Tick has no docstring; say what it does, with an example"),
        (TRIGGER.replace("async def run", "Config = dict\n    async def run"), "Tick.Config is no pydantic model"),
        (TRIGGER.replace("def run", "def walk"), "Tick does not implement run"),
        (
            "import typer\n@hookimpl\ndef natterjack_commands(): return [typer.Typer()]",
            "is no typer app with a name; write `typer.Typer(name=…)`",
        ),
    ],
)
def test_a_broken_plugin_is_reported_and_the_others_load(install: Install, source: str, cause: str) -> None:
    install("natterjack-bad", source)
    install("natterjack-closed", GUARD)
    plugins = Plugins.load()
    found = broken(plugins, "bad")
    assert cause in found.cause
    assert "\n" not in found.cause
    assert (found.distribution, found.version) == ("natterjack-bad", "1.2")
    assert loaded(plugins, "closed").brings == {"guard": ("closed",)}
    assert "tick" not in plugins.triggers


def test_a_plugin_that_is_broken_in_one_part_brings_nothing(install: Install) -> None:
    install("natterjack-half", f"{TRIGGER}\n{GUARD.replace('[Closed]', '[Open]')}")
    plugins = Plugins.load()
    assert broken(plugins, "half").cause == "NameError: name 'Open' is not defined"
    assert "tick" not in plugins.triggers


def test_a_broken_plugin_is_logged(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("natterjack-bad", "1 / 0")
    with caplog.at_level(logging.WARNING, "natterjack.plugins"):
        Plugins.load()
    line = "the plugin 'bad' of natterjack-bad 1.2 is broken: ZeroDivisionError: division by zero"
    assert line in caplog.messages


def test_a_hook_of_a_newer_kernel_may_be_optional(install: Install) -> None:
    install("natterjack-new", f"{TRIGGER}\n@hookimpl(optionalhook=True)\ndef natterjack_later(): return []\n")
    assert loaded(Plugins.load(), "new").brings == {"trigger": ("tick",)}


# Deprecated hooks


@pytest.fixture
def old_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel in which a hook goes out of use: another name for that of triggers."""

    def natterjack_wakers() -> list[type[Trigger]]:
        """Kinds of trigger, as they were called."""
        return []

    text = "natterjack_wakers goes with Natterjack 0.3; bring triggers by natterjack_triggers"
    marked = hookspecs.hookspec(natterjack_wakers, warn_on_impl=DeprecationWarning(text))
    monkeypatch.setattr(hookspecs, "natterjack_wakers", marked, raising=False)
    monkeypatch.setitem(HOOKS, "natterjack_wakers", ("trigger", Trigger))


OLD = TRIGGER.replace("natterjack_triggers", "natterjack_wakers")


@pytest.mark.usefixtures("old_hook")
def test_a_deprecated_hook_works_and_warns_once(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("natterjack-aged", OLD)
    with caplog.at_level(logging.WARNING, "natterjack.plugins"):
        plugins = [Plugins.load() for _ in range(3)][-1]
    text = "natterjack_wakers goes with Natterjack 0.3; bring triggers by natterjack_triggers"
    assert caplog.messages == [f"the plugin 'aged' of natterjack-aged 1.2: {text}"]
    assert plugins.broken == []
    assert loaded(plugins, "aged").brings == {"trigger": ("tick",)}
    assert loaded(plugins, "aged").warnings == (text,)
    assert plugins.trigger("tick").__name__ == "Tick"


@pytest.mark.usefixtures("old_hook")
def test_a_deprecated_hook_is_shown_in_the_list(install: Install, quick: Cli) -> None:
    install("natterjack-shown", OLD)
    (row,) = [line for line in quick.text("plugins", "list").splitlines() if line.startswith("shown")]
    assert "deprecated  trigger: tick; natterjack_wakers goes with Natterjack 0.3" in row
    (entry,) = [each for each in quick.json("plugins", "list")["loaded"] if each["name"] == "shown"]
    assert entry["warnings"] == ["natterjack_wakers goes with Natterjack 0.3; bring triggers by natterjack_triggers"]


def test_a_plugin_that_uses_nothing_deprecated_has_no_warnings(install: Install) -> None:
    install("natterjack-tick", TRIGGER)
    assert [plugin.warnings for plugin in Plugins.load().loaded if plugin.name in ("tick", "natterjack")] == [(), ()]


# Two that claim one name


def test_two_plugins_of_one_name_are_refused(install: Install) -> None:
    install("natterjack-tick", TRIGGER, "tick")
    install("someones-tick", TRIGGER.replace('"tick"', '"tock"'), "tick")
    with pytest.raises(PluginError, match="natterjack-tick and someones-tick both install a plugin named 'tick'"):
        Plugins.load()


def test_nobody_takes_the_name_of_the_built_in_components(install: Install) -> None:
    install("someones-own", TRIGGER, "natterjack")
    with pytest.raises(PluginError, match="natterjack and someones-own both install a plugin named 'natterjack'"):
        Plugins.load()


def test_two_components_of_one_kind_and_name_are_refused(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("natterjack-tick", TRIGGER)
    install("someones-clock", TRIGGER)
    with pytest.raises(PluginError, match="both bring a trigger 'tick'") as caught:
        Plugins.load()
    assert "natterjack-tick" in str(caught.value)
    assert "someones-clock" in str(caught.value)
    monkeypatch.setenv(DISABLED, "tick")  # what the message says
    assert loaded(Plugins.load(), "someones-clock").brings == {"trigger": ("tick",)}


def test_one_name_in_two_kinds_is_fine(install: Install) -> None:
    install("natterjack-both", f"{TRIGGER}\n{GUARD.replace('closed', 'tick')}")
    assert loaded(Plugins.load(), "both").brings == {"trigger": ("tick",), "guard": ("tick",)}


# Disabled, lazy, in order


def test_disabled_plugins_are_not_even_imported(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("natterjack-bad", "1 / 0")
    install("natterjack-tick", TRIGGER)
    install("natterjack-closed", GUARD)
    monkeypatch.setenv(DISABLED, "bad, tick")
    plugins = Plugins.load()
    names = {plugin.name for plugin in plugins.loaded} | {plugin.name for plugin in plugins.broken}
    assert names & {"bad", "tick"} == set()
    assert loaded(plugins, "closed").brings == {"guard": ("closed",)}
    assert "natterjack_tick" not in sys.modules


def test_plugins_are_loaded_by_name_and_each_hook_is_called_once(install: Install) -> None:
    install("aa-last", TRIGGER.replace('"tick"', '"last"'), "zz")
    install("zz-first", f"calls = []\n{GUARD.replace('return [Closed]', 'calls.append(1); return [Closed]')}", "aa")
    plugins = Plugins.load()
    own = [plugin.name for plugin in plugins.loaded if plugin.name != "natterjack"]
    assert own == sorted(own)
    assert own[0] == "aa"
    assert own[-1] == "zz"
    assert sys.modules["zz_first"].calls == [1]


def test_importing_natterjack_loads_no_plugin(tmp_path: Path) -> None:
    write_distribution(tmp_path, "natterjack-tick", TRIGGER, "tick")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import natterjack; "
        "assert 'natterjack_tick' not in sys.modules; "
        "from natterjack.plugins import Plugins; assert 'natterjack_tick' not in sys.modules; "
        "Plugins.load(); assert 'natterjack_tick' in sys.modules; print('lazy')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "lazy", done.stderr


# What is missing


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda plugins: plugins.agent("zzz"), "kind of agent"),
        (lambda plugins: plugins.trigger("zzz"), "trigger"),
        (lambda plugins: plugins.journal("zzz"), "journal"),
        (lambda plugins: plugins.peer("zzz"), "address scheme"),
    ],
)
def test_what_is_missing_may_be_installed(install: Install, ask: Callable[[Plugins], object], what: str) -> None:
    install("natterjack-bad", "1 / 0")
    with pytest.raises(PluginError) as caught:
        ask(Plugins.load())
    message = str(caught.value)
    assert f"no installed plugin brings the {what} 'zzz'. Perhaps" in message
    assert "`natterjack install natterjack-zzz`" in message
    assert "Note that the plugin 'bad' of natterjack-bad 1.2 is broken: ZeroDivisionError" in message


def test_what_is_misspelt_is_near_to_something(install: Install) -> None:
    install("natterjack-tick", TRIGGER)
    with pytest.raises(PluginError, match=r"brings the trigger 'tikc'\. Did you mean 'tick'\?"):
        Plugins.load().trigger("tikc")


def test_the_permission_guard_is_a_plugin_like_any() -> None:
    brought = {"guard": ("permissions",), "command": ("secure", "explain", "credentials", "callout")}
    assert loaded(Plugins.load(), "permissions").brings == brought
