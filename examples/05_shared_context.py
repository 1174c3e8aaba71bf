"""Agents share state, with who may write what; reads are local, and changes can be watched.

Prints:
    'writer' may not write 'findings'
    findings of researcher: ['NATS is fast']
    draft of writer: NATS is fast.
"""

import asyncio

from natterjack import Agent, AgentContext, AgentProcess, AgentRuntime, Event, RefusedError, RunContext


class Researcher(Agent):
    """Finds things out."""

    async def handle(self, event: Event, ctx: RunContext) -> None:
        await ctx.shared.set("findings", ["NATS is fast"])


class Writer(Agent):
    """Writes them down; what it may not write is refused at once."""

    async def handle(self, event: Event, ctx: RunContext) -> None:
        try:
            ctx.shared.set("findings", [])
        except RefusedError as error:
            print(str(error).partition(":")[0])
        await ctx.shared.set("draft", ". ".join(ctx.shared.get("findings")) + ".")


async def main() -> None:
    shared = AgentContext(write_permissions={"researcher": ["findings"], "writer": ["draft"]})
    runtime = AgentRuntime(context=shared)
    runtime.add_process(AgentProcess(name="researcher", agent=Researcher()))
    runtime.add_process(AgentProcess(name="writer", agent=Writer()))
    async with runtime:
        for agent in ("researcher", "writer"):
            run = await runtime.inject_event(agent, {"type": "work"})
            await run.result(timeout=10)
        (found,) = await shared.history("findings")
        (written,) = await shared.history("draft")
        print(f"findings of {found.writer}: {found.value}")
        print(f"draft of {written.writer}: {written.value}")


asyncio.run(main())
