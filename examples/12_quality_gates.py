"""A pipeline with quality gates: each stage waits for what the one before it says is complete.

Nobody knows who comes next. A condition says which event carries a result: the gate lets a good analysis pass, and
sends one of too few values back to the start.

Prints:
    collect.start: {'wanted': 2}
    collect.complete: [3, None]
    clean.complete: [3]
    collect.start: {'mean': 3.0, 'of': 1, 'wanted': 4}
    collect.complete: [3, None, 7, 5]
    clean.complete: [3, 7, 5]
    analyze.complete: {'mean': 5.0, 'of': 3, 'wanted': 4}
"""

import asyncio
from typing import Any

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
    """Analyzes, and says of how many values."""

    async def handle(self, event: Event, ctx: RunContext) -> dict[str, Any]:
        return {"mean": sum(event.data) / len(event.data), "of": len(event.data), "wanted": 4}


async def main() -> None:
    collector = AgentProcess(
        "collector", agent=Collector(), triggers=[EventTrigger("collect.start")], result_event="collect.complete"
    )
    cleaner = AgentProcess(
        "cleaner", agent=Cleaner(), triggers=[EventTrigger("collect.complete")], result_event="clean.complete"
    )
    analyzer = AgentProcess(
        "analyzer",
        agent=Analyzer(),
        triggers=[EventTrigger("clean.complete")],
        result_events={"analyze.complete": "result.of >= 2", "collect.start": "result.of < 2"},
    )
    runtime = AgentRuntime()
    for process in (collector, cleaner, analyzer):
        runtime.add_process(process)
    async with runtime, runtime.event_bus.subscribe() as events:
        await runtime.event_bus.emit("collect.start", {"wanted": 2})
        async for event in events:
            print(f"{event.type}: {event.data}")
            if event.type == "analyze.complete":
                break


asyncio.run(main())
