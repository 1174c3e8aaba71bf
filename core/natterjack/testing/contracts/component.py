"""What the kernel relies on in every component, and what the contracts share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast, get_args

import pytest

from natterjack.components import Agent, Component, Kind, Trigger
from natterjack.errors import ConfigError
from natterjack.middleware import Middleware
from natterjack.plugins import Plugins, check_component
from natterjack.rights import Verb, permissions
from natterjack.team import Team, TriggerSpec
from natterjack.testing.clock import ScriptedClock
from natterjack.testing.narrow import NarrowTeam, narrow_team
from natterjack.testing.waiting import until

PROMPTLY = 5.0
"""Seconds within which what is cancelled must have ended, on a loaded machine, too."""
TESTED = "tested"
"""The agent for whom the component works."""


class ComponentContract:
    """What holds for every component; subclass that of its kind instead.

    Attributes:
        component: The class.
        settings: Settings that are right, as a team file gives them.
        wrong_settings: Settings that must be refused.
    """

    kind: ClassVar[Kind]
    base: ClassVar[type[Component]]
    component: ClassVar[type[Component]]
    settings: ClassVar[Mapping[str, Any]] = {}
    wrong_settings: ClassVar[Sequence[Mapping[str, Any]]] = ()

    def test_class_is_complete(self) -> None:
        """It has a name, a `Config`, a docstring, and all methods."""
        assert check_component(self.kind, self.base, self.component) == self.component.name

    def test_settings_are_taken(self) -> None:
        """Right settings make one."""
        assert isinstance(self.component.create(self.settings), self.base)

    def test_wrong_settings_are_config_errors(self) -> None:
        """A missing or wrong setting is told as such, in one line, and not by whatever exception comes first."""
        fields = self.component.Config.model_fields
        missing = [{key: value for key, value in self.settings.items() if key != name} for name in fields]
        required = [given for given, field in zip(missing, fields.values(), strict=True) if field.is_required()]
        for given in [*required, *self.wrong_settings]:
            with pytest.raises(ConfigError) as caught:
                self.component.create(given)
            assert "\n" not in str(caught.value)

    def test_needs_are_rights(self) -> None:
        """`needs` returns rights that can be granted, and the same ones each time."""
        made = self.component.create(self.settings)
        needs = made.needs(TESTED)
        assert all(right.verb in get_args(Verb) for right in needs), needs
        assert sorted(needs) == sorted(self.component.create(self.settings).needs(TESTED))
        assert permissions(TESTED, needs).subscribe

    @asynccontextmanager
    async def team(
        self, agent: Agent, clock: ScriptedClock | None = None, on: Sequence[TriggerSpec] = ()
    ) -> AsyncIterator[NarrowTeam]:
        """A team of one agent, with the component among what is installed."""
        plugins = Plugins.load()
        plugins.agents["given"] = _kind_of(agent)
        if self.kind == "trigger":
            plugins.triggers[self.component.name] = cast("type[Trigger]", self.component)
        if self.kind == "middleware":
            plugins.middleware[self.component.name] = cast("type[Middleware]", self.component)
        spec = {"kind": "given", "on": [trigger.model_dump() for trigger in on], "retry_delay": 0.05}
        team = Team.model_validate({"name": "contract", "agents": {TESTED: spec}})
        async with narrow_team(team, plugins, clock) as narrow:
            yield narrow


def _kind_of(agent: Agent) -> type[Agent]:
    """Return a kind of agent that is always this one."""

    class Given(type(agent)):  # type: ignore[misc]  # a class of its own, so that `needs` is the agent's
        Config = Component.Config  # it is made already

        @classmethod
        def create(cls, settings: Mapping[str, Any]) -> Agent:
            del settings
            return agent

    return Given


async def ends(task: asyncio.Task[Any]) -> bool:
    """Cancel a task, and tell whether it ended promptly."""
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=PROMPTLY)
    return bool(done)


async def assert_nothing_left(before: set[asyncio.Task[Any]]) -> None:
    """Fail if tasks go on that were not there before; what is just about to end may."""
    await until(lambda: asyncio.all_tasks() <= before, PROMPTLY, f"no task but {len(before)} of before")
