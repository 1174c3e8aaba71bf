"""A model whose requests are steps of a run: what was answered once is not asked, and not paid, again."""

from __future__ import annotations

from typing import Any

from pydantic_ai import ModelMessagesTypeAdapter
from pydantic_ai.messages import ModelMessage, ModelResponse, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from natterjack_llm.budgets import Budgets
from natterjack_llm.turn import Turn


class JournaledModel(WrapperModel):
    """The model of one turn.

    Args:
        wrapped: The model itself.
        turn: The turn.
        budgets: What it may use.
    """

    def __init__(self, wrapped: Model, turn: Turn, budgets: Budgets) -> None:
        super().__init__(wrapped)
        self._turn, self._budgets = turn, budgets

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask the model, or return what it answered in an earlier attempt."""
        asked = False

        async def ask() -> Any:
            nonlocal asked
            asked = True
            async with self._budgets.request(self._turn.ctx):
                response = await self._ask(messages, model_settings, model_request_parameters)
            self._turn.ctx.spent(**spent(response))
            await self._budgets.spend(self._turn.ctx, response.usage.total_tokens)
            return ModelMessagesTypeAdapter.dump_python([response], mode="json")

        (response,) = ModelMessagesTypeAdapter.validate_python(await self._turn.step("model", ask))
        if not isinstance(response, ModelResponse):
            msg = f"the journal has a {type(response).__name__} where the model's answer should be"
            raise TypeError(msg)
        if self._turn.streams and not asked:
            self._turn.say(response.text or "")
        return response

    async def _ask(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> ModelResponse:
        if not self._turn.streams:
            return await self.wrapped.request(messages, settings, parameters)
        async with self.wrapped.request_stream(messages, settings, parameters) as stream:
            async for event in stream:
                if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
                    self._turn.say(event.part.content)
                elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                    self._turn.say(event.delta.content_delta)
            return stream.get()


def spent(response: ModelResponse) -> dict[str, float]:
    """Return what an answer cost."""
    usage = response.usage
    return {"requests": 1, "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
