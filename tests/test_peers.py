"""Asking peers: answers, faults of every kind, deadlines, cancellation, limits, replicas, draining, strangers."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from natterjack import (
    Agent,
    AgentProcess,
    AgentRuntime,
    Answer,
    ConfigError,
    Envelope,
    InvalidNameError,
    PayloadError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    PeerTimeoutError,
    PeerUnavailableError,
    RunContext,
    connect,
)
from natterjack.bus import Bus
from natterjack.bus.rawclient import Incoming
from natterjack.components import Guard, PeerScheme
from natterjack.guards import Guards
from natterjack.peers import AskServer, Peers, Question
from natterjack.rights import Verb
from natterjack.server import Server
from natterjack.service import Endpoint
from natterjack.testing import NatsServer, until


async def elapse(seconds: float) -> None:
    """Work that takes so long."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, done.set)
    await done.wait()


class Echo(Agent):
    """Answers in capitals."""

    async def answer(self, question: str, ctx: RunContext) -> str:
        return question.upper()


class Slow(Agent):
    """Answers when it is let go, and remembers what became of its questions."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.begun: list[str] = []
        self.cancelled: list[str] = []

    async def answer(self, question: str, ctx: RunContext) -> str:
        self.begun.append(question)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(question)
            raise
        return f"{question}!"


async def serve(stack: AsyncExitStack, server: NatsServer, *, concurrency: int = 16, **agents: Any) -> AgentRuntime:
    runtime = AgentRuntime(server.url)
    for name, agent in agents.items():
        runtime.add_process(AgentProcess(name=name, agent=agent, concurrency=concurrency))
    return await stack.enter_async_context(runtime)


# One ask, and what comes back


async def test_answer_is_a_text_that_knows_its_agent_and_run(own_server: NatsServer, stack: AsyncExitStack) -> None:
    runtime = await serve(stack, own_server, echo=Echo())
    answer = await runtime.ask_peer("echo", "grüße", timeout=5.0)
    assert answer == "GRÜSSE"
    assert isinstance(answer, Answer)
    assert isinstance(answer, str)
    assert answer.agent == "echo"
    assert len(answer.run_id) == 24
    assert (list(answer.messages), dict(answer.usage)) == ([], {})


@pytest.mark.parametrize(
    ("given", "text"),
    [(None, ""), ("", ""), ("x", "x"), ({"a": [1]}, '{"a":[1]}'), (7, "7"), ("\u20ac" * 5, "\u20ac" * 5)],
)
async def test_what_a_handler_returns_becomes_text(
    own_server: NatsServer, stack: AsyncExitStack, given: Any, text: str
) -> None:
    async def answer(question: str) -> Any:
        return given

    runtime = await serve(stack, own_server, any=answer)
    assert await runtime.ask_peer("any", "?", timeout=5.0) == text


async def test_async_generator_answers_are_joined(own_server: NatsServer, stack: AsyncExitStack) -> None:
    class Chunks(Agent):
        async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[str]:
            for word in question.split():
                yield f"<{word}>"

    runtime = await serve(stack, own_server, chunks=Chunks())
    assert await runtime.ask_peer("chunks", "a b c", timeout=5.0) == "<a><b><c>"


async def test_absent_peer_is_known_at_once(own_server: NatsServer, stack: AsyncExitStack) -> None:
    runtime = await serve(stack, own_server, echo=Echo())
    took = []
    for _ in range(5):
        begun = time.perf_counter()
        with pytest.raises(PeerUnavailableError) as caught:
            await runtime.ask_peer("nobody", "?")
        took.append(time.perf_counter() - begun)
    assert min(took) < (0.6 if runtime.server.attests else 0.02)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.agent, caught.value.code) == ("nobody", 503)


async def test_failure_of_a_peer_shows_no_internals(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(question: str) -> str:
        secret = "hunter2 at /home/alice/app.py"
        raise ValueError(secret)

    runtime = await serve(stack, own_server, failing=failing)
    with pytest.raises(PeerError) as caught:
        await runtime.ask_peer("failing", "?", timeout=5.0)
    assert type(caught.value) is PeerError
    assert caught.value.code == 500
    for secret in ("hunter2", "alice", "Traceback", ".py", "\n"):
        assert secret not in str(caught.value)
    assert "hunter2" in caplog.text  # it is for the log of the agent


async def test_failure_in_words_that_are_no_text_is_told(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "natterjack")  # a report with a surrogate would end the test's process

    async def failing(question: str) -> str:
        raise ConfigError("wrong\r\n\ud800")

    runtime = await serve(stack, own_server, failing=failing)
    with pytest.raises(PeerError, match=r"failing: wrong \?$"):
        await runtime.ask_peer("failing", "?", timeout=5.0)


async def test_handler_that_exits_fails_its_ask_alone(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    async def leaving(question: str) -> str:
        raise SystemExit(3)

    runtime = await serve(stack, own_server, leaving=leaving, echo=Echo())
    with pytest.raises(PeerError, match="SystemExit"):
        await runtime.ask_peer("leaving", "?", timeout=5.0)
    assert await runtime.ask_peer("echo", "still here", timeout=5.0) == "STILL HERE"


async def test_agent_without_answer_says_so(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    class Deaf(Agent):
        """Answers nothing."""

    runtime = await serve(stack, own_server, deaf=Deaf())
    with pytest.raises(PeerError, match="no `async def answer"):
        await runtime.ask_peer("deaf", "?", timeout=5.0)


# Deadlines and cancellation


async def test_late_peer_times_out_and_its_handler_is_cancelled(own_server: NatsServer, stack: AsyncExitStack) -> None:
    slow = Slow()
    runtime = await serve(stack, own_server, slow=slow)
    with pytest.raises(PeerTimeoutError) as caught:
        await runtime.ask_peer("slow", "q", timeout=0.1)
    assert not isinstance(caught.value, PeerUnavailableError)
    await until(lambda: slow.cancelled == ["q"])


async def test_cancelled_asker_cancels_the_work(own_server: NatsServer, stack: AsyncExitStack) -> None:
    slow = Slow()
    runtime = await serve(stack, own_server, slow=slow)
    asking = asyncio.create_task(runtime.ask_peer("slow", "q", timeout=60.0))
    other = asyncio.create_task(runtime.ask_peer("slow", "other", timeout=60.0))
    await until(lambda: len(slow.begun) == 2)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: slow.cancelled == ["q"])
    slow.gate.set()
    assert await other == "other!"


async def test_cancelled_broadcast_cancels_all_the_work(own_server: NatsServer, stack: AsyncExitStack) -> None:
    one, two = Slow(), Slow()
    runtime = await serve(stack, own_server, one=one, two=two)
    asking = asyncio.create_task(runtime.broadcast(["one", "two"], "q", timeout=60.0))
    await until(lambda: one.begun and two.begun)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until(lambda: one.cancelled and two.cancelled)


async def test_deadline_travels_to_nested_asks(own_server: NatsServer, stack: AsyncExitStack) -> None:
    left: dict[str, float] = {}

    class First(Agent):
        async def answer(self, question: str, ctx: RunContext) -> str:
            left["first"] = ctx.deadline - time.time()
            await elapse(0.2)
            return await ctx.ask_peer("second", question, timeout=60.0)

    class Second(Agent):
        async def answer(self, question: str, ctx: RunContext) -> str:
            left["second"] = ctx.deadline - time.time()
            return f"{ctx.caller} asked"

    runtime = await serve(stack, own_server, first=First(), second=Second())
    assert await runtime.ask_peer("first", "?", timeout=3.0) == "first asked"
    assert 2.5 < left["first"] <= 3.0
    assert left["second"] < left["first"] - 0.15


async def test_late_peer_of_a_peer_is_its_failure_and_not_our_deadline(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    class Asker(Agent):
        async def answer(self, question: str, ctx: RunContext) -> str:
            return await ctx.ask_peer("nobody", question)

    runtime = await serve(stack, own_server, asker=Asker())
    with pytest.raises(PeerError) as caught:
        await runtime.ask_peer("asker", "?", timeout=30.0)
    assert type(caught.value) is PeerError
    assert caught.value.code == 500
    assert "PeerUnavailableError" in str(caught.value)


async def test_ask_that_expires_in_the_queue_gets_408(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client
) -> None:
    slow = Slow()
    runtime = await serve(stack, own_server, concurrency=1, slow=slow)
    first = asyncio.create_task(runtime.ask_peer("slow", "first", timeout=60.0))
    await until(lambda: slow.begun)
    # Another client waits longer than it tells: so it is the server's own deadline that ends it.
    reply = await raw.request("agents.ask.slow", b"second", timeout=10, headers={"Natterjack": "t=0.1"})
    assert (reply.headers or {})["Nats-Service-Error-Code"] == "408"
    assert slow.begun == ["first"]
    slow.gate.set()
    assert await first == "first!"


async def test_deadlines_of_many_asks_are_each_its_own(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client
) -> None:
    slow = Slow()
    await serve(stack, own_server, concurrency=2, slow=slow)

    async def code(told: str) -> str:
        reply = await raw.request("agents.ask.slow", told.encode(), timeout=10, headers={"Natterjack": f"t={told}"})
        return (reply.headers or {}).get("Nats-Service-Error-Code", reply.data.decode())

    asking = [asyncio.create_task(code(told)) for told in ("60", "0.2", "0.3", "0.1", "0.15")]
    ends = [await each for each in asking[1:]]
    assert ends == ["408"] * 4
    assert "60" not in slow.cancelled
    slow.gate.set()
    assert await asking[0] == "60!"


async def listening(raw: Client) -> tuple[str, Subscription]:
    inbox = raw.new_inbox()
    replies = await raw.subscribe(inbox)
    for _ in range(2):  # nats-py pings ahead of what is buffered
        await raw.flush()
    return inbox, replies


@pytest.mark.open_mode(reason="the inbox of another account is out of reach")
async def test_an_ask_that_nobody_has_begun_with_can_be_cancelled(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client
) -> None:
    slow = Slow()
    replica = await ask_server(stack, own_server, lambda question: slow.answer(question.text, None))  # type: ignore[arg-type]
    inbox, replies = await listening(raw)
    replica._on_ask(Incoming("agents.ask.shared", inbox, b"?", b"NATS/1.0\r\nNatterjack: q=secret\r\n\r\n"))
    assert replica.load == (0, 1)
    await replica._on_cancel(Incoming("agents.cancel.shared.secret", "", b"", b""))
    assert replica.load == (0, 0)
    reply = await replies.next_msg(5)
    assert (reply.headers or {})["Nats-Service-Error-Code"] == "499"
    assert slow.begun == []


@pytest.mark.open_mode(reason="the inbox of another account is out of reach")
async def test_handlers_that_arrive_together_have_tasks_of_their_own(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client
) -> None:
    async def answer(question: Question) -> Answer:
        task = asyncio.current_task()
        assert task is not None
        if question.text == "late":
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await asyncio.Event().wait()
        elif question.text == "quit":
            task.cancel()
        elif question.text == "raise":
            raise asyncio.CancelledError
        return Answer(question.text)

    replica = await ask_server(stack, own_server, answer)
    inbox, replies = await listening(raw)
    for text in ("late", "quit", "raise", "late", "plain"):
        replica._on_ask(Incoming("agents.ask.shared", inbox, text.encode(), b""))
    told = [await replies.next_msg(5) for _ in range(5)]
    codes = sorted((each.headers or {}).get("Nats-Service-Error-Code", each.data.decode()) for each in told)
    assert codes == ["499", "late", "late", "plain", "quit"]
    await until(lambda: replica.load == (0, 0))


@pytest.mark.parametrize("told", ["1e18", "9e18", "0.000001"])
async def test_odd_deadlines_do_no_harm(own_server: NatsServer, stack: AsyncExitStack, raw: Client, told: str) -> None:
    await serve(stack, own_server, echo=Echo())
    reply = await raw.request("agents.ask.echo", b"a", timeout=10, headers={"Natterjack": f"t={told}"})
    assert reply.data == b"A" or (reply.headers or {})["Nats-Service-Error-Code"] == "408"


async def test_loop_of_asks_is_ended(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    class Loop(Agent):
        async def answer(self, question: str, ctx: RunContext) -> str:
            asked.append(question)
            return await ctx.ask_peer("loop", question)

    runtime = await serve(stack, own_server, concurrency=100, loop=Loop())
    with pytest.raises(PeerError):
        await runtime.ask_peer("loop", "?", timeout=20.0)
    assert len(asked) == 17
    assert "this looks like a loop" in caplog.text


# Limits and replicas


async def test_concurrency_is_bounded_and_more_is_told_busy(own_server: NatsServer, stack: AsyncExitStack) -> None:
    slow = Slow()
    runtime = await serve(stack, own_server, concurrency=2, slow=slow)
    asking = [asyncio.create_task(runtime.ask_peer("slow", str(n), timeout=60.0)) for n in range(10)]
    await until(lambda: len(slow.begun) == 2)
    begun = time.perf_counter()
    with pytest.raises(PeerBusyError) as caught:
        await runtime.ask_peer("slow", "too many", timeout=60.0)
    assert time.perf_counter() - begun < 10  # the others take a minute
    assert caught.value.code == 429
    assert len(slow.begun) == 2
    slow.gate.set()
    assert sorted(await asyncio.gather(*asking)) == [f"{n}!" for n in range(10)]
    assert await runtime.ask_peer("slow", "again", timeout=5.0) == "again!"


async def ask_server(
    stack: AsyncExitStack, server: NatsServer, answer: Callable[..., Any], concurrency: int = 16
) -> AskServer:
    """One replica of the agent `shared`, on its own connection."""
    bus = await Bus.connect(Server(server.url), principal="shared")
    stack.push_async_callback(bus.close)
    ask, prompt = Endpoint("ask", "agents.ask.shared"), Endpoint("prompt", "agents.prompt.natterjack.team.shared")
    replica = AskServer(bus, "shared", answer, concurrency=concurrency, ask=ask, prompt=prompt)
    await replica.start()
    stack.push_async_callback(replica.drain, 0)
    return replica


async def peers_of(stack: AsyncExitStack, server: NatsServer, guards: Guards | None = None, **more: Any) -> Peers:
    bus = await Bus.connect(Server(server.url), principal="asker")
    stack.push_async_callback(bus.close)
    return Peers(bus, guards or Guards(), **more)


async def test_replicas_share_the_asks(own_server: NatsServer, stack: AsyncExitStack) -> None:
    def replica(name: str) -> Callable[..., Any]:
        async def answer(question: Question) -> Answer:
            return Answer(name)

        return answer

    for name in ("a", "b", "c"):
        await ask_server(stack, own_server, replica(name), concurrency=100)
    peers = await peers_of(stack, own_server)
    answers = await asyncio.gather(*(peers.ask("shared", "?", timeout=5.0) for _ in range(300)))
    counts = [answers.count(Answer(name)) for name in ("a", "b", "c")]
    assert sum(counts) == 300
    assert min(counts) > 30


async def test_drain_finishes_what_runs_and_sends_the_rest_to_another_replica(
    own_server: NatsServer, stack: AsyncExitStack
) -> None:
    gate, begun = asyncio.Event(), []

    async def slow(question: Question) -> Answer:
        begun.append(question.text)
        await gate.wait()
        return Answer("old")

    async def quick(question: Question) -> Answer:
        return Answer("new")

    old = await ask_server(stack, own_server, slow, concurrency=2)
    peers = await peers_of(stack, own_server)
    asking = [asyncio.create_task(peers.ask("shared", str(n), timeout=20.0)) for n in range(8)]
    await until(lambda: len(begun) == 2 and old.load == (2, 6))
    await ask_server(stack, own_server, quick)
    draining = asyncio.create_task(old.drain(20.0))
    await until(lambda: sum(task.done() for task in asking) == 6)  # at once, while the two still run
    assert not draining.done()
    gate.set()
    await draining
    assert sorted(await asyncio.gather(*asking)) == ["new"] * 6 + ["old"] * 2


async def slow_question(stack: AsyncExitStack, server: NatsServer) -> tuple[Slow, AskServer, asyncio.Task[Answer]]:
    """Return an agent that works on a question, its server, and who waits for the answer."""
    slow = Slow()

    async def answer(question: Question) -> Answer:
        return Answer(str(await slow.answer(question.text, None)))  # type: ignore[arg-type]

    replica = await ask_server(stack, server, answer)
    peers = await peers_of(stack, server)
    asking = asyncio.create_task(peers.ask("shared", "q", timeout=20.0))
    await until(lambda: slow.begun)
    return slow, replica, asking


async def test_drain_gives_up_at_its_deadline(own_server: NatsServer, stack: AsyncExitStack) -> None:
    slow, replica, asking = await slow_question(stack, own_server)
    begun = time.perf_counter()
    await replica.drain(0.2)
    assert 0.15 < time.perf_counter() - begun < 3.0
    assert slow.cancelled == ["q"]
    with pytest.raises(PeerUnavailableError):  # it asked again, and nobody is left
        await asking


async def test_cancel_is_heard_while_draining(own_server: NatsServer, stack: AsyncExitStack) -> None:
    slow, replica, asking = await slow_question(stack, own_server)
    draining = asyncio.create_task(replica.drain(20.0))
    await until(lambda: replica._draining)
    asking.cancel()
    async with asyncio.timeout(5):
        await draining
    assert slow.cancelled == ["q"]
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_no_ask_fails_when_a_replica_stops_under_load(own_server: NatsServer, stack: AsyncExitStack) -> None:
    async def answer(question: Question) -> Answer:
        await elapse(0.001)
        return Answer(question.text)

    replicas = [await ask_server(stack, own_server, answer, concurrency=8) for _ in range(2)]
    peers = await peers_of(stack, own_server)
    answered, stopping = 0, False

    async def ask_on(caller: int) -> None:
        nonlocal answered
        while not stopping:
            assert await peers.ask("shared", f"{caller}", timeout=20.0) == f"{caller}"
            answered += 1

    callers = [asyncio.create_task(ask_on(n)) for n in range(24)]
    for _ in range(10):
        before = answered
        await until(lambda before=before: answered > before + 50)  # type: ignore[misc]
        replicas.append(await ask_server(stack, own_server, answer, concurrency=8))
        await replicas.pop(0).drain(5.0)
    stopping = True
    async with asyncio.timeout(5):
        await asyncio.gather(*callers)


# Refusals


class Nobody(Guard):
    """Lets nobody ask the vault."""

    def refuse(self, principal: str, verb: Verb, what: str) -> str | None:
        return "the vault is closed" if what == "vault" else None


async def test_refused_by_a_guard(own_server: NatsServer, stack: AsyncExitStack) -> None:
    peers = await peers_of(stack, own_server, Guards([Nobody()]))
    with pytest.raises(PermissionError, match="the vault is closed") as caught:
        await peers.ask("vault", "?")
    assert isinstance(caught.value, PeerRefusedError)
    assert (caught.value.agent, caught.value.code) == ("vault", 403)


class Gopher(PeerScheme):
    """Answers for another world."""

    name = "gopher"

    async def ask(self, address: str, question: str, timeout: float) -> Answer:
        if address.endswith("broken"):
            msg = "no route"
            raise OSError(msg)
        return Answer(f"{address} {question}")


async def test_addresses(own_server: NatsServer, stack: AsyncExitStack) -> None:
    await serve(stack, own_server, echo=Echo())
    addresses = {"alias": "echo", "far": "gopher://hole", "odd": "gofer://x", "vault": "gopher://vault"}
    peers = await peers_of(stack, own_server, Guards([Nobody()]), addresses=addresses, schemes={"gopher": Gopher()})
    assert await peers.ask("alias", "a", timeout=5.0) == "A"
    assert await peers.ask("far", "a", timeout=5.0) == "gopher://hole a"
    with pytest.raises(ConfigError, match=r"Did you mean 'gopher'\? Try `natterjack install natterjack-gofer`"):
        await peers.ask("odd", "a")
    with pytest.raises(ConfigError, match=r"'far' lives at 'gopher://hole', where a conversation_id is not passed on"):
        await peers.ask("far", "a", envelope=Envelope(conversation="t"))
    with pytest.raises(PeerRefusedError, match="closed"):  # a guard knows the name, wherever it lives
        await peers.ask("vault", "a")


# Broadcast


async def test_broadcast_tells_absent_refused_failed_late_and_busy_apart(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(question: str) -> str:
        raise ValueError

    await serve(stack, own_server, echo=Echo(), failing=failing, slow=Slow(), silent=lambda_none)
    peers = await peers_of(
        stack,
        own_server,
        Guards([Nobody()]),
        addresses={"far": "gopher://hole", "broken": "gopher://broken"},
        schemes={"gopher": Gopher()},
    )
    names = ["echo", "absent", "vault", "failing", "slow", "silent", "far", "broken", "echo"]
    answers = await peers.broadcast(names, "hi", timeout=0.5)
    assert answers == {"echo": "HI", "silent": "", "far": "gopher://hole hi"}
    kinds = {name: type(error) for name, error in answers.failures.items()}
    assert kinds == {
        "absent": PeerUnavailableError,
        "vault": PeerRefusedError,
        "failing": PeerError,
        "slow": PeerTimeoutError,
        "broken": PeerError,
    }
    assert {name: error.agent for name, error in answers.failures.items()} == {name: name for name in kinds}
    combined = "\n\n".join(f"**{name}**: {answer}" for name, answer in answers.items())
    assert "None" not in combined


async def lambda_none(question: str) -> None:
    """Answer nothing."""


async def test_broadcast_with_a_fault_of_the_caller_asks_nobody(own_server: NatsServer, stack: AsyncExitStack) -> None:
    slow = Slow()
    runtime = await serve(stack, own_server, slow=slow)
    before = asyncio.all_tasks()
    with pytest.raises(InvalidNameError):
        await runtime.broadcast(["slow", "No Name"], "?")
    with pytest.raises(PayloadError):
        await runtime.broadcast(["slow"], "x" * 10_000_000)
    with pytest.raises(PayloadError, match="a question is text, not dict"):
        await runtime.broadcast(["slow"], {"a": 1})  # type: ignore[arg-type]
    assert asyncio.all_tasks() == before
    assert slow.begun == []
    assert await runtime.broadcast([], "?") == {}


# Strangers: any NATS client asks and answers


async def test_plain_text_asking(own_server: NatsServer, stack: AsyncExitStack, raw: Client) -> None:
    await serve(stack, own_server, echo=Echo())
    reply = await raw.request("agents.ask.echo", b"hello", timeout=5)
    assert reply.data == b"HELLO"
    reply = await raw.request("agents.ask.echo", b"", timeout=5)
    assert reply.data == b""


async def test_plain_responder_is_a_peer(own_server: NatsServer, stack: AsyncExitStack, raw: Client) -> None:
    async def answer(message: Msg) -> None:
        await raw.publish(message.reply, b"Mon 1 Jan")

    async def echo_headers(message: Msg) -> None:
        await message.respond(b"echoed")  # nats-py sends the request's own headers back

    await raw.subscribe("agents.ask.shell", cb=answer)
    await raw.subscribe("agents.ask.copycat", cb=echo_headers)
    await raw.flush()
    runtime = await serve(stack, own_server, echo=Echo())
    answered = await runtime.ask_peer("shell", "date", timeout=5.0)
    assert (answered, answered.agent, answered.run_id) == ("Mon 1 Jan", "shell", "")
    assert await runtime.ask_peer("copycat", "?", timeout=5.0) == "echoed"
    answers = await runtime.broadcast(["shell", "echo", "copycat"], "date", timeout=5.0)
    assert answers == {"shell": "Mon 1 Jan", "echo": "DATE", "copycat": "echoed"}
    async with connect(own_server.url) as team:
        assert await team.ask_peer("shell", "date", timeout=5.0) == "Mon 1 Jan"


@pytest.mark.parametrize(
    ("headers", "data", "code"),
    [
        ({"Nats-Service-Error": "no", "Nats-Service-Error-Code": "418"}, b"", 418),
        ({"Nats-Service-Error": "no"}, b"x", 500),
        ({"Nats-Service-Error-Code": "many"}, b"x", 500),
        ({"Nats-Service-Error-Code": "403"}, b"x", 403),
        ({"Nats-Service-Error-Code": "429"}, b"", 429),
        ({"Natterjack": "t=forged"}, b"x", 500),
        ({}, b"\xff", 500),
    ],
)
async def test_malformed_answers_are_the_peers_failure(
    own_server: NatsServer,
    stack: AsyncExitStack,
    raw: Client,
    headers: dict[str, str],
    data: bytes,
    code: int,
) -> None:
    async def answer(message: Msg) -> None:
        await raw.publish(message.reply, data, headers=headers)

    await raw.subscribe("agents.ask.odd", cb=answer)
    await raw.flush()
    peers = await peers_of(stack, own_server)
    with pytest.raises(PeerError) as caught:
        await peers.ask("odd", "?", timeout=5.0)
    assert caught.value.code == code
    answers = await peers.broadcast(["odd"], "?", timeout=5.0)
    assert answers == {}
    assert answers.failures["odd"].code == code


async def test_stranger_that_always_says_503_is_not_hammered(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client
) -> None:
    asked = 0

    async def answer(message: Msg) -> None:
        nonlocal asked
        asked += 1
        await raw.publish(message.reply, headers={"Nats-Service-Error": "closed", "Nats-Service-Error-Code": "503"})

    await raw.subscribe("agents.ask.closed", cb=answer)
    await raw.flush()
    peers = await peers_of(stack, own_server)
    with pytest.raises(PeerUnavailableError, match="closed"):
        await peers.ask("closed", "?", timeout=1.0)
    assert 3 <= asked <= 30


@pytest.mark.parametrize(
    ("question", "headers", "reason"),
    [
        (b"caf\xe9", {}, "UTF-8"),
        (b"x", {"Natterjack": "d=x"}, "malformed"),
        (b"x", {"Natterjack": "t=-1"}, "malformed"),
        (b"x", {"Natterjack": "t=nan"}, "malformed"),
        (b"x", {"Natterjack": "t=inf"}, "malformed"),
        (b"x", {"Natterjack": "d=17"}, "loop"),
    ],
)
async def test_malformed_questions_get_400(
    own_server: NatsServer,
    stack: AsyncExitStack,
    raw: Client,
    question: bytes,
    headers: dict[str, str],
    reason: str,
) -> None:
    asked = []

    async def answer(question: str) -> str:
        asked.append(question)
        return "answered"

    await serve(stack, own_server, strict=answer)
    reply = await raw.request("agents.ask.strict", question, timeout=5, headers=headers)
    assert (reply.headers or {})["Nats-Service-Error-Code"] == "400"
    assert reason in (reply.headers or {})["Nats-Service-Error"]
    assert asked == []


async def test_question_too_large_is_refused_at_the_caller(own_server: NatsServer, stack: AsyncExitStack) -> None:
    runtime = await serve(stack, own_server, echo=Echo())
    with pytest.raises(PayloadError, match=r"10,000,\d+ bytes"):
        await runtime.ask_peer("echo", "x" * 10_000_000, timeout=5.0)
    with pytest.raises(PayloadError, match="no valid text"):
        await runtime.ask_peer("echo", "\ud800", timeout=5.0)
    assert await runtime.ask_peer("echo", "fine", timeout=5.0) == "FINE"


@pytest.mark.parametrize("answered", ["x" * 10_000_000, "\ud800"])
async def test_answer_that_cannot_be_sent_is_an_error_at_the_caller(
    own_server: NatsServer, stack: AsyncExitStack, caplog: pytest.LogCaptureFixture, answered: str
) -> None:
    async def answer(question: str) -> str:
        return answered

    runtime = await serve(stack, own_server, large=answer)
    with pytest.raises(PeerError, match=r"10,000,\d+ bytes, but the server takes|UnicodeEncodeError") as caught:
        await runtime.ask_peer("large", "?", timeout=5.0)
    assert caught.value.code == 500


@pytest.mark.open_mode(reason="between accounts the server makes the reply subjects")
async def test_agent_writes_only_to_inboxes(
    own_server: NatsServer, stack: AsyncExitStack, raw: Client, caplog: pytest.LogCaptureFixture
) -> None:
    reached = []

    async def answer(question: str) -> str:
        reached.append(question)
        return "{}"

    async def store(message: Msg) -> None:
        reached.append(message.subject)

    caplog.set_level(logging.WARNING)
    await serve(stack, own_server, careful=answer)
    await raw.subscribe("events.forged", cb=store)
    await raw.subscribe("$KV.context.plan", cb=store)
    for reply in ("events.forged", "$KV.context.plan", "_INBOXX.a", ""):
        await raw.publish("agents.ask.careful", b"reflect", reply=reply)
    await raw.publish("agents.ask.careful", b"ordinary", reply="_INBOX.somebody")
    await until(lambda: "ordinary" in reached)
    await raw.flush()
    assert reached == ["ordinary"]
    assert "'events.forged'" in caplog.text
