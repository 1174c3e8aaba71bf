"""The broker's clock wakes an agent every second, and holds an event until it is due: no process need live for it.

Prints:
    cup 1 is poured
    cup 2 is poured, and the next pot put on
    the next pot is ready
"""

import asyncio

from natterjack import Agent, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext
from natterjack_schedule import EveryTrigger


class Kitchen(Agent):
    """Pours a cup each second, and makes tea."""

    cups = 0

    async def handle(self, event: Event, ctx: RunContext) -> None:
        if event.type == "tea.ready":
            print("the next pot is ready")
            await ctx.emit("tea.drunk")
        elif self.cups < 2:
            self.cups += 1
            more = ", and the next pot put on" if self.cups == 2 else ""
            print(f"cup {self.cups} is poured{more}")
            if more:
                await ctx.emit("tea.ready", delay=1.5)  # seconds; the broker holds it, also when this process is gone


async def main() -> None:
    runtime = AgentRuntime()
    triggers = [EveryTrigger(1), EventTrigger("tea.ready")]  # CronTrigger("0 16 * * *") would be every day at 16 h
    runtime.add_process(AgentProcess(name="kitchen", agent=Kitchen(), triggers=triggers, delays=["tea.ready"]))
    async with runtime, runtime.event_bus.subscribe("tea.drunk") as live:
        await anext(live)


asyncio.run(main())
