"""A supervisor delegates, checks what comes back, and sends it back for revision.

`asks` says whom it may ask; anybody else is refused.

Prints:
    draft 1: Toads are nice. -> the editor says: needs a source
    draft 2: Toads are nice [Gray 1842]. -> the editor says: fine
    published: Toads are nice [Gray 1842].
"""

import asyncio

from natterjack import Agent, AgentProcess, AgentRuntime, Event, RunContext


async def writer(order: str) -> str:
    return "Toads are nice [Gray 1842]." if "source" in order else "Toads are nice."


async def editor(draft: str) -> str:
    return "fine" if "[" in draft else "needs a source"


class Supervisor(Agent):
    """Has a text written, at most three times."""

    async def handle(self, event: Event, ctx: RunContext) -> str:
        order = f"write about {event.data['topic']}"
        for number in (1, 2, 3):
            draft = await ctx.ask_peer("writer", order, timeout=10)
            verdict = await ctx.ask_peer("editor", draft, timeout=10)
            print(f"draft {number}: {draft} -> the editor says: {verdict}")
            if verdict == "fine":
                return draft
            order = f"{order}; it {verdict}"
        raise ValueError(f"no good text about {event.data['topic']} after three drafts")


async def main() -> None:
    runtime = AgentRuntime()
    runtime.add_process(AgentProcess(name="writer", agent=writer))
    runtime.add_process(AgentProcess(name="editor", agent=editor))
    runtime.add_process(AgentProcess(name="supervisor", agent=Supervisor(), asks=["writer", "editor"]))
    async with runtime:
        run = await runtime.inject_event("supervisor", {"type": "text.ordered", "topic": "toads"})
        print("published:", await run.result(timeout=20))


asyncio.run(main())
