"""`natterjack agents`: load, lag and queues as they are, and who is missing."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from nats.aio.client import Client

from natterjack import Agent, AgentProcess, AgentRuntime, EventTrigger
from natterjack.bus import Bus
from natterjack.errors import RunFailedError
from natterjack.messages import Event
from natterjack.runs import RunContext
from natterjack.service import discover
from natterjack.testing import NatsServer, until
from natterjack.testing.command import Cli


class Slow(Agent):
    """Works until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def handle(self, event: Event, ctx: RunContext) -> None:
        if event.type == "poison":
            msg = "no"
            raise ValueError(msg)
        await self.go.wait()

    async def answer(self, question: str, ctx: RunContext) -> str:
        await self.go.wait()
        return question


@pytest.fixture
def slow() -> Slow:
    return Slow()


def team(server: NatsServer, *agents: tuple[str, Agent]) -> AgentRuntime:
    runtime = AgentRuntime(server.url)
    for name, agent in agents:
        runtime.add_process(
            AgentProcess(name, agent=agent, triggers=[EventTrigger("job.*")], concurrency=2, max_attempts=1)
        )
    return runtime


async def table(cli: Cli, server: NatsServer) -> Any:
    return await asyncio.to_thread(cli.json, "agents", "--server", server.url)


async def test_load_lag_and_queue(own_server: NatsServer, cli: Cli, slow: Slow, bus: Bus) -> None:
    async with team(own_server, ("slow", slow)) as runtime:
        (idle,) = await runtime.agents()
        assert (idle.slots, idle.busy, idle.answering, idle.waiting) == (2, 0, 0, 0)
        for _ in range(5):
            await runtime.event_bus.emit("job.new")
        for _ in range(4):
            await runtime.inject_event("slow", {"type": "own"})
        asks = [asyncio.create_task(runtime.ask_peer("slow", "?", timeout=60)) for _ in range(3)]

        async def busy() -> bool:
            (info,) = await discover(bus, ["slow"])
            held = [each["num_ack_pending"] for each in await bus.consumer_infos("INBOX")]
            return (info.busy, info.answering, info.waiting, *held) == (2, 2, 1, 2)

        await until(busy)
        (told,) = await table(cli, own_server)
        assert (told["name"], told["running"], told["slots"]) == ("slow", True, 2)
        assert (told["busy"], told["answering"], told["waiting"]) == (2, 2, 1)
        assert (told["lag"], told["inbox"]) == (3, 2)
        assert {(each["trigger"], each["pending"], each["held"]) for each in told["triggers"]} == {
            ("event-job+@", 3, 2),
            ("inbox", 2, 2),
        }
        assert datetime.now(UTC) - datetime.fromisoformat(told["seen"]) < timedelta(seconds=60)
        text = await asyncio.to_thread(cli.text, "agents", "--server", own_server.url)
        head, row = (line.split() for line in text.splitlines())
        assert head == ["agent", "id", "load", "asks", "lag", "inbox", "asked", "failed", "seen", "version"]
        assert row == ["slow", told["instance"][:6], "2/2", "2/2+1", "3", "2", "3", "0", "now", told["version"]]
        slow.go.set()
        await asyncio.gather(*asks)

        async def idle_again() -> bool:
            (info,) = await discover(bus, ["slow"])
            return (info.busy, info.answering, info.waiting) == (0, 0, 0)

        await until(idle_again)


async def test_each_replica_has_a_row(own_server: NatsServer, cli: Cli, slow: Slow) -> None:
    async with team(own_server, ("slow", slow)), team(own_server, ("slow", slow)):
        rows = await table(cli, own_server)
    assert [row["name"] for row in rows] == ["slow", "slow"]
    assert len({row["instance"] for row in rows}) == 2


async def test_who_is_missing_and_what_waits_for_them(own_server: NatsServer, cli: Cli, bus: Bus) -> None:
    async with team(own_server, ("known", Slow()), ("silent", Slow())) as runtime:
        run = await runtime.inject_event("known", {"type": "poison"})
        with pytest.raises(RunFailedError):
            await run.result(60)
    await bus.store("events.job.new", b"1")
    await bus.store("inbox.silent.hello", b"1")
    known, silent = await table(cli, own_server)
    assert (known["name"], known["running"], known["lag"], known["inbox"]) == ("known", False, 1, 0)
    assert (silent["name"], silent["running"], silent["lag"], silent["inbox"]) == ("silent", False, 1, 1)
    assert silent["seen"] is None
    assert datetime.now(UTC) - datetime.fromisoformat(known["seen"]) < timedelta(seconds=60)
    lines = (await asyncio.to_thread(cli.text, "agents", "--server", own_server.url)).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["known", "absent"], ["silent", "absent"]]
    assert lines[1].endswith(" s ago")
    assert lines[2].endswith("never")


async def test_statistics_carry_the_load_as_data(own_server: NatsServer, raw: Client, slow: Slow) -> None:
    async with team(own_server, ("slow", slow)):
        reply = await raw.request("$SRV.STATS.agents", timeout=5)
    told = {endpoint["name"]: endpoint["data"] for endpoint in json.loads(reply.data)["endpoints"]}
    idle = {"slots": 2, "busy": 0, "answering": 0, "waiting": 0}
    assert told == {"ask": idle, "prompt": idle, "status": idle}


@pytest.mark.open_mode(reason="agents of others have no account")
@pytest.mark.parametrize("data", [None, 5, "many", {"slots": "x"}, {"busy": []}, {"more": 1}])
async def test_a_stranger_may_tell_anything(own_server: NatsServer, raw: Client, bus: Bus, data: Any) -> None:
    async def answer(message: Any) -> None:
        endpoint = {"name": "ask", "num_requests": 1, "processing_time": 5, "data": data}
        body = {"id": "x", "metadata": {"agent": "other", "owner": "me"}, "endpoints": [endpoint]}
        await message.respond(json.dumps(body).encode())

    await raw.subscribe("$SRV.STATS.agents", cb=answer)
    await raw.flush()
    assert [info.slots for info in await discover(bus, ())] in ([0], [])
