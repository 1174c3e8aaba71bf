"""The Synadia Agent Protocol 0.3 with its own unmodified client and host, and with the real `nats` command line."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest
from nats.aio.client import Client
from synadia_ai.agent_service import AgentService, PromptStream, RequestRejectedError
from synadia_ai.agents import Agent as RemoteAgent
from synadia_ai.agents import (
    Agents,
    Attachment,
    Envelope,
    HeartbeatPayload,
    ProtocolError,
    Query,
    QueryTimeout,
    ResponseChunk,
    StatusChunk,
)

import natterjack
from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    PeerTimeoutError,
    PeerUnavailableError,
    QueryError,
    RunContext,
)
from natterjack.peers import replies
from natterjack.testing import NatsServer, until


async def settled(raw: Client) -> None:
    """Return once the server has all from this connection: nats-py's first PING may overtake what is buffered."""
    await raw.flush()
    await raw.flush()


class Talker(Agent):
    """Does as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun: list[str] = []
        self.cancelled: list[str] = []

    async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
        self.begun.append(question)
        verb, _, rest = question.partition(" ")
        if verb == "count":
            for number in range(int(rest)):
                yield f"{number} "
        elif verb == "fail":
            yield "half"
            raise ValueError("hunter2")
        elif verb == "ask":
            try:
                yield f"you said {await ctx.query(rest, timeout=10)}"
            except QueryError as error:
                yield str(error)
        elif verb == "files":
            for file in ctx.attachments:
                yield f"{file.filename}={len(file.content)}"
        elif verb == "wait":
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.append(question)
                raise
            yield "done"


@pytest.fixture
async def talker(own_server: NatsServer, stack: AsyncExitStack) -> Talker:
    """An agent of ours that runs, in the team `zoo`."""
    talker = Talker()
    runtime = AgentRuntime(own_server.url, name="zoo")
    runtime.add_process(AgentProcess(name="parrot", agent=talker, concurrency=2))
    await stack.enter_async_context(runtime)
    return talker


@pytest.fixture
async def client(raw: Client, stack: AsyncExitStack) -> Agents:
    """The protocol's own client."""
    client = Agents(nc=raw)
    stack.push_async_callback(client.close)
    return client


@pytest.fixture
async def parrot(client: Agents, talker: Talker) -> RemoteAgent:
    """Our agent, as that client finds it."""
    (found,) = await client.discover(timeout=0.3)
    return found


async def hear(agent: RemoteAgent, prompt: Any, **more: Any) -> list[Any]:
    """All that a prompt brings."""
    async with aclosing(agent.prompt(prompt, **more)) as stream:  # type: ignore[type-var]
        return [message async for message in stream]


def text_of(messages: list[Any]) -> str:
    return "".join(message.text for message in messages if isinstance(message, ResponseChunk))


# Their client, our agents


async def test_their_client_discovers_our_agents(parrot: RemoteAgent) -> None:
    assert (parrot.agent, parrot.owner, parrot.session_name) == ("natterjack", "zoo", "parrot")
    assert (parrot.protocol_version, parrot.description) == ("0.3", "Does as it is told.")
    prompt = parrot.prompt_endpoint
    assert (prompt.subject, prompt.queue_group) == ("agents.prompt.natterjack.zoo.parrot", "agents")
    assert (prompt.max_payload_bytes, prompt.attachments_ok, prompt.min_sender_trust) == (1048576, True, "any")
    assert {endpoint.name for endpoint in parrot.endpoints} == {"ask", "prompt", "status"}


async def test_their_client_prompts_our_agents(parrot: RemoteAgent) -> None:
    messages = await hear(parrot, "count 1000")
    assert isinstance(messages[0], StatusChunk)
    assert messages[0].status == "ack"
    assert text_of(messages) == "".join(f"{number} " for number in range(1000))
    assert [message for message in messages[1:] if not isinstance(message, ResponseChunk)] == []


async def test_their_client_sends_files_and_fields_we_do_not_know(parrot: RemoteAgent) -> None:
    files = [Attachment.from_bytes("a.txt", b"12345"), Attachment.from_bytes("b.bin", bytes(range(256)))]
    assert (
        text_of(await hear(parrot, Envelope(prompt="files", later={"x": 1}), attachments=files)) == "a.txt=5b.bin=256"
    )


async def test_their_client_hears_that_work_goes_on(
    parrot: RemoteAgent, talker: Talker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "KEEP_ALIVE", 0.05)
    acks = 0
    async with aclosing(parrot.prompt("wait", timeout=5)) as stream:  # type: ignore[type-var]
        async for message in stream:
            acks += isinstance(message, StatusChunk)
            if acks == 5:
                talker.gate.set()
    assert acks >= 5


async def test_their_client_answers_our_questions(parrot: RemoteAgent) -> None:
    said = []
    async for message in parrot.prompt("ask Which year?"):
        if isinstance(message, Query):
            said.append(message.prompt)
            await message.reply("1990")
        elif isinstance(message, ResponseChunk):
            said.append(message.text)
    assert said == ["Which year?", "you said 1990"]


async def test_their_client_answers_with_an_envelope(parrot: RemoteAgent) -> None:
    said = []
    async for message in parrot.prompt("ask Who?"):
        if isinstance(message, Query):
            await message.reply(Envelope(prompt='{"not": "an envelope"}'))
        elif isinstance(message, ResponseChunk):
            said.append(message.text)
    assert said == ['you said {"not": "an envelope"}']


async def test_their_client_gets_our_errors(
    parrot: RemoteAgent, talker: Talker, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ProtocolError, match="service error 500: it failed with ValueError"):
        await hear(parrot, "fail")
    waiting = [asyncio.create_task(hear(parrot, "wait")) for _ in range(10)]
    await until(lambda: talker.begun.count("wait") == 2)
    with pytest.raises(ProtocolError, match="service error 429"):
        await hear(parrot, "one too many")
    talker.gate.set()
    assert {text_of(messages) for messages in await asyncio.gather(*waiting)} == {"done"}


async def test_their_client_hears_our_heartbeats(
    client: Agents, own_server: NatsServer, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack.service.INTERVAL", 1)
    beats: list[HeartbeatPayload] = []
    runtime = AgentRuntime(own_server.url, name="zoo")
    runtime.add_process(AgentProcess(name="parrot", agent=Talker()))
    await stack.enter_async_context(runtime)
    (found,) = await client.discover(timeout=0.3)
    client.on_heartbeat(found.instance_id, beats.append)
    await until(lambda: len(beats) >= 2)
    assert {(beat.agent, beat.owner, beat.session, beat.instance_id) for beat in beats} == {
        ("natterjack", "zoo", "parrot", found.instance_id)
    }
    assert beats[0].endpoints is not None
    assert beats[0].endpoints["prompt"].subject == found.prompt_subject
    alive = client.liveness(found.instance_id)
    assert alive is not None
    assert alive.is_online
    status = await found.status()
    assert (status.instance_id, status.interval_s, status.protocol_version) == (found.instance_id, 1, "0.3")


async def test_their_ping_reaches_our_agents(client: Agents, parrot: RemoteAgent) -> None:
    assert await client.ping(parrot.instance_id, timeout=2.0)


# The real command line


@pytest.fixture
def nats(own_server: NatsServer, nats_command: str | None) -> Callable[..., Any]:
    """Runs the real `nats` command line."""
    if nats_command is None:
        pytest.skip("the nats command line is not installed")

    async def call(*args: str) -> str:
        environment = {**os.environ, "NATS_URL": own_server.url, "HOME": str(own_server.store)}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(nats_command, *args, env=environment, stdout=pipe, stderr=pipe)
        out, errors = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0, errors
        return out.decode()

    return call


REQ = ("req", "--wait-for-empty", "--reply-timeout=10s", "--timeout=20s", "--raw")


@pytest.mark.open_mode(reason="it has no key")
async def test_nats_req_prints_a_streamed_answer(talker: Talker, nats: Callable[..., Any]) -> None:
    out = await nats(*REQ, "agents.prompt.natterjack.zoo.parrot", "count 50")
    chunks = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert chunks[0] == {"type": "status", "data": "ack"}
    assert [chunk["data"] for chunk in chunks[1:]] == [f"{number} " for number in range(50)]


@pytest.mark.open_mode(reason="it has no key")
async def test_nats_micro_knows_our_agents(talker: Talker, nats: Callable[..., Any]) -> None:
    out = await nats("micro", "info", "agents")
    for told in (
        "agents.prompt.natterjack.zoo.parrot",
        "protocol_version",
        "0.3",
        "agents.status.natterjack.zoo.parrot",
    ):
        assert told in out


# Our askers, their agents


async def echo(envelope: Envelope, stream: PromptStream) -> None:
    """What their agent does."""
    verb, _, rest = envelope.prompt.partition(" ")
    if verb == "fail":
        raise ValueError("hunter2")
    if verb == "refuse":
        raise ProtocolError("not that")
    if verb == "ask":
        try:
            rest = (await stream.ask(rest, timeout=10)).prompt
        except (QueryTimeout, ProtocolError) as error:
            rest = f"nobody: {error}"
    for word in rest.split():
        await stream.send(f"<{word}>")
    await stream.send(ResponseChunk(text="!", attachments=[Attachment.from_bytes("a", b"x")]))


@pytest.fixture
async def theirs(raw: Client, stack: AsyncExitStack) -> AgentService:
    """An agent hosted by their service."""
    service = AgentService(agent="echo", owner="alice", session_name="main", nc=raw, description="Says it again.")
    service.on_prompt(echo)
    await service.start()
    stack.push_async_callback(service.stop)
    return service


ADDRESS = "agents://echo/alice/main"


class Asker(Agent):
    """Asks the other side."""

    async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
        if question == "plain":
            yield await ctx.ask_peer("friend", "say plain words", timeout=10)
            return
        async for chunk in ctx.ask_stream("friend", question, timeout=10):
            yield f"{chunk},"


@pytest.fixture
async def runtime(own_server: NatsServer, stack: AsyncExitStack) -> AgentRuntime:
    """A team of ours with an agent that asks theirs."""
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess(name="asker", agent=Asker(), cross_agents={"friend": ADDRESS}))
    return await stack.enter_async_context(runtime)


@pytest.mark.open_mode(reason="agents of others have no account")
async def test_we_ask_their_agents(theirs: AgentService, runtime: AgentRuntime) -> None:
    assert await runtime.ask_peer(ADDRESS, "say a b", timeout=10) == "<a><b>!"
    assert [chunk async for chunk in runtime.ask_stream(ADDRESS, "say a b", timeout=10)] == ["<a>", "<b>", "!"]
    assert await runtime.ask_peer("asker", "plain", timeout=10) == "<plain><words>!"
    assert await runtime.ask_peer("asker", "say a", timeout=10) == "<a>,!,"
    answers = await runtime.broadcast([ADDRESS, "agents://echo/alice/other"], "say x", timeout=10)
    assert answers == {ADDRESS: "<x>!"}
    assert list(answers.failures) == ["agents://echo/alice/other"]


@pytest.mark.open_mode(reason="agents of others have no account")
async def test_their_agents_ask_us(theirs: AgentService, runtime: AgentRuntime) -> None:
    async def on_query(query: natterjack.Query) -> str:
        return f"{query.prompt} Monday"

    chunks = runtime.ask_stream(ADDRESS, "ask When?", timeout=10, on_query=on_query)
    assert "".join([chunk async for chunk in chunks]) == "<When?><Monday>!"
    refused = await runtime.ask_peer(ADDRESS, "ask When?", timeout=5)  # at once, and not after its ten seconds
    assert refused.startswith("<nobody:>")


@pytest.mark.parametrize(("prompt", "code"), [("fail", 500), ("refuse", 400)])
@pytest.mark.open_mode(reason="agents of others have no account")
async def test_their_errors_are_ours(theirs: AgentService, runtime: AgentRuntime, prompt: str, code: int) -> None:
    with pytest.raises(PeerError) as caught:
        await runtime.ask_peer(ADDRESS, prompt, timeout=10)
    assert (type(caught.value), caught.value.code, caught.value.agent) == (PeerError, code, ADDRESS)


@pytest.mark.parametrize(("code", "kind"), [(401, PeerRefusedError), (403, PeerRefusedError), (429, PeerBusyError)])
@pytest.mark.open_mode(reason="agents of others have no account")
async def test_their_refusals_are_ours(
    raw: Client, stack: AsyncExitStack, runtime: AgentRuntime, code: int, kind: type[PeerError]
) -> None:
    class Refusing:
        async def around_request(self, ctx: Any, call_next: Any) -> None:
            raise RequestRejectedError(code, "not you")

    service = AgentService(agent="strict", owner="al", session_name="main", nc=raw, interceptors=[Refusing()])
    service.on_prompt(echo)
    await service.start()
    stack.push_async_callback(service.stop)
    with pytest.raises(kind, match="not you"):
        await runtime.ask_peer("agents://strict/al/main", "?", timeout=10)


async def test_their_agent_that_is_not_there(theirs: AgentService, runtime: AgentRuntime) -> None:
    with pytest.raises(PeerUnavailableError, match="nobody serves"):
        await runtime.ask_peer("agents://echo/bob/main", "?", timeout=5)


async def test_no_agents_at_all_is_known_at_once(own_server: NatsServer, stack: AsyncExitStack) -> None:
    async with natterjack.connect(own_server.url, context=False) as team:
        with pytest.raises(PeerUnavailableError):
            await team.ask_peer(ADDRESS, "?", timeout=0.2)


async def test_their_agent_that_takes_too_long(raw: Client, stack: AsyncExitStack, runtime: AgentRuntime) -> None:
    async def sleep(envelope: Envelope, stream: PromptStream) -> None:
        await asyncio.Event().wait()

    service = AgentService(agent="slow", owner="alice", session_name="main", nc=raw)
    service.on_prompt(sleep)
    await service.start()
    stack.push_async_callback(service.stop)
    with pytest.raises(PeerTimeoutError):
        await runtime.ask_peer("agents://slow/alice/main", "?", timeout=0.3)


@pytest.mark.open_mode(reason="agents of others have no account")
async def test_their_agents_are_listed_by_address(theirs: AgentService, runtime: AgentRuntime) -> None:
    await runtime.ask_peer(ADDRESS, "say a", timeout=10)
    found = {agent.name: agent for agent in await runtime.agents()}
    assert set(found) == {ADDRESS, "asker"}
    assert (found[ADDRESS].asked, found[ADDRESS].instance) == (1, theirs.instance_id)


@pytest.mark.open_mode(reason="agents of others have no account")
async def test_subject_comes_from_discovery_and_does_no_harm(
    raw: Client, runtime: AgentRuntime, stack: AsyncExitStack
) -> None:
    reached = []

    async def tell(message: Any) -> None:
        metadata = {"agent": "odd", "owner": "o", "session": "s"}
        for subject in ("events.forged", "$KV.context.plan", "agents.prompt.*.o.s", "team.odd.prompts"):
            endpoints = [{"name": "prompt", "subject": subject}]
            await raw.publish(message.reply, json.dumps({"metadata": metadata, "endpoints": endpoints}).encode())

    async def answer(message: Any) -> None:
        reached.append(message.subject)
        await raw.publish(message.reply, b'{"type":"response","data":"custom"}')
        await raw.publish(message.reply)

    for subject in ("events.forged", "$KV.context.plan", "team.odd.prompts"):
        await raw.subscribe(subject, cb=answer)
    await raw.subscribe("$SRV.INFO.agents", cb=tell)
    await settled(raw)
    assert await runtime.ask_peer("agents://odd/o/s", "?", timeout=5) == "custom"
    assert reached == ["team.odd.prompts"]
