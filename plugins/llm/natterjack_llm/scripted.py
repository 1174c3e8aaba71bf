"""Models that answer what a test wrote down: `model = "scripted:module:function"`.

The function is given what the model would see, and returns a text, a `Call` or several, or raises.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from natterjack import ConfigError

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models.function import AgentInfo, FunctionModel


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool that a script makes.

    Attributes:
        name: The tool's name, or `final_result` for structured output.
        arguments: Its arguments.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a scripted model sees.

    Attributes:
        prompt: What it was told last by its agent: the event or the question.
        results: What came of its calls so far, oldest first.
        tools: Names of what it may call, with their descriptions.
        instructions: The agent's.
        messages: The whole conversation, as `pydantic_ai` has it.
    """

    prompt: str
    results: Sequence[Any]
    tools: Mapping[str, str]
    instructions: str
    messages: Sequence[Any]


Script = Callable[[Seen], Any]


def imported(target: str) -> Any:
    """Return what `module:name` means.

    Raises:
        ConfigError: It cannot be imported.
    """
    module, colon, name = target.partition(":")
    try:
        found = importlib.import_module(module) if module and colon else None
    except ImportError as error:
        msg = f"{target!r} cannot be imported: {error}"
        raise ConfigError(msg) from error
    if not name or not hasattr(found, name):
        msg = f"{target!r} cannot be imported; write 'module:name'"
        raise ConfigError(msg)
    return getattr(found, name)


def scripted_model(script: str | Script) -> FunctionModel:
    """Return a model that does what a function says, or the function that `module:name` means."""
    from pydantic_ai.models.function import DeltaToolCall, FunctionModel

    told = imported(script) if isinstance(script, str) else script

    async def respond(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return _response(await _answer(told, messages, info))

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        answer = await _answer(told, messages, info)
        if isinstance(answer, str):
            for word in re.findall(r"\s*\S+\s*", answer):
                yield word
        else:
            for number, call in enumerate(_calls(answer)):
                yield {number: DeltaToolCall(call.name, json.dumps(call.arguments))}

    return FunctionModel(respond, stream_function=stream, model_name=getattr(told, "__name__", "scripted"))


async def _answer(script: Script, messages: list[ModelMessage], info: AgentInfo) -> Any:
    answer = script(_seen(messages, info))
    return await answer if inspect.isawaitable(answer) else answer


def _calls(answer: Any) -> list[Call]:
    calls = [answer] if isinstance(answer, Call) else list(answer)
    if not calls or not all(isinstance(call, Call) for call in calls):
        msg = f"a script returned {answer!r}; return text, a Call or a list of them"
        raise ConfigError(msg)
    return calls


def _response(answer: Any) -> ModelResponse:
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart

    if isinstance(answer, str):
        return ModelResponse([TextPart(answer)])
    return ModelResponse([ToolCallPart(call.name, dict(call.arguments)) for call in _calls(answer)])


def _seen(messages: list[ModelMessage], info: AgentInfo) -> Seen:
    from pydantic_ai.messages import ToolReturnPart, UserPromptPart

    parts = [part for message in messages for part in message.parts]
    prompts = [place for place, part in enumerate(parts) if isinstance(part, UserPromptPart)]
    last = parts[prompts[-1] :] if prompts else []
    prompt = last[0].content if last and isinstance(last[0], UserPromptPart) else ""
    return Seen(
        prompt if isinstance(prompt, str) else " ".join(map(str, prompt)),
        [part.content for part in last if isinstance(part, ToolReturnPart)],
        {tool.name: tool.description or "" for tool in info.function_tools},
        info.instructions or "",
        messages,
    )
