"""A human in the loop: a run asks, holds no process, and goes on with the answer."""

import asyncio
from typing import Any

import pytest

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    ApprovalDeniedError,
    ConfigError,
    Entry,
    Event,
    Query,
    RunContext,
    RunFailedError,
    WaitTimeoutError,
    connect,
)
from natterjack.bus import Bus
from natterjack.needs import agent_needs
from natterjack.plugins import Plugins
from natterjack.rights import Right
from natterjack.testing import NatsServer, until
from natterjack.testing.parked import until_parked

pytestmark = pytest.mark.usefixtures("leave_at_once")


class Payer(Agent):
    """Pays what a human allows."""

    def __init__(self, **asking: Any) -> None:
        super().__init__()
        self.asking, self.paid = asking, list[str]()

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        answer = await ctx.ask_human("Pay 100 EUR?", **self.asking)
        await ctx.step("pay", self.paid.append, answer)
        return answer

    async def answer(self, question: str, ctx: RunContext) -> str:
        return await ctx.ask_human(question, **self.asking)


def team(server: NatsServer, payer: Payer, **settings: Any) -> AgentRuntime:
    runtime = AgentRuntime(server.url)
    settings = {"waits": ["approval.answered"], "retry_delay": 0.05, **settings}
    runtime.add_process(AgentProcess("payer", agent=payer, **settings))
    return runtime


async def requests(runtime: AgentRuntime, count: int = 1) -> list[dict[str, Any]]:
    """What humans were asked, once it is so much."""

    async def asked() -> list[dict[str, Any]]:
        found = [event.data async for event in runtime.event_bus.replay("approval.requested")]
        return found if len(found) == count else []

    return await until(asked)


async def test_a_run_goes_on_with_what_a_human_answers(own_server: NatsServer, bus: Bus) -> None:
    payer = Payer(choices=["yes", "no"])
    async with team(own_server, payer) as runtime:
        run = await runtime.inject_event("payer", {"type": "invoice"})
        (asked,) = await requests(runtime)
        identity = asked.pop("id")
        assert asked == {"question": "Pay 100 EUR?", "choices": ["yes", "no"], "agent": "payer", "run": run.id}
        await until_parked(bus, "payer")
    async with team(own_server, payer) as runtime:
        await runtime.event_bus.emit("approval.answered", {"id": "another", "answer": "no"})
        await runtime.event_bus.emit("approval.answered", "of some other make")
        await runtime.event_bus.emit("approval.answered", {"id": identity, "answer": "perhaps"})
        await runtime.event_bus.emit("approval.answered", {"id": identity, "answer": "yes", "by": "anna"})

        async def done() -> list[Entry]:
            return [entry async for entry in runtime.journal.entries("payer", kind="done")]

        (entry,) = await until(done)
        assert entry.data["result"] == "yes"
        assert len(await requests(runtime)) == 1
    assert payer.paid == ["yes"]


async def test_a_run_that_is_repeated_while_it_asks_asks_anew(own_server: NatsServer) -> None:
    payer = Payer(choices=["yes", "no"])
    async with team(own_server, payer) as runtime, connect(own_server.url) as client:
        await runtime.inject_event("payer", {"type": "invoice"})
        (first,) = await until(client.approvals.waiting)
        await client.runs.cancel("payer", first.run)
        again = await client.runs.rerun("payer", first.run)
        (second,) = await until(client.approvals.waiting)
        assert (second.run, second.question) == (again, first.question)
        assert second.id != first.id
        await client.approvals.answer(second.id, "yes")
        await until(lambda: payer.paid)
    assert payer.paid == ["yes"]


async def test_a_run_that_is_repeated_behind_an_answer_asks_nobody(own_server: NatsServer) -> None:
    payer = Payer(choices=["yes", "no"])
    async with team(own_server, payer) as runtime, connect(own_server.url) as client:
        run = await runtime.inject_event("payer", {"type": "invoice"})
        (asked,) = await until(client.approvals.waiting)
        with pytest.raises(ConfigError, match=r"an answer to 'Pay 100 EUR\?' needs some text"):
            await client.approvals.answer(asked.id, "")
        await client.approvals.answer(asked.id, "yes")
        assert await run.result(10) == "yes"
        await client.runs.rerun("payer", run.id, first="pay")
        await until(lambda: payer.paid == ["yes", "yes"])
        assert len(await requests(runtime)) == 1


async def test_a_human_may_say_no(own_server: NatsServer) -> None:
    payer = Payer()
    async with team(own_server, payer) as runtime:
        run = await runtime.inject_event("payer", {"type": "invoice"})
        (asked,) = await requests(runtime)
        denied = {"id": asked["id"], "denied": True, "by": "anna", "reason": "too much"}
        await runtime.event_bus.emit("approval.answered", denied)
        told = "ApprovalDeniedError: anna said no to 'Pay 100 EUR[?]': too much"
        with pytest.raises(RunFailedError, match=told):
            await run.result(10)
    assert payer.paid == []


async def test_nobody_answers_in_time(own_server: NatsServer) -> None:
    async with team(own_server, Payer(timeout=0.3)) as runtime:
        run = await runtime.inject_event("payer", {"type": "invoice"})
        with pytest.raises(RunFailedError, match=r"waited for 'approval\.answered' in vain"):
            await run.result(20)
        assert len(await requests(runtime)) == 1
    assert issubclass(WaitTimeoutError, TimeoutError)
    assert issubclass(ApprovalDeniedError, PermissionError)


async def test_who_waits_for_the_answer_is_asked_first(own_server: NatsServer) -> None:
    prompts = list[str]()

    async def reply(query: Query) -> str:
        prompts.append(query.prompt)
        return "maybe" if len(prompts) == 1 else " yes "

    async with team(own_server, Payer(choices=["yes", "no"], timeout=5)) as runtime:
        chunks = [chunk async for chunk in runtime.ask_stream("payer", "Go on?", timeout=10, on_query=reply)]
        assert [event async for event in runtime.event_bus.replay()] == []
    assert chunks == ["yes"]
    assert prompts == ["Go on? (yes / no)"] * 2


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_answer_asks_by_an_event_where_the_asker_answers_nothing(
    own_server: NatsServer, streamed: bool
) -> None:
    async with team(own_server, Payer(timeout=5)) as runtime:
        asking = asyncio.create_task(ask(runtime, streamed=streamed))
        (asked,) = await requests(runtime)
        await runtime.event_bus.emit("approval.answered", {"id": asked["id"], "answer": "sure"})
        assert await asking == "sure"


async def ask(runtime: AgentRuntime, *, streamed: bool) -> str:
    if not streamed:
        return await runtime.ask_peer("payer", "Go on?", timeout=10)
    return "".join([chunk async for chunk in runtime.ask_stream("payer", "Go on?", timeout=10)])


async def test_an_agent_that_declares_no_wait_is_told(own_server: NatsServer) -> None:
    async with team(own_server, Payer(), waits=[]) as runtime:
        run = await runtime.inject_event("payer", {"type": "invoice"})
        with pytest.raises(RunFailedError, match=r"has not declared that it waits for 'approval\.answered'"):
            await run.result(10)
        assert [event async for event in runtime.event_bus.replay()] == []


def test_the_right_to_ask_comes_with_the_wait() -> None:
    plugins = Plugins.load()
    spec = AgentProcess("payer", agent=Payer(), waits=["approval.*"], emits=["paid"]).spec
    needs = agent_needs("payer", spec, plugins)
    assert {Right("emit", "approval.requested"), Right("emit", "paid"), Right("replay", "approval.*")} <= set(needs)
    assert Right("emit", ">") not in needs
    free = AgentProcess("payer", agent=Payer(), emits=["paid"]).spec
    assert Right("emit", "approval.requested") not in agent_needs("payer", free, plugins)
