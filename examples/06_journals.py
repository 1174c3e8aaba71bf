"""A journal says what each run did: in JetStream always, and here in a file, too.

What an attempt has journaled is there for the next one, on whatever machine that runs: the work goes on behind it.

Prints:
    attempt 1: searching
    attempt 2: goes on with ['NATS is fast']
    in the file: found, failed, started, done
"""

import asyncio
import json
from pathlib import Path

from natterjack import Agent, AgentProcess, AgentRuntime, Event, FileJournal, RunContext


class Researcher(Agent):
    """Searches once, however often it has to write about what it found."""

    async def handle(self, event: Event, ctx: RunContext) -> str:
        found = ctx.journal.entries(kind="found")
        if not found:
            print(f"attempt {event.attempt}: searching")
            await ctx.journal.append("found", ["NATS is fast"])
            raise ConnectionError("the power went out before the report was written")
        print(f"attempt {event.attempt}: goes on with {found[0].data}")
        return "NATS is fast."


async def main() -> None:
    runtime = AgentRuntime()
    runtime.add_process(
        AgentProcess(name="researcher", agent=Researcher(), journal=FileJournal("journals"), retry_delay=0.1)
    )
    async with runtime:
        run = await runtime.inject_event("researcher", {"type": "research.start"})
        await run.result(timeout=10)


asyncio.run(main())
kinds = [json.loads(line)["kind"] for line in Path("journals/researcher.jsonl").read_text().splitlines()]
print("in the file:", ", ".join(kinds))
