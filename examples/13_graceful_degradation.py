"""Peers that are absent, slow or broken: an agent goes on without them, and knows which is which.

`except TimeoutError` is enough for "no answer in time, or nobody there".

Prints:
    I am no specialist, but toads are amphibians, I think.
    fine (fast)
    absent: 503 PeerUnavailableError
    broken: 500 PeerError
    slow: 408 PeerTimeoutError
"""

import asyncio

from natterjack import Agent, AgentProcess, AgentRuntime, RunContext


async def fast(question: str) -> str:
    return "fine"


async def slow(question: str) -> str:
    await asyncio.Event().wait()  # for ever; it is cancelled when the asker gives up
    return ""


async def broken(question: str) -> str:
    raise ZeroDivisionError("the asker never sees this, nor the traceback: it is in the log")


class Generalist(Agent):
    """Asks the specialist, and answers itself where that does not help."""

    async def answer(self, question: str, ctx: RunContext) -> str:
        try:
            return await ctx.ask_peer("slow", question, timeout=0.5)
        except TimeoutError:
            return "I am no specialist, but toads are amphibians, I think."


async def main() -> None:
    runtime = AgentRuntime()
    for name, agent in (("fast", fast), ("slow", slow), ("broken", broken), ("generalist", Generalist())):
        runtime.add_process(AgentProcess(name=name, agent=agent))
    async with runtime:
        print(await runtime.ask_peer("generalist", "What are toads?", timeout=10))
        answers = await runtime.broadcast(["fast", "slow", "broken", "absent"], "How are you?", timeout=1)
        for name, answer in answers.items():
            print(f"{answer} ({name})")
        for name, error in sorted(answers.failures.items()):
            print(f"{name}: {error.code} {type(error).__name__}")


asyncio.run(main())
