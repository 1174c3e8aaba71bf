"""A message goes to a topic: the publisher says where to, and whoever follows the topic gets it.

An event says what happened, and names no addressee. Both are stored before the call returns.

Prints:
    desk got reports.daily: all quiet
    desk got reports.weekly: still quiet
"""

import asyncio

from natterjack import Agent, AgentProcess, AgentRuntime, Event, MessageTrigger, RunContext


class Desk(Agent):
    """Reads all reports."""

    async def handle(self, event: Event, ctx: RunContext) -> None:
        print(f"{ctx.agent} got {event.type}: {event.data}")
        await ctx.publish("receipts.desk", event.type)


async def main() -> None:
    runtime = AgentRuntime()
    runtime.add_process(AgentProcess(name="desk", agent=Desk(), triggers=[MessageTrigger(topic="reports.*")]))
    async with runtime, runtime.event_bus.subscribe_topic("receipts.desk") as receipts:
        for topic, text in (("reports.daily", "all quiet"), ("reports.weekly", "still quiet")):
            await runtime.event_bus.publish(topic, text)
            await anext(receipts)


asyncio.run(main())
