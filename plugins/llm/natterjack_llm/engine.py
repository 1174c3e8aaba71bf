"""The model behind an agent, and how a turn of it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from textwrap import shorten
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_ai import Agent, ModelRetry, StructuredDict, UsageLimits
from pydantic_ai.exceptions import (
    AgentRunError,
    FallbackExceptionGroup,
    ModelAPIError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelRequestRejectedError,
    RunTimedOut,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import ModelMessage

from natterjack import ConfigError
from natterjack_llm.budgets import Budgets
from natterjack_llm.config import Limits, ModelConfig
from natterjack_llm.errors import LimitError, ModelError
from natterjack_llm.framing import RULES, text_of
from natterjack_llm.history import History
from natterjack_llm.journaled import JournaledModel
from natterjack_llm.models import model_of
from natterjack_llm.offers import offers
from natterjack_llm.schemas import broken, misfit
from natterjack_llm.scripted import imported
from natterjack_llm.settings import settings_of
from natterjack_llm.toolset import RETRIES, TurnToolset
from natterjack_llm.turn import Turn, TurnContext

_LONGEST: Final = 500
"""Characters of a reason: servers answer with whole pages, too."""
_FINAL: Final = (ModelRequestRejectedError, ModelQuotaExceededError)


class Engine:
    """The model of one agent.

    Args:
        config: Its settings.

    Raises:
        ConfigError: The model cannot be used, or a setting of its requests, or the output's schema is none.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config, self._model = config, model_of(config.model, config.base_url)
        self._settings, self._budgets = settings_of(config.settings), Budgets(config)
        instructions = "\n\n".join(filter(None, [config.instructions, RULES]))
        self._agent: Agent[None, Any] = Agent(
            output_type=_output_type(config.output), instructions=instructions, retries=RETRIES
        )
        if isinstance(config.output, dict):
            self._agent.output_validator(_held_to(config.output))

    async def start(self) -> None:
        """Open what the model's client needs."""
        await self._model.__aenter__()

    async def stop(self) -> None:
        """Close it."""
        await self._model.__aexit__(None, None, None)

    def turn(self, ctx: TurnContext, *, streams: bool = False) -> Turn:
        """Return a turn of this model in a run."""
        return Turn(ctx, streams=streams)

    async def run(
        self, turn: Turn, prompt: str, before: Sequence[ModelMessage] = (), conversation: Sequence[str] = ()
    ) -> AsyncGenerator[str]:
        """Go from a prompt to the turn's result; yield what the model says meanwhile, if the turn streams.

        Args:
            turn: The turn.
            prompt: The prompt.
            before: Messages that came before it.
            conversation: What the conversation is known by that the turn belongs to; nothing: to none.

        Raises:
            LimitError: The run met a limit.
            ModelError: The model did not answer well.
        """
        history = History(turn.ctx, self._config.history, conversation) if conversation else None
        recalled = [] if history is None else await history.recall()
        async with aclosing(turn.run(self._work(turn, prompt, [*recalled, *before]))) as said:
            async for text in said:
                yield text
        if history is not None:
            await history.keep(prompt, [*before, *turn.result.new_messages()], text_of(turn.result.output))

    async def _work(self, turn: Turn, prompt: str, history: Sequence[ModelMessage]) -> Any:
        limits = self._config.limits
        offered = await offers(turn) if self._config.calls else []
        toolset = TurnToolset(turn, offered, self._budgets, self._config.approve)
        try:
            return await self._agent.run(
                prompt,
                model=JournaledModel(self._model, turn, self._budgets),
                model_settings=self._settings,
                message_history=list(history),
                toolsets=[toolset],
                usage_limits=_usage_limits(limits),
                timeout=limits.seconds,
            )
        except (AgentRunError, FallbackExceptionGroup, UserError) as error:
            raise told(error, limits) from error


def _output_type(output: str | dict[str, Any] | None) -> Any:
    if output is None:
        return str
    if isinstance(output, dict):
        try:
            problem, made = broken(output), StructuredDict({"title": "result", **output})
        except UserError as error:
            problem, made = str(error), dict
        if problem:
            msg = f"'output' is no JSON schema of an object: {problem}"
            raise ConfigError(msg)
        return made
    found = imported(output)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        msg = f"'output' is {output!r}, which is no pydantic model; name one, or write a JSON schema"
        raise ConfigError(msg)
    return found


def _held_to(schema: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return a check of outputs: the library tells the model the schema, and does not hold it to that."""

    def check(output: Any) -> Any:
        if told := misfit(output, schema):
            raise ModelRetry(told)
        return output

    return check


def _usage_limits(limits: Limits) -> UsageLimits:
    return UsageLimits(
        request_limit=limits.requests, total_tokens_limit=limits.tokens, tool_calls_limit=limits.tool_calls
    )


def told(error: BaseException, limits: Limits) -> LimitError | ModelError | ConfigError:
    """Return what an error of the library means for a run: whether another attempt may help, and when."""
    if isinstance(error, UsageLimitExceeded):
        return LimitError(f"the run met a limit: {_line(error)}")
    if isinstance(error, RunTimedOut):
        return LimitError(f"the run met a limit: {limits.seconds:g} s of wall time")
    if isinstance(error, UserError):
        return ConfigError(f"the model cannot be used: {error}")
    if isinstance(error, FallbackExceptionGroup):
        causes = [told(each, limits) for each in error.exceptions]
        retry = any(cause.retry for cause in causes)
        text = "; ".join(map(str, causes))
        return ModelError(text, retry=retry, retry_after=min(cause.retry_after for cause in causes))
    if isinstance(error, ModelAPIError):
        text = f"the model {error.model_name} could not be asked: {_reason(error)}"
        return ModelError(text, retry=not isinstance(error, _FINAL), retry_after=error.retry_after or 0.0)
    # What it answered is in the journal, so that another attempt would come to the same.
    return ModelError(f"the model did not answer well: {_reason(error)}", retry=False)


def _reason(error: BaseException) -> str:
    """Return why, in one line of a bounded length: what was told, and what is behind it."""
    if isinstance(error, ModelHTTPError):
        body = error.body.get("message", error.body) if isinstance(error.body, dict) else error.body
        meant = error.suggested_model_id and f"did you mean {error.suggested_model_id!r}?"
        told = ": ".join(str(each) for each in (f"status {error.status_code}", body, meant, error.hint) if each)
    else:
        told, cause = _line(error), error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        told += "" if _line(cause) in told else f" ({_line(cause)})"
    return shorten(told, _LONGEST, placeholder=" …")


def _line(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
    return " ".join(str(error).split()).partition(". Consider raising")[0]
