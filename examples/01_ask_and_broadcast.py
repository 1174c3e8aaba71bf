"""Ask one agent, then several; an absent one does not spoil the others' answers.

Prints:
    HELLO
    {'shout': 'HELLO', 'whisper': 'hello…'}
    nobody: nobody serves that name; is it running?
"""

import asyncio

from natterjack import AgentProcess, AgentRuntime


async def shout(question: str) -> str:
    return question.upper()


async def whisper(question: str) -> str:
    return question.lower() + "…"


async def main() -> None:
    runtime = AgentRuntime()
    runtime.add_process(AgentProcess(name="shout", agent=shout))
    runtime.add_process(AgentProcess(name="whisper", agent=whisper))
    async with runtime:
        print(await runtime.ask_peer("shout", "Hello", timeout=5.0))
        answers = await runtime.broadcast(["shout", "whisper", "nobody"], "Hello", timeout=5.0)
        print(answers)
        print(answers.failures["nobody"])


asyncio.run(main())
