"""The kind `llm`: an agent whose handler is a language model with tools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, ClassVar

from natterjack import Agent, Event, RunContext
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

    async def start(self) -> None:
        """Open the model's client."""
        await self.engine.start()

    async def stop(self) -> None:
        """Close it."""
        await self.engine.stop()

    async def handle(self, event: Event, ctx: RunContext) -> Any:
        """Have the model work on an event, and return its output."""
        turn = self.engine.turn(ctx)
        async for _ in self.engine.run(turn, event_prompt(event)):
            pass
        return turn.result.output

    async def answer(self, question: str, ctx: RunContext) -> AsyncIterator[Any]:
        """Have the model answer a question, in chunks as they come if somebody reads them."""
        turn = self.engine.turn(ctx, streams=ctx.stream is not None)
        said = False
        async for chunk in self.engine.run(turn, question):
            said = True
            yield chunk
        if not said:
            yield turn.result.output
