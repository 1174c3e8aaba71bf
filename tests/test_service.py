"""Discovery and statistics as any NATS micro client reads them (ADR-32), and strangers that say nonsense."""

import asyncio
import json
import re
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any

import nats
import nats.micro
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.micro.service import EndpointConfig, ServiceConfig

from natterjack import AgentProcess, AgentRuntime, PeerError, PeerTimeoutError, connect
from natterjack.testing import NatsServer

# nats-py's own micro client, which stands for any other here, calls what Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


async def echo(question: str) -> str:
    """Say it again.

    And this is not the first line.
    """
    if question == "fail":
        raise ValueError
    if question == "hang":
        await asyncio.Event().wait()
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, done.set)  # work
    await done.wait()
    return question


async def team(stack: AsyncExitStack, server: NatsServer, *names: str) -> AgentRuntime:
    runtime = AgentRuntime(server.url)
    for name in names:
        runtime.add_process(AgentProcess(name=name, agent=echo))
    return await stack.enter_async_context(runtime)


async def survey(raw: Client, subject: str, count: int) -> list[dict[str, Any]]:
    """The replies of all who answer, and no more than `count` of them."""
    inbox, replies = raw.new_inbox(), asyncio.Queue[Msg]()
    subscription = await raw.subscribe(inbox, cb=replies.put)
    await raw.publish(subject, reply=inbox)
    async with asyncio.timeout(5):
        found = [json.loads((await replies.get()).data) for _ in range(count)]
    await raw.flush()
    assert replies.empty()
    await subscription.unsubscribe()
    return found


async def test_ping(own_server: NatsServer, stack: AsyncExitStack, raw: Client) -> None:
    await team(stack, own_server, "one", "two")
    pings = await survey(raw, "$SRV.PING", 2)
    assert {ping["metadata"]["session"] for ping in pings} == {"one", "two"}
    for ping in pings:
        assert ping["type"] == "io.nats.micro.v1.ping_response"
        assert ping["name"] == "agents"
        assert re.fullmatch(r"\d+\.\d+\.\d+", ping["version"])
        assert all(isinstance(value, str) for value in ping["metadata"].values())
    assert len({ping["id"] for ping in pings}) == 2
    assert sorted(await survey(raw, "$SRV.PING.agents", 2), key=str) == sorted(pings, key=str)
    (alone,) = await survey(raw, f"$SRV.PING.agents.{pings[0]['id']}", 1)
    assert alone == pings[0]


async def test_info(own_server: NatsServer, stack: AsyncExitStack, raw: Client) -> None:
    await team(stack, own_server, "one")
    (info,) = await survey(raw, "$SRV.INFO", 1)
    assert info["type"] == "io.nats.micro.v1.info_response"
    assert info["description"] == "Say it again."
    ask, prompt, status = info["endpoints"]
    assert ask == {"name": "ask", "subject": "agents.ask.one", "queue_group": "agents", "metadata": {}}
    assert (prompt["name"], prompt["subject"]) == ("prompt", "agents.prompt.natterjack.team.one")
    assert (status["name"], status["subject"]) == ("status", "agents.status.natterjack.team.one")
    assert await survey(raw, "$SRV.INFO.agents", 1) == [info]
    assert await survey(raw, f"$SRV.INFO.agents.{info['id']}", 1) == [info]


async def test_stats_count_right(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = await team(stack, own_server, "one")
    await asyncio.gather(*(runtime.ask_peer("one", "x", timeout=5.0) for _ in range(8)))
    with pytest.raises(PeerError):
        await runtime.ask_peer("one", "fail", timeout=5.0)
    with pytest.raises(PeerTimeoutError):
        await runtime.ask_peer("one", "hang", timeout=0.05)
    await raw.request("agents.ask.one", b"\xff", timeout=5)
    (stats,) = await survey(raw, "$SRV.STATS.agents", 1)
    assert stats["type"] == "io.nats.micro.v1.stats_response"
    endpoint, *_ = stats["endpoints"]
    assert (endpoint["name"], endpoint["subject"], endpoint["queue_group"]) == ("ask", "agents.ask.one", "agents")
    assert endpoint["num_requests"] == 11
    assert endpoint["num_errors"] == 3
    assert endpoint["last_error"].startswith("400:")
    assert endpoint["processing_time"] > 8 * 10_000_000  # nanoseconds
    assert endpoint["average_processing_time"] == endpoint["processing_time"] // 11
    started = datetime.fromisoformat(stats["started"])
    assert started.utcoffset() == timedelta(0)


async def test_others_scopes_verbs_and_replies_are_left_alone(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client
) -> None:
    await team(stack, own_server, "one")
    reached = asyncio.Queue[Msg]()
    await raw.subscribe("events.forged", cb=reached.put)
    inbox = raw.new_inbox()
    await raw.subscribe(inbox, cb=reached.put)
    await raw.publish("$SRV.PING.agents", reply="events.forged")
    for subject in ("$SRV.PING.other", "$SRV.PING.agents.unknown", "$SRV.PING.agents.a.b", "$SRV.SCHEMA"):
        await raw.publish(subject, reply=inbox)
    await raw.publish("$SRV.PING.agents")
    assert len(await survey(raw, "$SRV.PING", 1)) == 1
    assert reached.empty()


async def test_stopped_agent_is_gone(own_server: NatsServer, raw: Client) -> None:
    async with AgentRuntime(own_server.url) as runtime:
        assert await runtime.agents() == []
    with pytest.raises(NoRespondersError):
        await raw.request("$SRV.PING", b"", timeout=2)


async def test_discover(own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture) -> None:
    runtime = await team(stack, own_server, "two", "one")
    await runtime.ask_peer("one", "x", timeout=5.0)
    with pytest.raises(PeerError):
        await runtime.ask_peer("one", "fail", timeout=5.0)
    one, two = await runtime.agents()
    assert (one.name, one.asked, one.failed, one.description) == ("one", 2, 1, "Say it again.")
    assert 1.0 < one.milliseconds < 1000
    assert (two.name, two.asked, two.failed, two.milliseconds) == ("two", 0, 0, 0.0)
    async with connect(own_server.url) as client:
        assert [agent.name for agent in await client.agents()] == ["one", "two"]


async def test_replicas_are_told_apart(own_server: NatsServer, stack: AsyncExitStack) -> None:
    runtimes = [await team(stack, own_server, "one") for _ in range(3)]
    found = await runtimes[0].agents()
    assert [agent.name for agent in found] == ["one"] * 3
    assert len({agent.instance for agent in found}) == 3


NONSENSE = [
    b"",
    b"null",
    b"[]",
    b'"agents"',
    b"17",
    b"{",
    b"\xff\xfe",
    b"[" * 5000,
    b'{"metadata": null, "id": "x"}',
    b'{"metadata": {"agent": 3}, "id": "x"}',
    b'{"metadata": {"agent": "No Name\\u001b[2J"}, "id": "x"}',
    b'{"metadata": {"agent": "odd"}}',
    b'{"metadata": {"agent": "odd"}, "id": "x", "endpoints": 3}',
    b'{"metadata": {"agent": "odd"}, "id": "x", "endpoints": [3]}',
    b'{"metadata": {"agent": "odd"}, "id": "x", "endpoints": [{"num_requests": "many"}]}',
    b'{"metadata": {"agent": "odd"}, "id": "x", "endpoints": [{"num_requests": {}}]}',
    b'{"metadata": {"agent": "odd"}, "id": "x", "endpoints": [{"num_requests": 1e999}]}',
    b'{"metadata": {"agent": "odd"}, "id": "x", "endpoints": '
    b'[{"num_requests": 1, "processing_time": 1e308}, {"processing_time": 1e308}]}',
]


async def test_discover_ignores_malformed_strangers(own_server: NatsServer, stack: AsyncExitStack, raw: Client) -> None:
    async def nonsense(message: Msg) -> None:
        for data in NONSENSE:
            await raw.publish(message.reply, data)

    await raw.subscribe("$SRV.>", cb=nonsense)
    await raw.flush()
    runtime = await team(stack, own_server, "one")
    assert [agent.name for agent in await runtime.agents()] == ["one"]


async def test_other_micro_services_are_no_agents(own_server: NatsServer, stack: AsyncExitStack, raw: Client) -> None:
    service = await nats.micro.add_service(raw, ServiceConfig(name="weather", version="1.0.0"))
    namesake = await nats.micro.add_service(raw, ServiceConfig(name="agents", version="1.0.0"))
    runtime = await team(stack, own_server, "one")
    assert [agent.name for agent in await runtime.agents()] == ["one"]
    assert len(await survey(raw, "$SRV.PING", 3)) == 3
    await service.stop()
    await namesake.stop()


async def test_micro_client_reads_what_we_answer(own_server: NatsServer, stack: AsyncExitStack, raw: Client) -> None:
    """The fields are those that nats-py's own micro service sends, with the same types."""
    theirs = await nats.micro.add_service(raw, ServiceConfig(name="theirs", version="1.0.0", description="x"))
    endpoint = EndpointConfig(name="ask", subject="theirs.ask", handler=lambda request: None)  # type: ignore[arg-type,return-value]
    await theirs.add_endpoint(endpoint)
    await team(stack, own_server, "one")
    for verb in ("PING", "INFO", "STATS"):
        found = {reply["name"]: reply for reply in await survey(raw, f"$SRV.{verb}", 2)}
        wanted, ours = found["theirs"], found["agents"]
        assert {key: type(value) for key, value in wanted.items()}.items() <= {
            key: type(value) for key, value in ours.items()
        }.items(), verb
        if verb != "PING":
            (one,), (other, *_) = wanted["endpoints"], ours["endpoints"]
            assert set(one) - {"data"} <= set(other), verb
    await theirs.stop()
