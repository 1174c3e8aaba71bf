"""Durable runs with the narrow rights that provisioning grants: to step, to sleep, to wait, to ask a human; no more."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from natterjack import RefusedError
from natterjack.bus import Bus
from natterjack.plugins import Plugins
from natterjack.team import Team
from natterjack.testing import until
from natterjack.testing.narrow import login_of, narrow_team

SOURCE = '''
"""An agent that does all that a durable run can."""
from natterjack import Agent

class Clerk(Agent):
    async def handle(self, event, ctx):
        large = await ctx.step("large", lambda: "x" * 3_000_000)
        await ctx.emit("order.seen", len(large))
        await ctx.sleep(0.2)
        paid = await ctx.wait_for("order.paid", where="data.order == 7", timeout=60)
        answer = await ctx.ask_human("Ship it?", choices=["yes", "no"], timeout=60)
        return [len(large), paid.data["by"], answer]

    async def answer(self, question, ctx):
        await ctx.step("think", lambda: None)
        return (await ctx.wait_for("order.paid", where="data.order == 8", timeout=60)).data["by"]

class Other(Agent):
    """Does nothing."""
'''
TEAM = Team.model_validate(
    {
        "name": "shop",
        "external": ["order.placed"],
        "agents": {
            "clerk": {
                "kind": "shop_agents:Clerk",
                "on": ["order.placed"],
                "emits": ["order.seen"],
                "waits": ["order.paid", "approval.answered"],
                "asks": [],
            },
            "other": {"kind": "shop_agents:Other", "emits": [], "asks": []},
        },
    }
)


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "shop_agents.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("natterjack.pauses.SHORT", 0.0)
    yield
    sys.modules.pop("shop_agents", None)


async def test_all_of_a_durable_run_works_with_what_is_granted() -> None:
    async with narrow_team(TEAM, Plugins.load()) as team:
        host = await team.start("clerk")
        run = await team.client.inject_event("clerk", {"type": "order.placed"})

        async def asked() -> str:
            found = [event.data["id"] async for event in team.client.event_bus.replay("approval.requested")]
            return found[0] if found else ""

        async def waits() -> bool:
            return bool([ticket async for _, ticket in team.client.runs.waiting("clerk") if ticket.waits])

        await until(waits)
        await team.client.event_bus.emit("order.paid", {"order": 6, "by": "mistake"})
        await team.client.event_bus.emit("order.paid", {"order": 7, "by": "card"})
        identity = await until(asked)
        await until(waits)
        await host.stop(5)
        await team.client.event_bus.emit("approval.answered", {"id": identity, "answer": "yes"})
        await team.start("clerk")
        assert await run.result(30) == [3_000_000, "card", "yes"]
        await team.client.event_bus.emit("order.paid", {"order": 8, "by": "cash"})
        assert team.violations() == []


async def test_an_answer_waits_with_what_is_granted() -> None:
    async with narrow_team(TEAM, Plugins.load()) as team:
        await team.start("clerk")
        await team.client.event_bus.emit("order.paid", {"order": 9, "by": "mistake"})

        async def reply() -> str:
            return await team.client.ask_peer("clerk", "who paid?", timeout=20)

        asking = asyncio.create_task(reply())

        async def waits() -> bool:
            return bool([entry async for entry in team.client.journal.entries("clerk", kind="waiting")])

        await until(waits)
        await team.client.event_bus.emit("order.paid", {"order": 8, "by": "cash"})
        assert await asking == "cash"
        assert team.violations() == []


@pytest.mark.parametrize(
    "subject",
    [
        "wake.clerk.run",
        "$JS.API.DIRECT.GET.WAKES.wake.clerk.run",
        "$JS.API.DIRECT.GET.WAKES",
        "$JS.API.CONSUMER.MSG.NEXT.WAKES.clerk=wake",
        "$JS.API.STREAM.PURGE.WAKES",
        "feed.wake.clerk.run",
        "events.approval.requested",
    ],
)
async def test_another_agents_waiting_runs_are_out_of_reach(subject: str) -> None:
    async with narrow_team(TEAM, Plugins.load()) as team:
        bus = await Bus.connect(login_of(team.server, "other"), principal="other")
        try:
            with pytest.raises(RefusedError, match="the broker refuses 'other'"):
                await bus.request(subject, b"{}", timeout=5)
        finally:
            await bus.close()
