"""Fan-out and fan-in: one agent asks several at once, and merges their answers into its own.

Prints:
    legal: no objection to 'a pond on the roof'
    technical: the roof carries 400 kg
    (business did not answer: nobody serves that name; is it running?)
"""

import asyncio

from natterjack import Agent, AgentProcess, AgentRuntime, RunContext


async def legal(proposal: str) -> str:
    return f"no objection to {proposal!r}"


async def technical(proposal: str) -> str:
    return "the roof carries 400 kg"


class Coordinator(Agent):
    """Has a proposal reviewed from all sides."""

    async def answer(self, question: str, ctx: RunContext) -> str:
        reviews = await ctx.broadcast(["legal", "technical", "business"], question, timeout=10)
        lines = [f"{name}: {review}" for name, review in reviews.items()]
        missing = [f"({name} did not answer: {why.message})" for name, why in reviews.failures.items()]
        return "\n".join(lines + missing)


async def main() -> None:
    runtime = AgentRuntime()
    for name, agent in (("legal", legal), ("technical", technical), ("coordinator", Coordinator())):
        runtime.add_process(AgentProcess(name=name, agent=agent))
    async with runtime:
        print(await runtime.ask_peer("coordinator", "a pond on the roof", timeout=20))


asyncio.run(main())
