"""The loader of plugins: what is installed, what each one brings, and why one is broken.

The built-in components come through the same hooks, from `natterjack.builtin`. Every plugin is registered with a
`PluginManager` of its own: what it brings is then known to be its, and a broken one leaves nothing behind.
"""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points, version
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Self

from pluggy import HookCaller, PluginManager
from pydantic import BaseModel

from natterjack import hookspecs
from natterjack.components import Agent, Component, Guard, Journal, Kind, PeerScheme, Trigger
from natterjack.errors import PluginError, nearest
from natterjack.middleware import Middleware
from natterjack.subjects import check_name
from natterjack.toolserver import ToolServer

if TYPE_CHECKING:
    import typer

log = logging.getLogger("natterjack.plugins")

GROUP: Final = "natterjack"
"""Entry point group of plugins."""
DISABLED: Final = "NATTERJACK_DISABLED_PLUGINS"
"""Environment variable: names of plugins not to load, joined by commas."""

# By name, because importing the built-in components imports most of the kernel.
_BUILT_IN: Final = EntryPoint("natterjack", "natterjack.builtin.plugin", GROUP)

HOOKS: Final[dict[str, tuple[Kind, type[Component] | None]]] = {
    "natterjack_agents": ("agent", Agent),
    "natterjack_triggers": ("trigger", Trigger),
    "natterjack_tool_servers": ("tool server", ToolServer),
    "natterjack_guards": ("guard", Guard),
    "natterjack_journals": ("journal", Journal),
    "natterjack_peers": ("peer", PeerScheme),
    "natterjack_middleware": ("middleware", Middleware),
    "natterjack_commands": ("command", None),
}
"""Each hook: the kind of what it brings, and its class; None: typer apps."""


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """A plugin that works.

    Attributes:
        name: Name of its entry point.
        distribution: What `pip` calls it.
        version: Of the distribution.
        brings: Names of its components, by kind; kinds of which it brings none are left out.
        warnings: What it uses that a later kernel will not have.
    """

    name: str
    distribution: str
    version: str
    brings: Mapping[Kind, tuple[str, ...]]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin that is installed and cannot be used; nothing of it is.

    Attributes:
        name: Name of its entry point.
        distribution: What `pip` calls it.
        version: Of the distribution.
        cause: Why, in one line.
    """

    name: str
    distribution: str
    version: str
    cause: str

    def __str__(self) -> str:
        return f"the plugin {self.name!r} of {self.distribution} {self.version} is broken: {self.cause}"


class Plugins:
    """All installed plugins and what they bring, by kind and name.

    Attributes:
        loaded: The plugins that work, the built-in components first, then by name.
        broken: The others.
    """

    def __init__(self) -> None:
        self.loaded: list[LoadedPlugin] = []
        self.broken: list[BrokenPlugin] = []
        self._found: dict[Kind, dict[str, Any]] = {kind: {} for kind, _ in HOOKS.values()}
        self.agents: dict[str, type[Agent]] = self._found["agent"]
        self.triggers: dict[str, type[Trigger]] = self._found["trigger"]
        self.tool_servers: dict[str, type[ToolServer]] = self._found["tool server"]
        self.guards: dict[str, type[Guard]] = self._found["guard"]
        self.journals: dict[str, type[Journal]] = self._found["journal"]
        self.peers: dict[str, type[PeerScheme]] = self._found["peer"]
        self.middleware: dict[str, type[Middleware]] = self._found["middleware"]

    @classmethod
    def load(cls) -> Self:
        """Load the built-in components and every installed plugin that is not disabled.

        A plugin that fails is listed in `broken`, and the others load.

        Raises:
            PluginError: Two plugins have one name, or bring components of one kind and name.
        """
        plugins = cls()
        for point in _installed():
            plugins._load(point)
        return plugins

    @property
    def commands(self) -> list[typer.Typer]:
        """The commands to add to the command line."""
        return list(self._found["command"].values())

    def agent(self, name: str) -> type[Agent]:
        """Return a kind of agent; raise `PluginError` with what to do where there is none."""
        return self.agents.get(name) or self._missing("agent", name)

    def trigger(self, name: str) -> type[Trigger]:
        """Return a kind of trigger; raise `PluginError` with what to do where there is none."""
        return self.triggers.get(name) or self._missing("trigger", name)

    def tool_server(self, name: str) -> type[ToolServer]:
        """Return a kind of tool server; raise `PluginError` with what to do where there is none."""
        return self.tool_servers.get(name) or self._missing("tool server", name)

    def journal(self, name: str) -> type[Journal]:
        """Return a kind of journal; raise `PluginError` with what to do where there is none."""
        return self.journals.get(name) or self._missing("journal", name)

    def peer(self, scheme: str) -> type[PeerScheme]:
        """Return an address scheme; raise `PluginError` with what to do where there is none."""
        return self.peers.get(scheme) or self._missing("peer", scheme)

    def _missing(self, kind: Kind, name: str) -> Any:
        hint = nearest(name, self._found[kind]) or f" Perhaps a plugin does: `natterjack install natterjack-{name}`."
        broken = "".join(f" Note that {plugin}." for plugin in self.broken)
        msg = f"no installed plugin brings the {_spoken(kind)} {name!r}.{hint}{broken}"
        raise PluginError(msg)

    def _load(self, point: EntryPoint) -> None:
        distribution = _distribution(point)
        try:
            found, warned = _components(point)
        # A plugin may fail in any way, even by leaving; the others must not suffer.
        except (Exception, SystemExit) as error:
            broken = BrokenPlugin(point.name, *distribution, _cause(error))
            self.broken.append(broken)
            log.warning("%s", broken)
            log.debug("%s failed to load", point.name, exc_info=error)
            return
        brings = {kind: tuple(named) for kind, named in found.items() if named}
        plugin = LoadedPlugin(point.name, *distribution, brings, warned)
        for text in warned:
            _warn_once(f"the plugin {plugin.name!r} of {plugin.distribution} {plugin.version}: {text}")
        for kind, named in found.items():
            for name, component in named.items():
                self._add(plugin, kind, name, component)
        self.loaded.append(plugin)

    def _add(self, plugin: LoadedPlugin, kind: Kind, name: str, component: object) -> None:
        for other in self.loaded:
            if name in other.brings.get(kind, ()):
                msg = (
                    f"{other.distribution} and {plugin.distribution} both bring a {_spoken(kind)} {name!r}; uninstall"
                    f" one, or set {DISABLED}={plugin.name}"
                )
                raise PluginError(msg)
        self._found[kind][name] = component


def _installed() -> list[EntryPoint]:
    """Return the built-in plugin and the enabled others by name."""
    disabled = {name.strip() for name in os.environ.get(DISABLED, "").split(",")}
    others = sorted(entry_points(group=GROUP), key=lambda point: (point.name, _distribution(point)))
    points = [_BUILT_IN, *(point for point in others if point.name not in disabled)]
    for one, other in pairwise(sorted(points, key=lambda point: point.name)):
        if one.name == other.name:
            names = " and ".join(sorted(_distribution(point)[0] for point in (one, other)))
            msg = f"{names} both install a plugin named {one.name!r}; uninstall one"
            raise PluginError(msg)
    return points


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Return name and version of what installed an entry point."""
    if point.dist is None:
        return "natterjack", version("natterjack")
    return point.dist.name, point.dist.version


@cache
def _warn_once(line: str) -> None:
    log.warning(line)


def _components(point: EntryPoint) -> tuple[dict[Kind, dict[str, Any]], tuple[str, ...]]:
    """Import a plugin, call each of its hooks once, check what they return, and say what is deprecated of it."""
    plugin = point.load()
    manager = PluginManager("natterjack")
    manager.add_hookspecs(hookspecs)
    with warnings.catch_warnings(record=True) as caught:  # `warn_on_impl` of a spec; no filter may make it an error
        warnings.simplefilter("always")
        manager.register(plugin, point.name)
    callers = manager.get_hookcallers(plugin)
    if not callers:
        msg = f"{point.value} has no hooks; mark its functions with @hookimpl"
        raise PluginError(msg)
    found: dict[Kind, dict[str, Any]] = {}
    for caller in callers:
        if caller.has_spec():
            kind, base = HOOKS[caller.name]
            found[kind] = _named(caller.name, kind, base, _call(caller))
        elif not all(hook.optionalhook for hook in caller.get_hookimpls()):
            msg = f"there is no hook {caller.name!r}.{nearest(caller.name, HOOKS)}"
            raise PluginError(msg)
    return found, tuple(str(warning.message) for warning in caught)


def _call(caller: HookCaller) -> Sequence[Any]:
    """Return what the one implementation of a hook returns."""
    for hook in caller.get_hookimpls():
        if inspect.iscoroutinefunction(hook.function) or inspect.isasyncgenfunction(hook.function):
            msg = f"{caller.name} is async; hooks are plain functions, and only the objects they bring are async"
            raise PluginError(msg)
    results = caller()
    if len(results) == 1 and isinstance(results[0], list | tuple):
        return results[0]
    msg = f"{caller.name} returned {results[0] if results else None!r}; return a list"
    raise PluginError(msg)


def _named(hook: str, kind: Kind, base: type[Component] | None, components: Sequence[Any]) -> dict[str, Any]:
    """Return components by name, each one checked."""
    named: dict[str, Any] = {}
    for component in components:
        name = _command(component) if base is None else check_component(kind, base, component)
        if name in named:
            msg = f"{hook} returned two of the name {name!r}"
            raise PluginError(msg)
        named[name] = component
    return named


def check_component(kind: Kind, base: type[Component], component: Any) -> str:
    """Return the name of a component class that keeps the contract of its kind."""
    if not (isinstance(component, type) and issubclass(component, base)):
        msg = f"{component!r} is no class derived from natterjack.{base.__name__}"
        raise PluginError(msg)
    title = component.__qualname__
    if not component.name:
        msg = f"{title} has no name; add `name: ClassVar = {title.lower()!r}`"
        raise PluginError(msg)
    check_name(component.name, f"name of a {_spoken(kind)} ({title}.name)")
    config: object = component.Config
    if not (isinstance(config, type) and issubclass(config, BaseModel)):
        msg = f"{title}.Config is no pydantic model; write `class Config(BaseModel)`"
        raise PluginError(msg)
    if not component.__doc__:
        msg = f"{title} has no docstring; say what it does, with an example"
        raise PluginError(msg)
    if inspect.isabstract(component):
        msg = f"{title} does not implement {', '.join(sorted(component.__abstractmethods__))}"
        raise PluginError(msg)
    return component.name


def _command(app: Any) -> str:
    """Return the name of a typer app."""
    name = getattr(getattr(app, "info", None), "name", None)
    if not isinstance(name, str) or not name:
        msg = f"{app!r} is no typer app with a name; write `typer.Typer(name=…)`"
        raise PluginError(msg)
    return name


def _spoken(kind: Kind) -> str:
    """Return a kind as users call it."""
    return {"agent": "kind of agent", "peer": "address scheme"}.get(kind, kind)


def _cause(error: BaseException) -> str:
    """Return an error in one line; ours speak for themselves."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PluginError) else f"{type(error).__name__}: {text}"
