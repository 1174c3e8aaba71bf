"""A handler that fails is tried again; one that fails for good leaves a dead letter with its cause.

Prints:
    attempt 1
    attempt 2
    done at last
    the run failed: ValueError: this one never works
"""

import asyncio

from natterjack import Agent, AgentProcess, AgentRuntime, Event, RunContext, RunFailedError


class Flaky(Agent):
    """Needs a second attempt, or never succeeds."""

    async def handle(self, event: Event, ctx: RunContext) -> str:
        if event.data["hopeless"]:
            raise ValueError("this one never works")
        print(f"attempt {event.attempt}")
        if event.attempt == 1:
            raise ConnectionError("try again")
        return "done at last"


async def main() -> None:
    runtime = AgentRuntime()
    runtime.add_process(AgentProcess(name="flaky", agent=Flaky(), max_attempts=2, retry_delay=0.1))
    async with runtime:
        run = await runtime.inject_event("flaky", {"type": "work", "hopeless": False})
        print(await run.result(timeout=10))
        run = await runtime.inject_event("flaky", {"type": "work", "hopeless": True})
        try:
            await run.result(timeout=10)
        except RunFailedError as error:
            print(f"the run failed: {error.cause}")


asyncio.run(main())
