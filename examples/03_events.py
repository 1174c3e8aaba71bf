"""Events wake agents by wildcard, and what a handler returns becomes the next event.

Prints:
    order.placed: 3 apples
    order.packed: a box of apples
"""

import asyncio
from typing import Any

from natterjack import Agent, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext


class Packer(Agent):
    """Packs what was ordered."""

    async def handle(self, event: Event, ctx: RunContext) -> dict[str, Any]:
        return {"what": f"a box of {event.data['what'].split()[-1]}"}


async def main() -> None:
    runtime = AgentRuntime()
    packer = AgentProcess(
        name="packer", agent=Packer(), triggers=[EventTrigger("*.placed")], result_event="order.packed"
    )
    runtime.add_process(packer)
    async with runtime, runtime.event_bus.subscribe("order.*") as events:
        await runtime.event_bus.emit("order.placed", {"what": "3 apples"})
        async for event in events:
            print(f"{event.type}: {event.data['what']}")
            if event.type == "order.packed":
                break


asyncio.run(main())
