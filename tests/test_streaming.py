"""Streamed asks between our own agents: order, early ends, questions in between, slow readers, deaths, strangers."""

import asyncio
import gc
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, ClassVar

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    AnswerStream,
    Attachment,
    ConfigError,
    InvalidNameError,
    Middleware,
    PayloadError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    PeerTimeoutError,
    PeerUnavailableError,
    Query,
    QueryError,
    QueryTimeoutError,
    RunContext,
    connect,
)
from natterjack.bus import Bus
from natterjack.components import Guard
from natterjack.guards import Guards
from natterjack.messages import Answer
from natterjack.peers import AskServer, Peers, Question, conversation, replies
from natterjack.plugins import Plugins
from natterjack.rights import Verb
from natterjack.server import Server
from natterjack.service import Endpoint
from natterjack.testing import NatsServer, until

PROMPT = "agents.prompt.natterjack.team"


class Counter(Agent):
    """Counts to the number it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0

    async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
        for number in range(int(question)):
            self.sent += 1
            yield f"{number} "


class Endless(Agent):
    """Says one word, and then waits for ever, or says more when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.ended: list[str] = []
        self.begun: list[str] = []

    async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
        self.begun.append(question)
        try:
            yield "well"
            await self.gate.wait()
            yield ", yes"
        except asyncio.CancelledError:
            self.ended.append(question)
            raise


class Curious(Agent):
    """Asks back, and tells what came of it."""

    async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
        yield "hm. "
        try:
            yield f"so {await ctx.query(question, timeout=5.0)}."
        except QueryError as error:
            yield f"{type(error).__name__}: {error}"


async def serve(stack: AsyncExitStack, server: NatsServer, *, concurrency: int = 16, **agents: Any) -> AgentRuntime:
    runtime = AgentRuntime(server.url)
    for name, agent in agents.items():
        runtime.add_process(AgentProcess(name=name, agent=agent, concurrency=concurrency))
    return await stack.enter_async_context(runtime)


async def settled(raw: Client) -> None:
    """Return once the server has all from this connection: nats-py's first PING may overtake what is buffered."""
    await raw.flush()
    await raw.flush()


async def read(stream: AnswerStream) -> list[str]:
    return [chunk async for chunk in stream]


# Chunks


async def test_chunks_come_while_the_agent_works(own_server: NatsServer, stack: AsyncExitStack) -> None:
    endless = Endless()
    runtime = await serve(stack, own_server, endless=endless)
    async with runtime.ask_stream("endless", "?", timeout=10.0) as stream:
        assert await anext(stream) == "well"
        assert len(stream.run_id) == 24
        endless.gate.set()
        assert await read(stream) == [", yes"]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    assert endless.ended == []


async def test_a_thousand_chunks_come_in_order(own_server: NatsServer, stack: AsyncExitStack) -> None:
    runtime = await serve(stack, own_server, counter=Counter())
    assert await read(runtime.ask_stream("counter", "1000")) == [f"{number} " for number in range(1000)]
    assert await runtime.ask_peer("counter", "3") == "0 1 2 "


async def test_many_streams_at_once_are_not_mixed_up(own_server: NatsServer, stack: AsyncExitStack) -> None:
    runtime = await serve(stack, own_server, counter=Counter())
    wanted = [[f"{number} " for number in range(length)] for length in range(100, 116)]
    assert await asyncio.gather(*(read(runtime.ask_stream("counter", str(len(each)))) for each in wanted)) == wanted


@pytest.mark.parametrize(
    ("given", "chunks"),
    [(None, []), ("", []), ("grüße", ["grüße"]), ({"a": [1]}, ['{"a":[1]}']), ("\0" * 3, ["\0" * 3])],
)
async def test_an_answer_that_is_no_generator_is_one_chunk(
    own_server: NatsServer, stack: AsyncExitStack, given: Any, chunks: list[str]
) -> None:
    async def answer(question: str) -> Any:
        return given

    runtime = await serve(stack, own_server, any=answer)
    assert await read(runtime.ask_stream("any", '{"looks": "like an envelope"}')) == chunks


async def test_question_arrives_as_it_is(own_server: NatsServer, stack: AsyncExitStack) -> None:
    async def echo(question: str) -> str:
        return question

    runtime = await serve(stack, own_server, echo=echo)
    for question in ('{"prompt": "inner"}', " {", "x", "", "\u20ac\n"):
        assert "".join(await read(runtime.ask_stream("echo", question))) == question


async def test_an_answer_larger_than_a_message_comes_in_parts(own_server: NatsServer, stack: AsyncExitStack) -> None:
    async def large(question: str) -> str:
        return "\0" * 1_000_000  # six bytes each as JSON

    runtime = await serve(stack, own_server, large=large)
    chunks = await read(runtime.ask_stream("large", "?"))
    assert len(chunks) > 5
    assert "".join(chunks) == "\0" * 1_000_000


async def test_agents_stream_from_agents(own_server: NatsServer, stack: AsyncExitStack) -> None:
    class Relay(Agent):
        async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
            async for chunk in ctx.ask_stream("counter", question):
                yield f"{ctx.caller}:{chunk}"

    runtime = await serve(stack, own_server, relay=Relay(), counter=Counter())
    assert await read(runtime.ask_stream("relay", "3")) == ["operator:0 ", "operator:1 ", "operator:2 "]


async def test_programs_outside_stream(own_server: NatsServer, stack: AsyncExitStack) -> None:
    await serve(stack, own_server, counter=Counter())
    async with connect(own_server.url) as team:
        assert await read(team.ask_stream("counter", "2")) == ["0 ", "1 "]


async def test_another_servers_agents_stream(own_server: NatsServer, stack: AsyncExitStack) -> None:
    class Relay(Agent):
        async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
            async for chunk in ctx.ask_stream("far", question):
                yield chunk

    await serve(stack, own_server, counter=Counter())
    with NatsServer() as near:
        runtime = AgentRuntime(near.url)
        far = f"{own_server.url}/counter"
        runtime.add_process(AgentProcess(name="relay", agent=Relay(), cross_agents={"far": far}))
        async with runtime:
            assert await read(runtime.ask_stream("relay", "2")) == ["0 ", "1 "]


async def test_whoever_answers_plain_asks_streams_in_one_chunk(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client
) -> None:
    async def answer(message: Msg) -> None:
        await raw.publish(message.reply, b"Mon 1 Jan")

    await raw.subscribe("agents.ask.shell", cb=answer)
    await settled(raw)
    runtime = await serve(stack, own_server, counter=Counter())
    assert await read(runtime.ask_stream("shell", "date")) == ["Mon 1 Jan"]


# Faults


async def test_absent_peer_is_known_at_once(own_server: NatsServer, stack: AsyncExitStack) -> None:
    runtime = await serve(stack, own_server, counter=Counter())
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        with pytest.raises(PeerUnavailableError):
            await read(runtime.ask_stream("nobody", "?"))
        took.append(time.perf_counter() - begun)
    assert min(took) < (0.6 if runtime.server.attests else 0.02)


async def test_failure_in_the_middle_comes_after_the_chunks_before_it(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Agent):
        async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
            yield "half"
            raise ValueError("hunter2")

    runtime = await serve(stack, own_server, broken=Broken())
    stream = runtime.ask_stream("broken", "?")
    assert await anext(stream) == "half"
    with pytest.raises(PeerError, match="ValueError") as caught:
        await anext(stream)
    assert (caught.value.code, "hunter2" in str(caught.value)) == (500, False)


async def test_write_that_is_refused_fails_the_stream(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    class Writer(Agent):
        async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
            await ctx.shared.set("key", 1)
            ctx.shared.set("key", 2, expected=99)
            yield "done"

    runtime = await serve(stack, own_server, writer=Writer())
    stream = runtime.ask_stream("writer", "?")
    assert await anext(stream) == "done"
    with pytest.raises(PeerError, match="ConflictError"):
        await anext(stream)


async def test_busy_peer_says_so(own_server: NatsServer, stack: AsyncExitStack) -> None:
    endless = Endless()
    runtime = await serve(stack, own_server, concurrency=1, endless=endless)
    streams = [asyncio.create_task(read(runtime.ask_stream("endless", "?"))) for _ in range(5)]
    await until(lambda: endless.begun)

    async def busy() -> bool:
        try:
            await read(runtime.ask_stream("endless", "more", timeout=0.2))
        except PeerBusyError:
            return True
        except PeerTimeoutError:
            return False
        return False

    await until(busy)
    endless.gate.set()
    assert await asyncio.gather(*streams) == [["well", ", yes"]] * 5


async def test_deadline_ends_a_stream_and_travels(own_server: NatsServer, stack: AsyncExitStack) -> None:
    left: list[float] = []

    class Relay(Agent):
        async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
            left.append(ctx.deadline - time.time())
            async for chunk in ctx.ask_stream("endless", question):
                yield chunk

    endless = Endless()
    runtime = await serve(stack, own_server, relay=Relay(), endless=endless)
    stream = runtime.ask_stream("relay", "?", timeout=0.5)
    assert await anext(stream) == "well"
    with pytest.raises(PeerTimeoutError) as caught:
        await anext(stream)
    assert caught.value.code == 408
    assert 0.2 < left[0] <= 0.5
    await until(lambda: endless.ended == ["?"])


async def test_usage_errors_come_at_once(own_server: NatsServer, stack: AsyncExitStack) -> None:
    class Nobody(Guard):
        name: ClassVar[str] = "nobody"

        def refuse(self, principal: str, verb: Verb, what: str) -> str | None:
            return "no" if what == "counter" else None

    bus = await Bus.connect(Server(own_server.url), principal="asker")
    stack.push_async_callback(bus.close)
    peers = Peers(bus, Guards([Nobody()]))
    with pytest.raises(PeerRefusedError, match="may not ask 'counter'"):
        peers.stream("counter", "?")
    with pytest.raises(InvalidNameError):
        peers.stream("No Name", "?")
    with pytest.raises(InvalidNameError, match="agents://<agent>/<owner>/<session>"):
        peers.stream("agents://echo", "?")
    with pytest.raises(ConfigError, match="no plugin resolves"):
        peers.stream("gopher://x", "?")
    with pytest.raises(PayloadError, match="no valid text"):
        peers.stream("other", "\ud800")
    with pytest.raises(PayloadError, match="bytes"):
        await read(peers.stream("other", "x" * 10_000_000))


async def test_loop_of_streams_is_ended(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    class Loop(Agent):
        async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
            asked.append(question)
            async for chunk in ctx.ask_stream("loop", question):
                yield chunk

    runtime = await serve(stack, own_server, concurrency=100, loop=Loop())
    with pytest.raises(PeerError):
        await read(runtime.ask_stream("loop", "?", timeout=20.0))
    assert len(asked) == 17


# Leaving early


async def leave_by_break(runtime: AgentRuntime) -> None:
    async for _ in runtime.ask_stream("endless", "?"):
        break
    gc.collect()


async def leave_by_context(runtime: AgentRuntime) -> None:
    async with runtime.ask_stream("endless", "?") as stream:
        await anext(stream)


async def leave_by_aclose(runtime: AgentRuntime) -> None:
    stream = runtime.ask_stream("endless", "?")
    await anext(stream)
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def leave_by_cancellation(runtime: AgentRuntime) -> None:
    begun = asyncio.Event()

    async def listen() -> None:
        async for _ in runtime.ask_stream("endless", "?"):
            begun.set()

    reading = asyncio.create_task(listen())
    await begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def leave_by_error(runtime: AgentRuntime) -> None:
    async def fail() -> None:
        async for _ in runtime.ask_stream("endless", "?"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    gc.collect()


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_context, leave_by_aclose, leave_by_cancellation, leave_by_error]
)
async def test_leaving_early_cancels_the_work(
    own_server: NatsServer, stack: AsyncExitStack, leave: Callable[[AgentRuntime], Any]
) -> None:
    endless = Endless()
    runtime = await serve(stack, own_server, endless=endless)
    other = runtime.ask_stream("endless", "other")
    assert await anext(other) == "well"
    await leave(runtime)
    await until(lambda: endless.ended == ["?"])
    endless.gate.set()
    assert await read(other) == [", yes"]  # and nobody else's
    assert endless.ended == ["?"]


class Tidy(Agent):
    """Talks for ever, and takes its time to clean up."""

    def __init__(self) -> None:
        super().__init__()
        self.cleaned: list[str] = []

    async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup() as group:  # leaves Python 3.11 with a count of cancellations
                group.create_task(asyncio.to_thread(int, "x"))
        try:
            while True:
                yield "more"
                if question == "waits":
                    await asyncio.Event().wait()
        finally:
            await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=0.05)
            self.cleaned.append(question)


@pytest.mark.parametrize("question", ["sends", "waits"])
async def test_answer_that_is_cancelled_cleans_up_at_once(
    own_server: NatsServer, stack: AsyncExitStack, question: str
) -> None:
    tidy = Tidy()
    runtime = await serve(stack, own_server, tidy=tidy)
    gc.disable()
    stack.callback(gc.enable)
    async with runtime.ask_stream("tidy", question) as stream:
        await anext(stream)
    await until(lambda: tidy.cleaned == [question])


async def test_cancel_at_the_deadline_does_not_break_off_cleaning_up(
    own_server: NatsServer, stack: AsyncExitStack
) -> None:
    tidy = Tidy()
    runtime = await serve(stack, own_server, tidy=tidy)
    with pytest.raises(PeerTimeoutError):  # asker and agent have the same deadline, and the asker cancels then, too
        await asyncio.wait_for(read(runtime.ask_stream("tidy", "waits", timeout=0.3)), 5.0)
    await until(lambda: tidy.cleaned == ["waits"])


async def test_cancelling_asker_cancels_along_the_chain(own_server: NatsServer, stack: AsyncExitStack) -> None:
    class Relay(Agent):
        async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
            async for chunk in ctx.ask_stream("endless", question):
                yield chunk

    endless = Endless()
    runtime = await serve(stack, own_server, relay=Relay(), endless=endless)
    async with runtime.ask_stream("relay", "?") as stream:
        assert await anext(stream) == "well"
    await until(lambda: endless.ended == ["?"])


async def test_stream_that_is_never_read_asks_nobody(own_server: NatsServer, stack: AsyncExitStack) -> None:
    endless = Endless()
    runtime = await serve(stack, own_server, endless=endless)
    async with runtime.ask_stream("endless", "never"):
        pass
    assert await anext(runtime.ask_stream("endless", "?")) == "well"
    assert endless.begun == ["?"]


@pytest.mark.open_mode(reason="a stranger hears no other's questions")
async def test_cancel_needs_the_unguessable_id(own_server: NatsServer, stack: AsyncExitStack, raw: Client) -> None:
    seen: list[str] = []

    async def spy(message: Msg) -> None:
        seen.append(message.headers["Natterjack"] if message.headers else "")

    await raw.subscribe(f"{PROMPT}.endless", cb=spy)
    await settled(raw)
    endless = Endless()
    runtime = await serve(stack, own_server, endless=endless)
    stream = runtime.ask_stream("endless", "?")
    assert await anext(stream) == "well"
    await raw.publish("agents.cancel.endless.0000")
    await settled(raw)
    assert endless.ended == []
    fields = dict(part.split("=") for part in seen[0].split(";"))
    assert len(fields["q"]) == 32
    await raw.publish(f"agents.cancel.endless.{fields['q']}")
    await until(lambda: endless.ended == ["?"])
    with pytest.raises(PeerError) as caught:
        await anext(stream)
    assert caught.value.code == 499


async def test_work_for_an_asker_that_is_gone_is_cancelled(
    own_server: NatsServer, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "KEEP_ALIVE", 0.05)
    monkeypatch.setattr(replies, "ABSENT", 0.5)
    endless = Endless()
    await serve(stack, own_server, endless=endless)
    async with connect(own_server.url) as team:
        stream = team.ask_stream("endless", "?", timeout=60.0)
        assert await anext(stream) == "well"
        await team.bus.close()  # as when its process dies: nobody says anything more
        await until(lambda: endless.ended == ["?"])
        with pytest.raises(PeerUnavailableError):
            await read(stream)


# Questions in between


async def test_agent_asks_back(own_server: NatsServer, stack: AsyncExitStack) -> None:
    asked: list[Query] = []

    async def on_query(query: Query) -> str:
        asked.append(query)
        return "1990"

    runtime = await serve(stack, own_server, curious=Curious())
    assert await read(runtime.ask_stream("curious", "Which year?", on_query=on_query)) == ["hm. ", "so 1990."]
    assert [query.prompt for query in asked] == ["Which year?"]
    assert len(asked[0].id) == 32


async def test_many_questions_at_once_get_each_its_own_answer(own_server: NatsServer, stack: AsyncExitStack) -> None:
    class Exam(Agent):
        async def answer(self, question: str, ctx: RunContext) -> str:
            answers = await asyncio.gather(*(ctx.query(str(number)) for number in range(5)))
            return ",".join(answers)

    async def square(query: Query) -> str:
        return str(int(query.prompt) ** 2)

    runtime = await serve(stack, own_server, exam=Exam())
    assert await read(runtime.ask_stream("exam", "?", on_query=square)) == ["0,1,4,9,16"]


async def test_question_that_nobody_answers_is_a_clear_error_at_once(
    own_server: NatsServer, stack: AsyncExitStack
) -> None:
    runtime = await serve(stack, own_server, curious=Curious())
    begun = time.perf_counter()
    streamed = "".join(await read(runtime.ask_stream("curious", "Who?")))
    plain = await runtime.ask_peer("curious", "Who?")
    assert time.perf_counter() - begun < 2.0
    assert "the asker does not answer 'Who?': this asker answers no questions; it must give `on_query`" in streamed
    assert "nobody can answer 'Who?': this agent asks back, so ask it with `ask_stream(…, on_query=…)`" in plain


async def test_asker_learns_that_it_was_to_be_asked(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    class Strict(Agent):
        async def answer(self, question: str, ctx: RunContext) -> str:
            return await ctx.query("Who?")

    runtime = await serve(stack, own_server, strict=Strict())
    with pytest.raises(PeerError, match="this agent asks back") as caught:
        await runtime.ask_peer("strict", "?")
    assert caught.value.code == 400


async def test_question_in_the_handling_of_an_event_is_an_error(own_server: NatsServer, stack: AsyncExitStack) -> None:
    class Handler(Agent):
        async def handle(self, event: Any, ctx: RunContext) -> str:
            with pytest.raises(QueryError, match="nobody can answer"):
                await ctx.query("Who?")
            return "told"

    runtime = await serve(stack, own_server, handler=Handler())
    run = await runtime.inject_event("handler", {"type": "x"})
    assert await run.result(timeout=10) == "told"


async def test_question_has_its_own_time(own_server: NatsServer, stack: AsyncExitStack) -> None:
    gave_up = asyncio.Event()

    class Hasty(Agent):
        async def answer(self, question: str, ctx: RunContext) -> str:
            try:
                return await ctx.query(question, timeout=0.1)
            except QueryTimeoutError as error:
                return str(error)
            finally:
                gave_up.set()

    async def on_query(query: Query) -> str:
        await gave_up.wait()
        return "late"

    runtime = await serve(stack, own_server, hasty=Hasty())
    (told,) = await read(runtime.ask_stream("hasty", "Who?", on_query=on_query))
    assert told.startswith("the asker did not answer 'Who?' within 0.1 s")
    assert issubclass(QueryTimeoutError, TimeoutError)


async def test_asker_whose_answer_fails_gets_its_own_error(own_server: NatsServer, stack: AsyncExitStack) -> None:
    told: list[str] = []

    class Listener(Agent):
        async def answer(self, question: str, ctx: RunContext) -> str:
            try:
                return await ctx.query("Who?")
            except QueryError as error:
                told.append(str(error))
                raise

    async def on_query(query: Query) -> str:
        raise ZeroDivisionError

    runtime = await serve(stack, own_server, listener=Listener())
    with pytest.raises(ZeroDivisionError):
        await read(runtime.ask_stream("listener", "?", on_query=on_query))
    await until(lambda: told or None)
    assert "the asker failed to answer" in told[0]


async def test_queries_deadline_ends_with_the_streams(own_server: NatsServer, stack: AsyncExitStack) -> None:
    async def on_query(query: Query) -> str:
        await asyncio.Event().wait()
        return ""

    runtime = await serve(stack, own_server, curious=Curious())
    with pytest.raises(PeerTimeoutError, match="not answered within the deadline"):
        await read(runtime.ask_stream("curious", "Who?", timeout=0.3, on_query=on_query))


# Pace


async def read_slowly(stream: AnswerStream, runtime: AgentRuntime) -> None:
    """Read on, with something else to do between two chunks."""
    async for _ in stream:
        await runtime.ask_peer("counter", "0")


async def test_slow_reader_loses_nothing_and_holds_the_agent_back(
    own_server: NatsServer, stack: AsyncExitStack
) -> None:
    counter = Counter()
    runtime = await serve(stack, own_server, counter=counter)
    window = replies.FLOW_CHUNKS * (replies.FLOW_AHEAD + 1)
    stream = runtime.ask_stream("counter", "5000")
    assert await anext(stream) == "0 "
    await until(lambda: counter.sent >= window)
    for _ in range(50):
        await asyncio.sleep(0)
    await runtime.ask_peer("counter", "0")
    assert counter.sent == window  # and not one more, though nothing was read
    chunks = ["0 "]
    async for chunk in stream:
        chunks.append(chunk)
        if len(chunks) % 500 == 0:
            await runtime.ask_peer("counter", "0")
    assert chunks == [f"{number} " for number in range(5000)]


async def test_large_chunks_are_held_back_by_their_bytes(own_server: NatsServer, stack: AsyncExitStack) -> None:
    sent = []

    class Large(Agent):
        async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
            for number in range(100):
                sent.append(number)
                yield "x" * 100_000

    runtime = await serve(stack, own_server, large=Large(), counter=Counter())
    stream = runtime.ask_stream("large", "?")
    await anext(stream)
    window = 3 * (replies.FLOW_AHEAD + 1)  # so many chunks are more bytes than may be ahead
    await until(lambda: len(sent) == window)
    await runtime.ask_peer("counter", "0")
    assert len(sent) == window
    assert len(await read(stream)) == 99


async def test_reader_that_stops_reading_ends_with_the_deadline(own_server: NatsServer, stack: AsyncExitStack) -> None:
    counter = Counter()
    runtime = await serve(stack, own_server, counter=counter)
    stream = runtime.ask_stream("counter", "100000", timeout=0.5)
    await anext(stream)
    await until(lambda: counter.sent >= replies.FLOW_CHUNKS * 3)
    with pytest.raises(PeerTimeoutError):
        await read_slowly(stream, runtime)


async def test_flood_of_a_stranger_ends_the_stream_and_not_the_program(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natterjack.bus.mailbox.ROOM", 100_000)

    async def flood(message: Msg) -> None:
        for _ in range(200):
            await raw.publish(message.reply, json.dumps({"type": "response", "data": "x" * 1000}).encode())
        await settled(raw)

    runtime = await serve(stack, own_server, counter=Counter())
    await raw.subscribe(f"{PROMPT}.flood", cb=flood)
    await settled(raw)
    stream = runtime.ask_stream("flood", "?")
    await anext(stream)
    await settled(raw)
    with pytest.raises(PeerError, match="faster than they are read"):
        await read_slowly(stream, runtime)


# Replicas


async def replica(
    stack: AsyncExitStack, server: NatsServer, answer: Callable[[Question], Any], concurrency: int = 16
) -> tuple[AskServer, Bus]:
    bus = await Bus.connect(Server(server.url), principal="shared")
    stack.push_async_callback(bus.close)
    ask, prompt = Endpoint("ask", "agents.ask.shared"), Endpoint("prompt", f"{PROMPT}.shared")
    served = AskServer(bus, "shared", answer, concurrency=concurrency, ask=ask, prompt=prompt)
    await served.start()
    stack.push_async_callback(served.drain, 0)
    return served, bus


async def test_drain_finishes_streams_and_sends_the_rest_to_another_replica(
    own_server: NatsServer, stack: AsyncExitStack
) -> None:
    gate, begun = asyncio.Event(), []

    async def slow(question: Question) -> Answer:
        assert question.stream is not None
        begun.append(question.text)
        await question.stream.send("old ")
        await gate.wait()
        await question.stream.send("still")
        return Answer("")

    async def quick(question: Question) -> Answer:
        return Answer("new")

    runtime = await serve(stack, own_server, counter=Counter())  # provisions the team
    old, _ = await replica(stack, own_server, slow, concurrency=2)
    asking = [asyncio.create_task(read(runtime.ask_stream("shared", str(n), timeout=20.0))) for n in range(8)]
    await until(lambda: len(begun) == 2 and old.load == (2, 6))
    await replica(stack, own_server, quick)
    draining = asyncio.create_task(old.drain(20.0))
    await until(lambda: sum(task.done() for task in asking) == 6)
    assert not draining.done()
    gate.set()
    await draining
    assert sorted(await asyncio.gather(*asking)) == [["new"]] * 6 + [["old ", "still"]] * 2


async def test_replica_that_dies_in_the_middle_is_an_error_soon(
    own_server: NatsServer, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "PROBE", 0.05)

    async def slow(question: Question) -> Answer:
        assert question.stream is not None
        await question.stream.send("half")
        await asyncio.Event().wait()
        return Answer("")

    runtime = await serve(stack, own_server, counter=Counter())
    _, dying = await replica(stack, own_server, slow)
    stream = runtime.ask_stream("shared", "?", timeout=60.0)
    assert await anext(stream) == "half"
    await replica(stack, own_server, slow)  # another one lives on, and would hide the death of the first
    await dying.close()  # as after kill -9: nobody says anything more
    begun = time.perf_counter()
    with pytest.raises(PeerUnavailableError, match="went away in the middle"):
        await anext(stream)
    assert time.perf_counter() - begun < 5.0


async def test_silent_peer_counts_as_dead(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "PROBE", 0.02)
    monkeypatch.setattr(conversation, "SILENCE", 0.1)

    async def ack(message: Msg) -> None:
        await raw.publish(message.reply, b'{"type":"status","data":"ack"}')

    runtime = await serve(stack, own_server, counter=Counter())
    await raw.subscribe(f"{PROMPT}.silent", cb=ack)
    await settled(raw)
    with pytest.raises(PeerTimeoutError, match="silent for more than"):
        await read(runtime.ask_stream("silent", "?", timeout=60.0))


async def test_connection_that_goes_in_the_middle_is_an_error(own_server: NatsServer, stack: AsyncExitStack) -> None:
    endless = Endless()
    await serve(stack, own_server, endless=endless)
    async with connect(own_server.url) as team:
        stream = team.ask_stream("endless", "?")
        assert await anext(stream) == "well"
        await team.bus.close()
        with pytest.raises(PeerUnavailableError):
            await anext(stream)
    endless.gate.set()


# Middleware


class Shout(Middleware):
    name: ClassVar[str] = "shout"

    async def answer(self, question: str, ctx: RunContext, call: Any) -> Any:
        return (await call(question, ctx)).upper()


class Watch(Middleware):
    name: ClassVar[str] = "watch"
    streams: ClassVar[bool] = True
    seen: ClassVar[list[str]] = []

    async def answer(self, question: str, ctx: RunContext, call: Any) -> Any:
        self.seen.append(await call(question, ctx))
        return self.seen[-1]


@pytest.mark.parametrize(("kind", "chunks"), [(Shout, ["WELL, YES"]), (Watch, ["well", ", yes"])])
async def test_middleware_that_may_change_an_answer_sees_it_whole(
    own_server: NatsServer,
    stack: AsyncExitStack,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Middleware],
    chunks: list[str],
) -> None:
    plugins = Plugins.load()
    plugins.middleware[kind.name] = kind
    monkeypatch.setattr(Plugins, "load", lambda: plugins)
    endless = Endless()
    endless.gate.set()
    runtime = await serve(stack, own_server, endless=endless)
    assert await read(runtime.ask_stream("endless", "?")) == chunks
    assert await runtime.ask_peer("endless", "?") == "".join(chunks)


# Hostile requests, and hostile answers


async def conversation_with(raw: Client, agent: str, data: bytes, headers: dict[str, str] | None = None) -> list[Msg]:
    """All that comes back on a prompt, up to the terminator."""
    inbox, messages = raw.new_inbox(), asyncio.Queue[Msg]()
    subscription = await raw.subscribe(inbox, cb=messages.put)
    await raw.publish(f"{PROMPT}.{agent}", data, reply=inbox, headers=headers)
    found: list[Msg] = []
    async with asyncio.timeout(10):
        while not found or found[-1].data or found[-1].headers:
            found.append(await messages.get())
    await settled(raw)
    assert messages.empty()
    await subscription.unsubscribe()
    return found


@pytest.mark.parametrize(
    ("data", "headers", "reason"),
    [
        (b"", {}, "empty"),
        (b"caf\xe9", {}, "UTF-8"),
        (b'{"prompt": 7}', {}, "prompt"),
        (b'{"prompt": null}', {}, "prompt"),
        (b'{"other": "x"}', {}, "prompt"),
        (b'{"prompt": "x"', {}, "prompt"),
        (b'  {"prompt": ["x"]}', {}, "prompt"),
        (b'{"prompt": "x", "attachments": 7}', {}, "attachments"),
        (b'{"prompt": "x", "attachments": [7]}', {}, "attachments"),
        (b'{"prompt": "x", "attachments": [{"filename": "a"}]}', {}, "attachments"),
        (b'{"prompt": "x", "attachments": [{"filename": "a", "content": "*"}]}', {}, "attachments"),
        (b'{"prompt": "x", "attachments": [{"filename": "a", "content": "_-8="}]}', {}, "attachments"),
        (b'{"prompt": "x", "attachments": [{"filename": 1, "content": "eA=="}]}', {}, "attachments"),
        (b'{"prompt": ' + b"[" * 5000 + b"}", {}, "levels"),
        (b"x", {"Natterjack": "d=x"}, "malformed"),
        (b"x", {"Natterjack": "t=inf"}, "malformed"),
        (b"x", {"Natterjack": "d=17"}, "loop"),
    ],
)
async def test_malformed_prompts_get_400_and_the_end(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, data: bytes, headers: dict[str, str], reason: str
) -> None:
    asked = []

    async def answer(question: str) -> str:
        asked.append(question)
        return "answered"

    await serve(stack, own_server, strict=answer)
    error, end = await conversation_with(raw, "strict", data, headers)
    assert (error.headers or {})["Nats-Service-Error-Code"] == "400"
    assert reason in (error.headers or {})["Nats-Service-Error"]
    assert (end.data, end.headers, asked) == (b"", None, [])


async def test_prompts_of_strangers_with_files_and_unknown_fields(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client
) -> None:
    class Reader(Agent):
        async def answer(self, question: str, ctx: RunContext) -> str:
            files = [(each.filename, each.content.decode()) for each in ctx.attachments]
            return json.dumps([question, files])

    await serve(stack, own_server, reader=Reader())
    file = {"filename": "a.txt", "content": "aGk=", "later": 1}
    data = json.dumps({"prompt": "read", "attachments": [file], "later": {"x": 1}}).encode()
    for sent, wanted in ((data, ["read", [["a.txt", "hi"]]]), (b" plain", [" plain", []])):
        ack, chunk, end = await conversation_with(raw, "reader", sent)
        assert json.loads(ack.data) == {"type": "status", "data": "ack"}
        assert json.loads(json.loads(chunk.data)["data"]) == wanted
        assert end.headers is None
    assert Attachment("a", b"b") == Attachment("a", b"b")


@pytest.mark.parametrize(
    ("data", "headers", "code"),
    [
        (b"plain text", {}, 500),
        (b"[]", {}, 500),
        (b'{"data": "x"}', {}, 500),
        (b'{"type": 7}', {}, 500),
        (b'{"type": "response"}', {}, 500),
        (b'{"type": "response", "data": {"text": 7}}', {}, 500),
        (b'{"type": "query", "data": {"id": "x"}}', {}, 500),
        (b'{"type": "query", "data": 7}', {}, 500),
        (b"\xff", {}, 500),
        (b"x", {"Natterjack": "t=forged"}, 500),
        (b"", {"Nats-Service-Error": "no", "Nats-Service-Error-Code": "401"}, 401),
        (b"x", {"Nats-Service-Error": "no"}, 500),
        (b"", {"Nats-Service-Error": "full", "Nats-Service-Error-Code": "429"}, 429),
    ],
)
async def test_malformed_answers_are_the_peers_failure(
    own_server: NatsServer,
    stack: AsyncExitStack,
    raw: Client,
    data: bytes,
    headers: dict[str, str],
    code: int,
) -> None:
    async def answer(message: Msg) -> None:
        await raw.publish(message.reply, data, headers=headers)

    runtime = await serve(stack, own_server, counter=Counter())
    await raw.subscribe(f"{PROMPT}.odd", cb=answer)
    await settled(raw)
    with pytest.raises(PeerError) as caught:
        await read(runtime.ask_stream("odd", "?", timeout=5.0))
    assert caught.value.code == code


async def test_unknown_chunks_are_skipped(own_server: NatsServer, stack: AsyncExitStack, raw: Client) -> None:
    said = [{"type": "status", "data": "thinking"}, {"type": "new", "data": [1]}, {"type": "flow"}]
    said += [{"type": "response", "data": {"text": "yes", "attachments": [], "later": 1}}]

    async def answer(message: Msg) -> None:
        for chunk in said:
            await raw.publish(message.reply, json.dumps(chunk).encode())
        await raw.publish(message.reply)

    runtime = await serve(stack, own_server, counter=Counter())
    await raw.subscribe(f"{PROMPT}.newer", cb=answer)
    await settled(raw)
    assert await read(runtime.ask_stream("newer", "?", timeout=5.0)) == ["yes"]


@pytest.mark.parametrize("forged", ["events.forged", "$KV.context.plan", "_INBOX.*", "agents.ask.counter", ""])
@pytest.mark.open_mode(reason="between accounts the server makes the reply subjects")
async def test_asker_writes_only_to_inboxes(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, caplog: pytest.LogCaptureFixture, forged: str
) -> None:
    reached = []
    caplog.set_level(logging.WARNING)

    async def spy(message: Msg) -> None:
        reached.append(message.subject)

    async def answer(message: Msg) -> None:
        query = {"id": "x", "reply_subject": forged, "prompt": "secret?"}
        await raw.publish(message.reply, json.dumps({"type": "query", "data": query}).encode(), reply="events.forged")
        await raw.publish(message.reply, b'{"type":"flow"}', reply="events.forged")
        await raw.publish(message.reply)

    async def on_query(query: Query) -> str:
        return "secret"

    runtime = await serve(stack, own_server, counter=Counter())
    for subject in ("events.forged", "$KV.context.plan", "_INBOX.*", "agents.ask.counter"):
        await raw.subscribe(subject, cb=spy)
    await raw.subscribe(f"{PROMPT}.liar", cb=answer)
    await settled(raw)
    assert await read(runtime.ask_stream("liar", "?", timeout=5.0, on_query=on_query)) == []
    await settled(raw)
    assert reached == []
    assert "which is no inbox" in caplog.text


@pytest.mark.open_mode(reason="between accounts the server makes the reply subjects")
async def test_agent_streams_only_to_inboxes(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    counter = Counter()
    await serve(stack, own_server, counter=counter)
    for reply in ("events.forged", "$KV.context.plan", ""):
        await raw.publish(f"{PROMPT}.counter", b"7", reply=reply)
    await conversation_with(raw, "counter", b"2")
    assert counter.sent == 2
    assert "'events.forged'" in caplog.text


async def test_nothing_is_left_behind(own_server: NatsServer, raw: Client) -> None:
    before = asyncio.all_tasks()
    async with AgentRuntime(own_server.url) as runtime:
        pass
    async with AsyncExitStack() as stack:
        endless = Endless()
        runtime = await serve(stack, own_server, endless=endless, curious=Curious())
        (host, *_) = runtime._hosts
        for _ in range(20):
            async with runtime.ask_stream("endless", "?") as stream:
                await anext(stream)
        await read(runtime.ask_stream("curious", "?"))
        await until(lambda: len(endless.ended) == 20)
        heard = host.bus._nc._subs.values
        await until(lambda: not [each for each in heard() if each._subject.startswith("agents.answer.")])
        assert runtime._running.bus._mailbox._waiting == {}
    await until(lambda: asyncio.all_tasks() == before)
