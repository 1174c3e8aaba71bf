"""The built-in kinds of agent: a class to import, and a plain function."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from pydantic import Field

from natterjack.codec import encode
from natterjack.components import Agent
from natterjack.errors import ConfigError, nearest
from natterjack.messages import Event
from natterjack.settings import Settings, read_settings

if TYPE_CHECKING:
    from natterjack.runs import RunContext


class PythonAgent(Agent):
    """An agent class of your own, by import.

    Example in a team file::

        [agents.counter]
        kind = "my_package.agents:Counter"
    """

    name: ClassVar[str] = "python"

    class Config(Settings):
        """Settings of an imported agent; what else its table holds goes to the class's own `Config`."""

        target: str
        options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def create(cls, settings: Mapping[str, Any]) -> Self:
        """Import the class (or function) and make the agent."""
        config = read_settings(cls.Config, settings, cls.name)
        return cast("Self", make_agent(import_object(config.target), config.options, config.target))


class FunctionAgent(Agent):
    """A plain `async def` as an agent: it gets the question, or an event's data as text."""

    def __init__(self, function: Callable[..., Awaitable[Any]]) -> None:
        super().__init__()
        self._function = function
        self.__doc__ = function.__doc__
        self._wants_context = _required(function) > 1
        self.target = f"{function.__module__}:{function.__qualname__}"

    async def answer(self, question: str, ctx: RunContext) -> Any:
        """Call the function with the question."""
        return await (self._function(question, ctx) if self._wants_context else self._function(question))

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        """Call the function with the event's data as text."""
        text = event.data if isinstance(event.data, str) else encode(event.data).decode()
        return await self.answer(text, ctx)


def _required(function: Callable[..., Any]) -> int:
    """Return how many arguments must be given by position."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(each.kind in positional and each.default is each.empty for each in parameters)


def target_of(agent: Agent | None) -> str:
    """Return `module:name` of what an agent was made from, as it stands in a stored team."""
    if isinstance(agent, FunctionAgent):
        return agent.target
    return f"{type(agent).__module__}:{type(agent).__qualname__}"


def make_agent(target: Any, options: Mapping[str, Any], name: str) -> Agent:
    """Return an agent from what a user gives: an `Agent`, its class, or an async function.

    Raises:
        ConfigError: It is none of these, or does not take the options.
    """
    if isinstance(target, Agent):
        return target
    if inspect.isclass(target) and issubclass(target, Agent):
        if target.Config is not Agent.Config:
            return target.create(options)
        if options:
            wrong = next(iter(options))
            msg = f"{name}: unknown key {wrong!r}; {target.__name__} has no Config, so it takes no settings"
            raise ConfigError(msg)
        return target()
    if inspect.iscoroutinefunction(target):
        return FunctionAgent(target)
    msg = f"{name} is no agent: give a class derived from natterjack.Agent, or an `async def` that takes a question"
    raise ConfigError(msg)


def import_object(target: str) -> Any:
    """Import `module:name`, with the current folder importable as for `python -m`.

    Raises:
        ConfigError: It cannot be imported; it says why, and names the nearest name of the module.
    """
    module_name, _, path = target.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way
        hint = (
            " Run it beside that module, set PYTHONPATH, or install its package."
            if _missing(error, module_name)
            else ""
        )
        msg = f"{target!r} cannot be imported: {type(error).__name__}: {error}.{hint}"
        raise ConfigError(msg) from error
    for name in path.split("."):
        if not hasattr(found, name):
            msg = f"{target!r}: {module_name} has no {name!r}.{nearest(name, dir(found))}"
            raise ConfigError(msg)
        found = getattr(found, name)
    return found


def _missing(error: Exception, module: str) -> bool:
    """Tell whether the module itself is not there, and not something that it imports."""
    return isinstance(error, ModuleNotFoundError) and module.split(".", maxsplit=1)[0] == error.name
