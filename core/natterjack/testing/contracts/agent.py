"""What the kernel relies on in an agent."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar, cast

import pytest

from natterjack.components import Agent, Component, Kind
from natterjack.testing.contracts.component import PROMPTLY, TESTED, ComponentContract, assert_nothing_left, ends


class AgentContract(ComponentContract):
    """What the kernel relies on in an agent.

    Attributes:
        question: What it is asked.
        event: Data of the event that it is given.
        concurrency: Calls at once.
    """

    kind: ClassVar[Kind] = "agent"
    base: ClassVar[type[Component]] = Agent
    question: ClassVar[str] = "how are you?"
    event: ClassVar[Any] = None
    concurrency: ClassVar[int] = 16

    def _agent(self, method: str) -> Agent:
        """Make the agent; skip the test if it does not have the method."""
        agent = cast("Agent", self.component.create(self.settings))
        if getattr(type(agent), method) is getattr(Agent, method):
            pytest.skip(f"{self.component.__name__} has no `{method}`")
        return agent

    @pytest.mark.asyncio
    async def test_answers_many_questions_at_once(self) -> None:
        """Each of several concurrent questions gets its answer, with the agent's own rights."""
        async with self.team(self._agent("answer")) as team:
            await team.start(TESTED)
            asked = [team.client.ask_peer(TESTED, self.question, timeout=30) for _ in range(self.concurrency)]
            answers = await asyncio.gather(*asked)
            assert [answer.agent for answer in answers] == [TESTED] * self.concurrency
            assert team.violations() == []

    @pytest.mark.asyncio
    async def test_handles_many_events_at_once(self) -> None:
        """Each of several concurrent events is handled to the end, and what it returns can be journaled."""
        async with self.team(self._agent("handle")) as team:
            await team.start(TESTED)
            event = {"type": "contract.event", **(self.event if isinstance(self.event, dict) else {"data": self.event})}
            runs = [await team.client.inject_event(TESTED, event) for _ in range(self.concurrency)]
            results = await asyncio.gather(*(run.result(timeout=30) for run in runs))
            assert len(results) == self.concurrency
            assert team.violations() == []

    @pytest.mark.asyncio
    async def test_stopping_leaves_no_task(self) -> None:
        """It starts and stops, also in the midst of a question, and nothing of it goes on."""
        agent = cast("Agent", self.component.create(self.settings))
        async with self.team(agent) as team:
            before = asyncio.all_tasks()
            host = await team.start(TESTED)
            asking = asyncio.create_task(team.client.ask_peer(TESTED, self.question, timeout=PROMPTLY))
            await asyncio.sleep(0)
            began = time.monotonic()
            await host.stop(0)
            assert time.monotonic() - began < PROMPTLY
            assert await ends(asking)
        await assert_nothing_left(before)
