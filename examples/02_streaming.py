"""An answer in chunks, as they are made: who reads may be asked back, and may stop early, which cancels the work.

Prints:
    Really from 3? yes -> 3 2 1 lift-off
    enough at 998
    the countdown was cancelled
"""

import asyncio
from collections.abc import AsyncIterator

from natterjack import Agent, AgentProcess, AgentRuntime, Query, RunContext


class Countdown(Agent):
    """Counts down, and asks before it begins."""

    cancelled = asyncio.Event()

    async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
        start = int(question)
        try:
            if start < 10 and await ctx.query(f"Really from {start}?") != "yes":
                return
            for number in range(start, 0, -1):
                await asyncio.sleep(0.01)  # the work
                yield f"{number} "
            yield "lift-off"
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def agree(query: Query) -> str:
    print(query.prompt, end=" yes -> ")
    return "yes"


async def main() -> None:
    countdown = Countdown()
    runtime = AgentRuntime()
    runtime.add_process(AgentProcess(name="countdown", agent=countdown))
    async with runtime:
        async for chunk in runtime.ask_stream("countdown", "3", timeout=10, on_query=agree):
            print(chunk, end="")
        print()
        async with runtime.ask_stream("countdown", "1000", timeout=10) as chunks:
            async for chunk in chunks:
                if chunk == "998 ":
                    print("enough at", chunk.strip())
                    break
        await countdown.cancelled.wait()
        print("the countdown was cancelled")


asyncio.run(main())
