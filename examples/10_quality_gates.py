"""A pipeline with quality gates: each stage waits for what the one before it says is complete.

Nobody knows who comes next. A gate emits one event or another; here it sends too small a harvest back to the start.

Prints:
    collect.start: {'wanted': 2}
    collect.complete: [3, None]
    clean.complete: [3]
    collect.start: {'wanted': 4}
    collect.complete: [3, None, 7, 5]
    clean.complete: [3, 7, 5]
    analyze.complete: {'mean': 5.0}
"""

import asyncio

from natterjack import Agent, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext

FIELD = [3, None, 7, 5]


class Collector(Agent):
    """Collects as many values as are wanted."""

    async def handle(self, event: Event, ctx: RunContext) -> list[int | None]:
        return FIELD[: event.data["wanted"]]


class Cleaner(Agent):
    """Drops what is missing."""

    async def handle(self, event: Event, ctx: RunContext) -> list[int]:
        return [value for value in event.data if value is not None]


class Analyzer(Agent):
    """The gate: it takes two values for an analysis, or has more collected."""

    async def handle(self, event: Event, ctx: RunContext) -> None:
        if len(event.data) < 2:
            await ctx.emit("collect.start", {"wanted": 4})
        else:
            await ctx.emit("analyze.complete", {"mean": sum(event.data) / len(event.data)})


async def main() -> None:
    stages = [  # name, agent, what it waits for, what it says when it is done
        ("collector", Collector(), "collect.start", "collect.complete"),
        ("cleaner", Cleaner(), "collect.complete", "clean.complete"),
        ("analyzer", Analyzer(), "clean.complete", None),
    ]
    runtime = AgentRuntime()
    for name, agent, waits_for, done in stages:
        runtime.add_process(AgentProcess(name, agent=agent, triggers=[EventTrigger(waits_for)], result_event=done))
    async with runtime, runtime.event_bus.subscribe() as events:
        await runtime.event_bus.emit("collect.start", {"wanted": 2})
        async for event in events:
            print(f"{event.type}: {event.data}")
            if event.type == "analyze.complete":
                break


asyncio.run(main())
