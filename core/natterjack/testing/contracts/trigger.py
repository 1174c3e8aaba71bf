"""What the kernel relies on in a trigger."""

from __future__ import annotations

import asyncio
from typing import ClassVar, cast

import pytest

from natterjack.client import TeamClient
from natterjack.components import Component, Kind, Trigger
from natterjack.errors import ConfigError
from natterjack.team import TriggerSpec, make_trigger
from natterjack.testing.agents import ScriptedAgent
from natterjack.testing.clock import ScriptedClock
from natterjack.testing.contracts.component import PROMPTLY, TESTED, ComponentContract, assert_nothing_left, ends

_WHILE = 0.05
"""Seconds in which a trigger that ends by itself has ended."""


class TriggerContract(ComponentContract):
    """What the kernel relies on in a trigger. Override `provoke`."""

    kind: ClassVar[Kind] = "trigger"
    base: ClassVar[type[Component]] = Trigger

    async def provoke(self, team: TeamClient, clock: ScriptedClock) -> None:
        """Do what makes the trigger fire at least once.

        Args:
            team: Acts as the operator; emit or publish with its `event_bus`.
            clock: The trigger's `ctx.clock`; `await clock.advance(seconds)`.
        """
        msg = f"{type(self).__name__}: override `provoke`: do what makes the trigger fire"
        raise NotImplementedError(msg)

    async def woken(self, agent: ScriptedAgent) -> None:
        """Return once the trigger has woken the agent; override it for one that asks, by `agent.questions`."""
        await agent.handled()

    @property
    def _spec(self) -> TriggerSpec:
        return TriggerSpec(kind=self.component.name, settings=dict(self.settings))

    def test_unknown_setting_is_a_config_error(self) -> None:
        """A misspelt key of a team file is told."""
        spec = TriggerSpec(kind=self.component.name, settings={**self.settings, "no_such_setting": 1})
        with pytest.raises(ConfigError, match="no_such_setting"):
            make_trigger(cast("type[Trigger]", self.component), spec)

    def test_needs_cover_its_consumers(self) -> None:
        """It may pull from each durable that it asks provisioning for, and its label can be part of their names."""
        trigger = cast("Trigger", self.component.create(self.settings))
        schedules = {spec.right for spec in trigger.schedules(TESTED)}
        assert {spec.right for spec in trigger.consumers(TESTED)} | schedules <= set(trigger.needs(TESTED))
        assert trigger.label == cast("Trigger", self.component.create(self.settings)).label
        assert "." not in trigger.label
        assert not set(trigger.label) & set(" *>\t\n")

    def test_settings_survive_being_stored(self) -> None:
        """The team is stored as JSON, and another machine makes the same trigger from it."""
        trigger = cast("Trigger", self.component.create(self.settings))
        again = cast("Trigger", self.component.create(trigger.config.model_dump(mode="json")))
        assert (again.label, again.consumers(TESTED)) == (trigger.label, trigger.consumers(TESTED))
        assert again.schedules(TESTED) == trigger.schedules(TESTED)

    @pytest.mark.asyncio
    async def test_fires_with_exactly_the_rights_it_needs(self) -> None:
        """What it fires reaches its agent, on a server that grants it nothing beyond `needs`, and it goes on."""
        agent, clock = ScriptedAgent(), ScriptedClock()
        async with self.team(agent, clock, [self._spec]) as team:
            host = await team.start(TESTED)
            await self.provoke(team.client, clock)
            await self.woken(agent)
            failed = asyncio.create_task(host.failed())
            done, _ = await asyncio.wait([failed], timeout=_WHILE)
            assert not done, failed.result()
            assert await ends(failed)
            assert team.violations() == []

    @pytest.mark.asyncio
    async def test_cancelling_ends_it_and_leaves_no_task(self) -> None:
        """Stopping its agent ends `run` promptly, whatever it waits for, and nothing goes on behind it."""
        agent, clock = ScriptedAgent(), ScriptedClock()
        async with self.team(agent, clock, [self._spec]) as team:
            before = asyncio.all_tasks()
            host = await team.start(TESTED)
            await self.provoke(team.client, clock)
            await self.woken(agent)
            stopping = asyncio.create_task(host.stop(0))
            done, _ = await asyncio.wait([stopping], timeout=PROMPTLY)
            assert done, "it goes on after it was cancelled"
        await assert_nothing_left(before)
