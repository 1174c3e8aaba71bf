"""A durable run: its process is killed, and it goes on in another one, behind what it has finished.

What a step returns is journaled, and the step is not done again. While the run waits, it needs no process at all.

Prints:
    process 1: reserves lilies
    process 1 is killed while the run waits; then the payment comes
    process 2: ships lilies, paid by card
"""

import asyncio
import subprocess
import sys

from natterjack import Agent, AgentProcess, AgentRuntime, Event, RunContext


def say(text: str) -> None:
    print(f"process {sys.argv[2]}: {text}", flush=True)


class Shop(Agent):
    """Sells flowers."""

    async def handle(self, event: Event, ctx: RunContext) -> str:
        flowers = event.data["flowers"]
        await ctx.step("reserve", say, f"reserves {flowers}")
        paid = await ctx.wait_for("payment.received", where=f'data.flowers == "{flowers}"')
        await ctx.step("ship", say, f"ships {flowers}, paid by {paid.data['by']}")
        return "sold"


async def serve(url: str) -> None:
    runtime = AgentRuntime(url)
    runtime.add_process(AgentProcess(name="shop", agent=Shop(), waits=["payment.received"]))
    async with runtime:
        await runtime.wait()


def start(url: str, number: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, url, number])


async def main() -> None:
    async with AgentRuntime() as runtime:  # here it only brings the broker
        first = start(runtime.server.url, "1")
        while not await runtime.agents():
            continue  # it is about to run
        run = await runtime.inject_event("shop", {"type": "order", "flowers": "lilies"})
        while not [ticket async for _, ticket in runtime.runs.waiting("shop")]:
            continue  # it is about to wait
        first.kill()
        first.wait()
        print("process 1 is killed while the run waits; then the payment comes", flush=True)
        await runtime.event_bus.emit("payment.received", {"flowers": "lilies", "by": "card"})
        second = start(runtime.server.url, "2")
        await run.result(timeout=30)
        second.terminate()
        second.wait()


asyncio.run(serve(sys.argv[1]) if len(sys.argv) > 1 else main())
