"""Taking over a team's changed file or code while it runs; a mistake changes nothing.

`up --reload` renews the agents concerned when files change, and every `up` of a team file renews all on SIGHUP.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path

from natterjack.cli.exits import CommandError, ExitCode
from natterjack.cli.supervisor import Supervisor
from natterjack.errors import NatterjackError
from natterjack.plugins import Plugins
from natterjack.team import Team, check_team
from natterjack.team.file import read_team

Tell = Callable[[str], None]
_TICK = 500
"""Milliseconds after which the watcher speaks up though nothing changed; the first time it tells that it watches."""


class Reloader:
    """Watches a team's file and code, and renews the agents concerned.

    Args:
        path: The team file.
        team: What runs.
        plugins: What is installed.
        supervisor: Runs it.
        provision: Provisions a team whose file has changed.
        tell: Prints one line.
    """

    def __init__(
        self,
        path: Path,
        team: Team,
        plugins: Plugins,
        supervisor: Supervisor,
        provision: Callable[[Team], Awaitable[object]],
        tell: Tell,
    ) -> None:
        self._path, self._team, self._plugins = path.resolve(), team, plugins
        self._supervisor, self._provision, self._tell = supervisor, provision, tell
        self._lock = asyncio.Lock()

    async def run(self, ready: Callable[[], None]) -> None:
        """Watch until cancelled; say `ready` once no change can be missed."""
        from watchfiles import DefaultFilter, awatch  # of the extra `reload`

        wanted = DefaultFilter()

        def concerns(change: object, path: str) -> bool:
            return (path.endswith(".py") or Path(path) == self._path) and wanted(change, path)  # type: ignore[arg-type]

        folders = sorted({self._path.parent, *_folders(self._team, self._path.parent)})
        watching = False
        async for changes in awatch(*folders, watch_filter=concerns, yield_on_timeout=True, rust_timeout=_TICK):
            if not watching:
                watching = True
                ready()
            if changes:
                await self.apply({Path(path) for _, path in changes})

    async def renew_on(self, asked: asyncio.Event) -> None:
        """Take over the team file, and renew all agents, each time the event is set, until cancelled."""
        while True:
            await asked.wait()
            asked.clear()
            self._tell("asked by SIGHUP: every agent is renewed, one replica after another")
            await self.apply({self._path}, everything=True)

    async def apply(self, changed: set[Path], *, everything: bool = False) -> None:
        """Take over what these files say now, or tell why not; `everything` renews agents that they do not concern."""
        async with self._lock:
            began, team = time.monotonic(), self._team
            try:
                team, renewed = await self._read(changed)
            except NatterjackError as error:
                self._tell(f"{str(error).removesuffix('.')}; what runs goes on as it was")
                return
            if everything or _common(team) != _common(self._team):  # each agent's guard knows the rules of all
                renewed |= team.processes.keys()
            provisioned = ["provisioned"] if team != self._team else []
            if done := provisioned + await self._update(team, renewed):
                what = "done" if everything else f"{', '.join(sorted(path.name for path in changed))} changed"
                self._tell(f"{what}: {', '.join(done)} in {time.monotonic() - began:.1f} s")

    async def _read(self, changed: set[Path]) -> tuple[Team, set[str]]:
        """Return the team as it shall be, provisioned, and the agents whose code has changed.

        Raises:
            NatterjackError: Something is wrong with it.
        """
        team = self._team
        if self._path in changed:
            team = read_team(self._path)
            check_team(team, self._plugins)
        concerned = self._concerned(changed)
        for path in changed & {file for files in concerned.values() for file in files}:
            _check_syntax(path)
        if team != self._team:
            await self._provision(team)
        return team, {name for name, files in concerned.items() if files & changed}

    async def _update(self, team: Team, concerned: Iterable[str]) -> list[str]:
        """Bring what runs to what is wanted, and return what was done."""
        before, self._team = self._team, team
        self._supervisor.team = team
        todo = {
            name: ("removed", self._supervisor.scale(name, 0))
            for name in before.processes
            if name not in team.processes
        }
        for name, spec in team.processes.items():
            running = sum(child.agent == name for child in self._supervisor.children)
            old = before.processes.get(name)
            if not running:
                todo[name] = ("started", self._supervisor.scale(name, spec.replicas))
            elif name in concerned or old is None or old != spec.model_copy(update={"replicas": old.replicas}):
                todo[name] = ("restarted", self._renew(name, spec.replicas))
            elif running != spec.replicas:
                todo[name] = (f"now {spec.replicas} times", self._supervisor.scale(name, spec.replicas))
        results = await asyncio.gather(*(work for _, work in todo.values()), return_exceptions=True)
        done = []
        for (name, (what, _)), result in zip(todo.items(), results, strict=True):
            if isinstance(result, NatterjackError):
                self._tell(f"{result}\n  {name} goes on as it was")
            elif isinstance(result, BaseException):
                raise result
            else:
                done.append(f"{name} {what}")
        return done

    async def _renew(self, name: str, replicas: int) -> None:
        await self._supervisor.renew(name)
        await self._supervisor.scale(name, replicas)

    def _concerned(self, changed: set[Path]) -> dict[str, set[Path]]:
        """Return the files of each agent's code, if any of the changed ones is code."""
        if not any(path.suffix == ".py" for path in changed):
            return {}
        roots = [self._path.parent, *_folders(self._team, self._path.parent)]
        return {
            name: _sources(spec.kind.partition(":")[0], roots)
            for name, spec in self._team.agents.items()
            if spec.imported
        }


def _common(team: Team) -> object:
    """Return what the processes of all agents take from a team when they start."""
    rules = {(rule.principal, rule.verb, rule.pattern) for rule in team.rules()}
    return team.name, team.tools, rules, team.governed()


def check_installed() -> None:
    """Raise `CommandError` where the library is missing that tells of changed files."""
    if importlib.util.find_spec("watchfiles") is None:
        msg = "--reload needs watchfiles; install it with `pip install 'natterjack[reload]'`"
        raise CommandError(msg, ExitCode.USAGE)


def _folders(team: Team, beside: Path) -> Iterator[Path]:
    """Yield the roots from which agents are imported, beside the team's folder; installed packages do not change."""
    for package in {spec.kind.partition(":")[0].partition(".")[0] for spec in team.agents.values() if spec.imported}:
        if (beside / package).is_dir() or (beside / f"{package}.py").is_file():
            continue
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin and "site-packages" not in spec.origin:
            root = Path(spec.origin).resolve().parent
            yield root.parent if spec.submodule_search_locations else root


def _sources(module: str, roots: Iterable[Path]) -> set[Path]:
    """Return the files below the roots that a module consists of, and imports."""
    found, rest = set[Path](), [module]
    while rest:
        for path in _files(rest.pop(), roots):
            if path not in found:
                found.add(path)
                rest += _imports(path, roots)
    return found


def _files(module: str, roots: Iterable[Path]) -> Iterator[Path]:
    """Yield the file of a module, and those of the packages around it, which are imported with it."""
    parts = module.split(".")
    for size in range(1, len(parts) + 1):
        for root in roots:
            place = root.joinpath(*parts[:size])
            yield from (path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file())


def _imports(path: Path, roots: Iterable[Path]) -> Iterator[str]:
    """Yield the modules that a file imports; of `from a import b` both `a` and `a.b`, which may be one."""
    try:
        nodes = [*ast.walk(ast.parse(path.read_bytes()))]
    except (SyntaxError, ValueError, OSError):  # told when it is the one that changed
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (_package(path, node.level, roots), node.module)))
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _package(path: Path, level: int, roots: Iterable[Path]) -> str:
    """Return the package that a relative import begins at."""
    if not level:
        return ""
    folder = path.parents[level - 1]
    for root in roots:
        if folder.is_relative_to(root):
            return ".".join(folder.relative_to(root).parts)
    return ""


def _check_syntax(path: Path) -> None:
    try:
        compile(path.read_bytes(), str(path), "exec")
    except FileNotFoundError:
        return  # removed: whoever needs it says so when it starts
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        msg = f"{path.name}{line}: {type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
        raise CommandError(msg) from error
