"""Tools each call of which a human must allow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    ApprovalDeniedError,
    Bus,
    Envelope,
    Event,
    RunContext,
    RunFailedError,
    Server,
    TeamClient,
    connect,
)
from natterjack.testing import NatsServer, until
from natterjack_mcp import Caller, HasRole, MCPServer, NatsServerSpec, ToolApprovalError, ToolRefusedError
from natterjack_mcp.approval import question
from natterjack_mcp.client import NatsTools
from natterjack_mcp.service import NatsService


class Press:
    """A server that publishes what a human allows, and what it published."""

    def __init__(self) -> None:
        self.server = MCPServer("press")
        self.published: list[str] = []
        self.server.tool(approval=True, guards=[HasRole("writer")])(self.publish)
        self.server.tool()(self.count)

    async def publish(self, title: str) -> str:
        self.published.append(title)
        return f"{title} is out"

    async def count(self) -> int:
        return len(self.published)


class Writer(Agent):
    """Publishes, and remembers how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[Any] = []

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        titles = event.data["titles"]
        try:
            calls = (ctx.tools.call("press.publish", title=title) for title in titles)
            self.ended.append(await asyncio.gather(*calls) if len(titles) > 1 else await next(calls))
        except PermissionError as error:
            self.ended.append(error)
            raise
        return self.ended[-1]


class Place:
    def __init__(self, runtime: AgentRuntime, team: TeamClient, bus: Bus, press: Press, writer: Writer) -> None:
        self.runtime, self.team, self.bus, self.press, self.writer = runtime, team, bus, press, writer
        self.tools = NatsTools("press", bus)

    async def write(self, *titles: str) -> Any:
        return await self.runtime.inject_event("writer", {"type": "write", "titles": titles})

    async def waiting(self, count: int = 1) -> list[Any]:
        async def asked() -> list[Any]:
            found = await self.team.approvals.waiting()
            return found if len(found) == count else []

        return await until(asked)

    async def call(self, approval: str, title: str = "Toads") -> Any:
        return await self.tools.call("publish", {"title": title}, timeout=10, envelope=Envelope(approval=approval))


@asynccontextmanager
async def running(server: NatsServer, *, roles: str = "writer", **settings: Any) -> AsyncIterator[Place]:
    press, writer = Press(), Writer()
    mine = await Bus.connect(Server(server.url), principal="writer")
    theirs = await Bus.connect(Server(server.url), principal="press")
    service = NatsService(press.server, theirs, roles_of=lambda _: frozenset({roles}))
    runtime = AgentRuntime(server.url)
    settings = {"waits": ["approval.answered"], "retry_delay": 0.05, **settings}
    runtime.add_process(AgentProcess("writer", agent=writer, servers={"press": NatsServerSpec("press")}, **settings))
    await service.start()
    try:
        async with runtime, connect(server.url) as team:
            yield Place(runtime, team, mine, press, writer)
    finally:
        await service.drain(1.0)
        await mine.close()
        await theirs.close()


@pytest.fixture
async def place(own_server: NatsServer) -> AsyncIterator[Place]:
    async with running(own_server) as place:
        yield place


async def test_a_call_waits_for_a_human_and_is_then_made_once(place: Place) -> None:
    run = await place.write("Toads")
    (asked,) = await place.waiting()
    assert asked.question == 'May writer call press.publish with {"title":"Toads"}?'
    assert (asked.agent, asked.choices, place.press.published) == ("writer", ("yes",), [])
    await place.team.approvals.answer(asked.id, "yes", by="eve")
    assert await run.result(30) == "Toads is out"
    assert place.press.published == ["Toads"]


async def test_what_a_human_denies_is_not_called(place: Place) -> None:
    run = await place.write("Toads")
    (asked,) = await place.waiting()
    await place.team.approvals.deny(asked.id, reason="not today", by="eve")
    with pytest.raises(RunFailedError, match=r"eve said no to 'May writer call press\.publish .*not today"):
        await run.result(30)
    assert isinstance(place.writer.ended[-1], ApprovalDeniedError)
    assert place.press.published == []


async def test_each_of_several_calls_has_its_own_question(place: Place) -> None:
    run = await place.write("Toads", "Frogs", "Newts")
    for asked in await place.waiting(3):
        await place.team.approvals.answer(asked.id, "yes")
    assert await run.result(30) == ["Toads is out", "Frogs is out", "Newts is out"]
    assert sorted(place.press.published) == ["Frogs", "Newts", "Toads"]


async def test_guards_come_before_humans(own_server: NatsServer) -> None:
    async with running(own_server, roles="reader") as place:
        run = await place.write("Toads")
        with pytest.raises(RunFailedError, match="HasRole"):
            await run.result(30)
        assert await place.team.approvals.waiting() == []
        assert isinstance(place.writer.ended[-1], ToolRefusedError)


async def test_only_this_call_is_allowed_by_somebody_else_and_not_for_long(
    place: Place,
) -> None:
    run = await place.write("Toads")
    (asked,) = await place.waiting()
    request = [event async for event in place.runtime.event_bus.replay("approval.requested")][-1]
    none = f"{request.sequence}-{request.sequence}"
    await place.team.approvals.answer(asked.id, "yes")
    assert await run.result(30) == "Toads is out"
    answer = [event async for event in place.runtime.event_bus.replay("approval.answered")][-1]
    own = await _answered_by(place.bus, asked.id)
    other = await _asked_by(place.bus, asked.id, "Pay 1 EUR?")
    right = f"{request.sequence}-{answer.sequence}"
    bad = ["", "1", "1-2-3", "x-y", "9" * 40 + "-1", "-", f"{request.sequence}-999999", none]
    bad += [f"{request.sequence}-{own}", f"{other}-{answer.sequence}", f"{answer.sequence}-{request.sequence}"]
    for each in bad:
        with pytest.raises(ToolApprovalError, match=r"a human must allow each call of press\.publish"):
            await place.call(each)
    with pytest.raises(ToolApprovalError):
        await place.call(right, title="Frogs")
    assert place.press.published == ["Toads"]
    with pytest.raises(ToolApprovalError, match="a yes is good for one"):
        await place.call(right)
    assert place.press.published == ["Toads"]


async def test_a_yes_that_comes_to_nothing_for_an_hour_is_none(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natterjack.approvals.FRESH", -1.0)
    run = await place.write("Toads")
    (asked,) = await place.waiting()
    await place.team.approvals.answer(asked.id, "yes")
    with pytest.raises(RunFailedError, match="within an hour"):
        await run.result(30)
    assert place.press.published == []


async def _answered_by(bus: Bus, id: str) -> int:
    """Answer as the agent itself."""
    headers = {"Natterjack": f"s={bus.principal}"}
    stored = await bus.store(
        "events.approval.answered", b'{"id": "%s", "answer": "yes"}' % id.encode(), headers=headers
    )
    return stored.sequence


async def _asked_by(bus: Bus, id: str, question: str) -> int:
    data = b'{"id": "%s", "question": "%s", "agent": "writer"}' % (id.encode(), question.encode())
    stored = await bus.store("events.approval.requested", data, headers={"Natterjack": f"s={bus.principal}"})
    return stored.sequence


async def test_without_the_team_nobody_can_be_asked() -> None:
    press = Press()
    with pytest.raises(ToolApprovalError, match="the team's agents") as caught:
        await press.server.call("publish", {"title": "Toads"}, as_caller=Caller.test("ann", roles=["writer"]))
    assert caught.value.question == 'May ann call press.publish with {"title":"Toads"}?'
    allowed = Caller.test("ann", roles=["writer"], approved=True)
    assert await press.server.call("publish", {"title": "Toads"}, as_caller=allowed) == "Toads is out"


async def test_an_agent_that_cannot_wait_for_a_human_says_so(own_server: NatsServer) -> None:
    async with running(own_server, waits=[], max_attempts=1) as place:
        run = await place.write("Toads")
        with pytest.raises(RunFailedError, match=r"has not declared that it waits for 'approval\.answered'"):
            await run.result(30)


def test_questions_differ_where_calls_do() -> None:
    long = question("press", "publish", {"text": "x" * 5000}, "ann")
    assert len(long) < 2300
    assert long != question("press", "publish", {"text": "x" * 4999 + "y"}, "ann")
    assert question("a", "b", {"x": 1, "y": 2}, "") == question("a", "b", {"y": 2, "x": 1}, "")


async def test_who_answers_for_itself_is_not_believed(place: Place) -> None:
    run = await place.write("Toads")
    (asked,) = await place.waiting()
    await _answered_by(place.bus, asked.id)
    with pytest.raises(RunFailedError, match="ToolApprovalError"):
        await run.result(30)
    assert place.press.published == []
