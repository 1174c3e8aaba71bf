"""The dependency rule: import-linter's contracts for the kernel, and the same idea for plugins."""

import ast
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import natterjack

ROOT = Path(__file__).parent.parent
KERNEL = ROOT / "core" / "natterjack"
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
OUTER = ("cli", "demo", "testing")  # they use the kernel as anyone does
PUBLIC = {"natterjack", "natterjack.testing", "natterjack.testing.contracts"}


def imports(source: str) -> Iterator[tuple[str, str]]:
    """Each import as (module, name), lazy ones and those for types included; name is "" for `import module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.module or "", alias.name) for alias in node.names)


def fault(own: str, module: str, name: str) -> str | None:
    """Why the plugin whose import package is `own` may not import this, or None."""
    top = module.partition(".")[0]
    if top == "natterjack" and module not in PUBLIC:
        return f"{module} is private to the kernel"
    if module == "natterjack" and name and name != "testing" and name not in vars(natterjack).get("__all__", ()):
        return f"{name} is not among the public names of natterjack"
    if top.startswith("natterjack_") and top != own:
        return f"{top} is another plugin"
    if top == "nats":
        return "only the kernel's bus imports nats"
    return None


def test_kernel_contracts_are_kept() -> None:
    command = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run(
        [sys.executable, command, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_kernel_imports_no_plugin() -> None:
    graph = grimp.build_graph("natterjack", include_external_packages=True, cache_dir=None)
    found = {
        (importer, module)
        for module in graph.modules
        if module.startswith("natterjack_")
        for importer in graph.find_modules_that_directly_import(module)
    }
    assert found == set()


def test_kernel_modules_do_not_import_their_own_front_door() -> None:
    graph = grimp.build_graph("natterjack", cache_dir=None)
    inner = {
        importer
        for importer in graph.find_modules_that_directly_import("natterjack")
        if not importer.startswith(tuple(f"natterjack.{name}" for name in OUTER))
    }
    assert inner == set(), "import the module that has the name, not the package: that is a cycle"


def test_only_the_loader_knows_the_plugin_manager() -> None:
    users = {
        path.relative_to(KERNEL).as_posix() for path in KERNEL.rglob("*.py") if "PluginManager" in path.read_text()
    }
    assert users == {"plugins.py"}


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda path: path.name)
def test_plugin_imports_only_public_names(folder: Path) -> None:
    own = f"natterjack_{folder.name}"
    faults = [
        f"{path.relative_to(ROOT)}: {reason}"
        for path in sorted(folder.rglob("*.py"))
        for module, name in imports(path.read_text(encoding="utf-8"))
        if (reason := fault(own, module, name))
    ]
    assert faults == []


@pytest.mark.parametrize(
    "source",
    [
        "import natterjack.bus",
        "from natterjack.bus import Bus",
        "from natterjack import bus",
        "from natterjack.testing.plugin import server",
        "import natterjack_other",
        "def lazy():\n    from natterjack_other import thing",
        "import nats.errors",
    ],
)
def test_what_a_plugin_may_not_import(source: str) -> None:
    assert [reason for module, name in imports(source) if (reason := fault("natterjack_mine", module, name))]


@pytest.mark.parametrize(
    "source",
    [
        "import natterjack",
        "from natterjack import testing",
        "from natterjack.testing import until",
        "from natterjack_mine.rules import Rule",
        "from . import rules",
        "import natserver",
    ],
)
def test_what_a_plugin_may_import(source: str) -> None:
    assert [reason for module, name in imports(source) if (reason := fault("natterjack_mine", module, name))] == []
