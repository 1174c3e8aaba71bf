"""The samples of the public documentation, as they stand there; only import lines are changed."""

import textwrap
from typing import Any

import pytest

from natterjack import AgentProcess, AgentRuntime, RunContext
from natterjack.testing import NatsServer, until

COUNTER = '''
from natterjack import Agent, AgentContext, AgentProcess, AgentRuntime, Event, EventTrigger, RunContext

class Counter(Agent):
    async def handle(self, event: Event, ctx: RunContext) -> str:
        """Called for each trigger; the result is journaled."""
        count = await ctx.shared.update("count", lambda value: (value or 0) + event.data["by"])
        await ctx.emit("count.changed", {"count": count})
        return f"now {count}"

    async def answer(self, question: str, ctx: RunContext) -> str:
        """Called for each ask; may also be an async generator of chunks."""
        return str(ctx.shared.get("count"))

runtime = AgentRuntime(context=AgentContext(initial_state={"count": 0}))
runtime.add_process(AgentProcess(name="counter", agent=Counter(), triggers=[EventTrigger("count.add")]))
async with runtime:
    await runtime.event_bus.emit("count.add", {"by": 2})
    print(await runtime.ask_peer("counter", "how many?", timeout=5.0))
'''

TICK = """
import asyncio
from typing import ClassVar
from pydantic import BaseModel
from natterjack import Right, Trigger, TriggerContext, hookimpl

class Tick(Trigger):
    name: ClassVar = "tick"
    class Config(BaseModel):
        every: float                     # seconds; validated from team.toml

    def needs(self, agent: str) -> list[Right]: return []
    async def run(self, ctx: TriggerContext) -> None:
        while True:
            await asyncio.sleep(self.config.every)
            await ctx.fire({"every": self.config.every})

@hookimpl
def natterjack_triggers():
    return [Tick]
"""


async def run(source: str, **names: Any) -> dict[str, Any]:
    """Run a sample inside a coroutine and return its names."""
    body = textwrap.indent(f"{source}\nreturn locals()", "    ")
    scope: dict[str, Any] = {"__name__": __name__, **names}
    exec(compile(f"async def sample({', '.join(names)}):\n{body}", "<sample>", "exec"), scope)
    found: dict[str, Any] = await scope["sample"](**names)
    return found


@pytest.fixture(autouse=True)
def server(own_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> NatsServer:
    monkeypatch.setenv("NATS_URL", own_server.url)
    return own_server


async def test_counter(capsys: pytest.CaptureFixture[str]) -> None:
    found = await run(COUNTER)
    assert capsys.readouterr().out.strip() in ("0", "2")  # the event may still be on its way
    async with found["runtime"] as runtime:
        await until(lambda: runtime.context.get("count") == 2)
        assert await runtime.ask_peer("counter", "how many?", timeout=5.0) == "2"


async def test_tick() -> None:
    tick = (await run(TICK))["Tick"]
    fired: list[str] = []

    async def handle(question: str, ctx: RunContext) -> None:
        fired.append(question)

    runtime = AgentRuntime()
    trigger = tick.create({"every": 0.01})
    runtime.add_process(AgentProcess(name="ticking", agent=handle, triggers=[trigger]))
    async with runtime:
        await until(lambda: len(fired) >= 2)
    assert set(fired) == {'{"every":0.01}'}
