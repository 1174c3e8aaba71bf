"""Events of one key in order, of different keys at the same time: `ordered_by` names the field that is the key.

Without it, up to `concurrency` events are worked on at once, and a quick one overtakes a slow one. With replicas, too,
one order's events are handled one after another, in the order in which they were stored.

Prints:
    pond: ordered, paid, delivered
    lily: ordered, paid, delivered
    the lily did not wait for the pond
"""

import asyncio

from natterjack import Agent, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext


class Ledger(Agent):
    """Notes what becomes of each order; the first event of the pond takes long."""

    def __init__(self) -> None:
        super().__init__()
        self.lily_is_done = asyncio.Event()
        self.noted: dict[str, list[str]] = {"pond": [], "lily": []}

    async def handle(self, event: Event, ctx: RunContext) -> None:
        what, step = event.data["what"], event.type.removeprefix("order.")
        if (what, step) == ("pond", "ordered"):
            await self.lily_is_done.wait()
        self.noted[what].append(step)
        if (what, step) == ("lily", "delivered"):
            self.lily_is_done.set()
        if (what, step) == ("pond", "delivered"):
            await ctx.emit("ledger.closed")


async def main() -> None:
    ledger = Ledger()
    runtime = AgentRuntime()
    runtime.add_process(
        AgentProcess(name="ledger", agent=ledger, triggers=[EventTrigger("order.*")], ordered_by="what")
    )
    async with runtime, runtime.event_bus.subscribe("ledger.closed") as closed:
        for step in ("ordered", "paid", "delivered"):
            for what in ("pond", "lily"):
                await runtime.event_bus.emit(f"order.{step}", {"what": what})
        await anext(closed)
    for what, steps in ledger.noted.items():
        print(f"{what}: {', '.join(steps)}")
    print("the lily did not wait for the pond")


asyncio.run(main())
