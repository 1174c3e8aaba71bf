"""What the kernel relies on in middleware."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from natterjack.components import Component, Kind
from natterjack.errors import PeerError
from natterjack.messages import Event
from natterjack.middleware import Middleware
from natterjack.runs import RunContext
from natterjack.testing.agents import ScriptedAgent
from natterjack.testing.contracts.component import TESTED, ComponentContract


class MiddlewareContract(ComponentContract):
    """What the kernel relies on in middleware that changes nothing; override the tests of what it does change."""

    kind: ClassVar[Kind] = "middleware"
    base: ClassVar[type[Component]] = Middleware

    def test_needs_no_settings(self) -> None:
        """Each installed one is used, and there is no place for settings."""
        assert isinstance(self.component.create({}), Middleware)

    @pytest.mark.asyncio
    async def test_passes_on_what_is_handled_answered_and_emitted(self) -> None:
        """Results come through, and each call is made once."""
        agent = _Emitting(answers=lambda question: question[::-1])
        async with self.team(agent) as team:
            await team.start(TESTED)
            async with team.client.event_bus.subscribe("contract.seen") as seen:
                run = await team.client.inject_event(TESTED, {"type": "contract.event", "number": 7})
                assert await run.result(timeout=30) == "emitted"
                assert (await anext(seen)).data["number"] == 7
            assert await team.client.ask_peer(TESTED, "abc", timeout=30) == "cba"
            assert (len(agent.events), agent.questions) == (1, ["abc"])
            assert team.violations() == []

    @pytest.mark.asyncio
    async def test_passes_on_failures(self) -> None:
        """An error of the agent stays one: the event is handled again, and the asker told."""
        agent = ScriptedAgent(results=[ValueError("not now"), "done"], answers=ValueError("not now"))
        async with self.team(agent) as team:
            await team.start(TESTED)
            run = await team.client.inject_event(TESTED, {"type": "contract.event"})
            assert await run.result(timeout=30) == "done"
            with pytest.raises(PeerError):
                await team.client.ask_peer(TESTED, "abc", timeout=30)


class _Emitting(ScriptedAgent):
    """Emits what it handles."""

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        await super().handle(event, ctx)
        await ctx.emit("contract.seen", event.data)
        return "emitted"
