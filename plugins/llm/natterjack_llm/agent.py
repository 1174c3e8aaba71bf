"""The kind `llm`: an agent whose handler is a language model with tools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, ClassVar

from pydantic_core import to_json

from natterjack import Agent, Event, Right, RunContext
from natterjack_llm.config import ModelConfig
from natterjack_llm.framing import event_prompt


class ModelAgent(Agent):
    """A language model works on events and answers questions, with the tools that its agent may use.

    Example in a team file::

        [agents.analyst]
        kind = "llm"
        model = "openai:gpt-5-mini"
        instructions = "Rate the findings from 1 to 5."
        on = ["research.complete"]
        emits = ["analysis.*"]
        asks = ["researcher"]
    """

    name: ClassVar[str] = "llm"

    class Config(ModelConfig):
        """Settings of a model agent."""

    def __init__(self, config: ModelConfig) -> None:
        """Make one; a model that cannot be used is an error now.

        Raises:
            ConfigError: The model's key or package is missing, or a setting is wrong.
        """
        from natterjack_llm.engine import Engine  # 2 s and 80 MB, for those that have a model agent

        super().__init__(config)
        self.engine = Engine(config)

    def needs(self, agent: str) -> list[Right]:
        """Return the right to the agent's conversations."""
        return [Right("converse", agent)]

    async def start(self) -> None:
        """Open the model's client."""
        await self.engine.start()

    async def stop(self) -> None:
        """Close it."""
        await self.engine.stop()

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        """Have the model work on an event, and return its output."""
        turn = self.engine.turn(ctx)
        async for _ in self.engine.run(turn, event_prompt(event), conversation=self._conversation_of(event)):
            pass
        return turn.result.output

    async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[Any]:
        """Have the model answer a question, in chunks as they come if somebody reads them."""
        turn = self.engine.turn(ctx, streams=ctx.stream is not None)
        said, asked = False, ctx.conversations.asked
        conversation = ("ask", ctx.caller, asked) if asked else ()  # nobody goes on with what another has begun
        async with aclosing(self.engine.run(turn, question, conversation=conversation)) as chunks:
            async for chunk in chunks:
                said = True
                yield chunk
        if not said:
            yield turn.result.output

    def _conversation_of(self, event: Event) -> tuple[str, ...]:
        """Return what the conversation is known by that an event belongs to; nothing: to none."""
        path, value = self.config.conversation_by, event.data
        for name in path.split(".") if path else ():
            value = value.get(name) if isinstance(value, dict) else None
        return () if path is None or value is None else ("event", to_json(value).decode())
