"""`build_agent`: a model agent in a program of one's own. It acts in a team, and serves nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Self, TypeVar

from natterjack import (
    AgentSpec,
    Answer,
    Answers,
    AnswerStream,
    ApprovalDeniedError,
    ConfigError,
    Conversations,
    PayloadError,
    Quota,
    Server,
    SharedContext,
    TeamClient,
    ToolInfo,
    ToolSource,
    Verb,
    connect,
)
from natterjack_llm.agent import ModelAgent
from natterjack_llm.framing import text_of

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage

    from natterjack_llm.engine import Engine
    from natterjack_llm.turn import Turn

T = TypeVar("T")
ASK_TIMEOUT = 60.0


async def build_agent(
    model: str | Sequence[str],
    servers: Mapping[str, ToolSource] | None = None,
    cross_agents: Mapping[str, str] | None = None,
    instructions: str = "",
    name: str | None = None,
    *,
    server: str | Server | None = None,
    **settings: Any,
) -> LLMAgent:
    """Return a model agent that is connected to a team; close it with `aclose`, or use it in `async with`.

    Args:
        model: Provider and name, e.g. `openai:gpt-5-mini`; of several, the next one is used where one fails.
        servers: Tool servers, by the names that it calls them.
        cross_agents: Addresses of the peers that it may ask, by the names that it calls them.
        instructions: What it is for.
        name: As whom it acts; by default as the operator.
        server: The NATS server's URL; by default `NATS_URL`, or the broker of this folder.
        settings: Further ones of `ModelConfig`.

    Raises:
        ConfigError: The model's key or package is missing, a setting is wrong, or no server is named.
        ConnectError: The NATS server cannot be reached.
        StartError: A tool server is not there.
    """
    agent = ModelAgent.create({"model": model, "instructions": instructions, **settings})
    who = {} if name is None else {"name": name}
    joining = connect(server, context=False, cross_agents=cross_agents, servers=servers, **who)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(joining)
        await agent.start()
        stack.push_async_callback(agent.stop)
        return LLMAgent(agent.engine, client, stack.pop_all(), dict(cross_agents or {}))


class LLMAgent:
    """A model agent in a program; see `build_agent`."""

    def __init__(self, engine: Engine, client: TeamClient, stack: AsyncExitStack, peers: Mapping[str, str]) -> None:
        self._engine, self._client, self._stack, self._peers = engine, client, stack, peers

    async def __aenter__(self) -> Self:
        """Nothing is left to do."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Disconnect from the team and its tool servers."""
        await self._stack.aclose()

    async def ainvoke(self, input: str | Mapping[str, Any]) -> Answer:
        """Have the model answer, with its tools and peers.

        Args:
            input: A question; or `{"messages": [{"role": "user", "content": …}, …]}`, whose last one is the question.
                With `"conversation_id": …` beside it, the messages go on with that conversation.

        Returns:
            The answer; its `messages` are the whole conversation, its `usage` what it took.

        Raises:
            PayloadError: The input is none.
            LimitError: It met a limit.
            ModelError: The model did not answer well.
        """
        turn = self._turn()
        async for _ in self._engine.run(turn, *_read(input)):
            pass
        return _answer(turn, self._client.bus.principal)

    async def astream(self, input: str | Mapping[str, Any]) -> AsyncGenerator[str]:
        """Have the model answer, in chunks as they come; see `ainvoke`. Who leaves early calls its `aclose`."""
        async with aclosing(self._engine.run(self._turn(streams=True), *_read(input))) as chunks:
            async for chunk in chunks:
                yield chunk

    async def ask_peer(
        self, name: str, question: str, *, timeout: float = ASK_TIMEOUT, conversation_id: str | None = None
    ) -> Answer:
        """Ask a peer; see `natterjack.TeamClient.ask_peer`."""
        return await self._client.ask_peer(name, question, timeout=timeout, conversation_id=conversation_id)

    async def broadcast(self, names: Iterable[str], question: str, *, timeout: float = ASK_TIMEOUT) -> Answers:
        """Ask several peers at once; see `natterjack.TeamClient.broadcast`."""
        return await self._client.broadcast(names, question, timeout=timeout)

    def ask_stream(
        self, name: str, question: str, *, timeout: float = ASK_TIMEOUT, conversation_id: str | None = None
    ) -> AnswerStream:
        """Ask a peer for its answer in chunks; see `natterjack.TeamClient.ask_stream`."""
        return self._client.ask_stream(name, question, timeout=timeout, conversation_id=conversation_id)

    def _turn(self, *, streams: bool = False) -> Turn:
        return self._engine.turn(_Here(self._client, self._peers), streams=streams)


class _Here:
    """What a turn uses of a run, in a program: nothing is journaled."""

    def __init__(self, client: TeamClient, peers: Mapping[str, str]) -> None:
        self._client, self.agent, self.tools = client, client.bus.principal, _Tools(client)
        self.run_id, self.conversations = token_hex(15), Conversations(client.bus, self.agent)
        self._quotas = Quota(client.bus, client.bus.principal), Quota(client.bus, "anyone")
        self.spec = AgentSpec.model_validate(
            {"kind": "llm", "emits": [], "publishes": [], "reads": [], "cross_agents": dict(peers)}
        )

    @property
    def shared(self) -> SharedContext:
        """There is none."""
        msg = "a model agent in a program has no shared context; give it to one of a team"
        raise ConfigError(msg)

    def heard(self, verb: Verb, /) -> Sequence[str]:
        del verb
        return ()

    async def step(self, name: str, fn: Callable[[], Awaitable[T]], /) -> T:
        del name
        return await fn()

    def quota(self, *, team: bool = False) -> Quota:
        return self._quotas[team]

    def spent(self, **usage: float) -> None:
        """The turn's result has it."""

    async def ask_human(self, question: str, *, choices: Sequence[str] = ()) -> str:
        del choices
        msg = f"nobody can be asked {question!r}: a model agent in a program waits for no human"
        raise ConfigError(msg)

    async def ask_peer(self, name: str, question: str, /) -> Answer:
        return await self._client.ask_peer(name, question)

    async def broadcast(self, names: Sequence[str], question: str, /) -> Answers:
        return await self._client.broadcast(names, question)

    async def emit(self, type: str, data: Any = None) -> int:
        return await self._client.event_bus.emit(type, data)

    async def publish(self, topic: str, data: Any = None) -> int:
        return await self._client.event_bus.publish(topic, data)


class _Tools:
    def __init__(self, client: TeamClient) -> None:
        self._client = client

    async def list(self) -> Sequence[ToolInfo]:
        return await self._client.list_tools()

    async def call_with(self, tool: str, arguments: Mapping[str, Any], /, *, approval: str | None = None) -> Any:
        del approval
        return await self._client.call_tool(tool, arguments)

    async def approve(self, question: str, /) -> str:
        raise ApprovalDeniedError(question, "", "only an agent of a team can have a human asked, and wait")


def _read(given: str | Mapping[str, Any]) -> tuple[str, list[ModelMessage], tuple[str, ...]]:
    """Return the question, the messages before it, and what their conversation is known by."""
    from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, UserPromptPart

    if isinstance(given, str):
        return given, [], ()
    history: list[ModelMessage] = []
    try:
        *before, last = [(each["role"], _text(each["content"])) for each in given["messages"]]
    except (TypeError, LookupError, ValueError) as error:
        msg = "the input has no messages; write {'messages': [{'role': 'user', 'content': 'What is new?'}]}"
        raise PayloadError(msg) from error
    for role, content in before:
        if role == "assistant":
            history.append(ModelResponse([TextPart(content)]))
        else:
            history.append(ModelRequest([UserPromptPart(content)]))
    id = given.get("conversation_id")
    return last[1], history, () if id is None else ("program", Conversations.check_id(id))


def _text(content: object) -> str:
    if not isinstance(content, str):
        raise TypeError
    return content


def _answer(turn: Turn, agent: str) -> Answer:
    from pydantic_ai import ModelMessagesTypeAdapter

    usage = turn.result.usage
    text = text_of(turn.result.output)
    messages = ModelMessagesTypeAdapter.dump_python(turn.result.all_messages(), mode="json")
    spent = {
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "tool_calls": usage.tool_calls,
    }
    return Answer(text, agent=agent, messages=messages, usage=spent)
