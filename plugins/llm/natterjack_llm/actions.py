"""What a small model may do next, as one JSON schema: it can be made to write such JSON, where it calls no tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition
from pydantic_core import from_json


class Actions:
    """What a model may do: call a tool, say its answer, or give its output.

    Args:
        parameters: What its request allows.
        made: The calls whose results it has, or that were refused.
        finish: Whether it must end its turn now.

    Attributes:
        schema: JSON Schema of its next action; None if it may only say something.
    """

    def __init__(
        self, parameters: ModelRequestParameters, made: Sequence[ToolCallPart] = (), *, finish: bool = False
    ) -> None:
        self._parameters, self._made = parameters, [(call.tool_name, call.args_as_dict()) for call in made]
        self._tools, self._outputs = [] if finish else parameters.function_tools, parameters.output_tools
        self._acts = bool(parameters.function_tools or parameters.output_tools)
        self._says = parameters.allow_text_output
        self.schema = self._schema()

    def _schema(self) -> dict[str, Any] | None:
        if not self._acts:
            return None
        if self._only_output:
            return self._outputs[0].parameters_json_schema
        called = [_object(tool={"const": tool.name}, arguments=tool.parameters_json_schema) for tool in self._tools]
        output = [_object(**{tool.name: tool.parameters_json_schema}) for tool in self._outputs]
        said = [_object(answer={"type": "string"})] if self._says else []
        return {"anyOf": [*called, *output, *said]}

    @property
    def _only_output(self) -> bool:
        return not self._tools and not self._says and len(self._outputs) == 1

    @property
    def rules(self) -> str:
        """What the model is told of them."""
        if self.schema is None:
            return ""
        if self._only_output:
            return f"Answer with one JSON object: {_shape(self._outputs[0])}"
        ways = [f"{tool.description} -> {_written(tool=tool.name, arguments=_shape(tool))}" for tool in self._tools]
        ways += [f"The result is known -> {_written(**{tool.name: _shape(tool)})}" for tool in self._outputs]
        ways += [f"The result is known -> {_written(answer='<your answer in one sentence>')}"] * self._says
        return "\n".join(["Choose one action and write it as JSON.", *ways])

    def said(self, text: str) -> str:
        """Return what the model has said so far, for who reads along, from what it has written so far."""
        if self.schema is None:
            return text
        action = from_json(text, allow_partial="trailing-strings") if self._says and text.strip() else None
        return action.get("answer") or "" if isinstance(action, dict) else ""

    def read(self, text: str) -> TextPart | ToolCallPart:
        """Return what the model does; an answer may be cut.

        Raises:
            ValueError: The text is none of the actions, e.g. as a call is cut.
        """
        if said := self.said(text):
            return TextPart(said)
        action = json.loads(text)
        if self._only_output:
            return ToolCallPart(self._outputs[0].name, action)
        if "tool" in action:
            return ToolCallPart(action["tool"], action["arguments"])
        ((name, value),) = action.items()
        return TextPart(value) if name == "answer" and self._says else ToolCallPart(name, value)

    def has_made(self, part: TextPart | ToolCallPart) -> bool:
        """Tell whether an action is a call that was made before: a small model would go on with it for ever."""
        return isinstance(part, ToolCallPart) and (part.tool_name, part.args_as_dict()) in self._made

    def finishing(self) -> Actions:
        """Return those of them that end its turn."""
        return Actions(self._parameters, finish=True)

    def written(self, part: object) -> str:
        """Return what the model did before, as it would have written it."""
        if isinstance(part, TextPart):
            return part.content if self.schema is None else _written(answer=part.content)
        if not isinstance(part, ToolCallPart):
            return ""
        if any(part.tool_name == tool.name for tool in self._outputs):
            return _written(**part.args_as_dict() if self._only_output else {part.tool_name: part.args_as_dict()})
        return _written(tool=part.tool_name, arguments=part.args_as_dict())


def calls(messages: Sequence[ModelMessage]) -> list[ToolCallPart]:
    """Return the calls since the last prompt, of those that came to a result or were refused."""
    found, done = list[ToolCallPart](), set[str]()
    for part in (part for message in messages for part in message.parts):
        if isinstance(part, UserPromptPart):
            found = []
        elif isinstance(part, ToolCallPart):
            found.append(part)
        elif isinstance(part, ToolReturnPart):
            done.add(part.tool_call_id)
    return [call for call in found if call.tool_call_id in done]


def rendered(messages: Sequence[ModelMessage], instructions: str, actions: Actions) -> list[dict[str, str]]:
    """Return messages as a chat of a system, a user and an assistant; of one that speaks twice, as one message."""
    system, chat = [instructions, actions.rules], list[tuple[str, str]]()
    for message in messages:
        for part in message.parts:
            if isinstance(part, SystemPromptPart):
                system.append(part.content)
            elif isinstance(message, ModelRequest):
                chat.append(("user", _told(part)))
            else:
                chat.append(("assistant", actions.written(part)))
    joined = [{"role": "system", "content": "\n\n".join(filter(None, system))}]
    for role, content in chat:
        if joined[-1]["role"] == role:
            joined[-1]["content"] += f"\n\n{content}"
        else:
            joined.append({"role": role, "content": content})
    return joined if joined[0]["content"] else joined[1:]


def _told(part: object) -> str:
    if isinstance(part, ToolReturnPart):
        return f"{part.tool_name} returned {part.model_response_str()}"
    if isinstance(part, UserPromptPart):
        content = [part.content] if isinstance(part.content, str) else part.content
        return "\n".join(each if isinstance(each, str) else str(getattr(each, "content", "")) for each in content)
    return str(getattr(part, "content", ""))


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _shape(tool: ToolDefinition) -> dict[str, str]:
    """Return the arguments of a tool in the form that the smallest model understands best: by name, or by choices."""
    found = tool.parameters_json_schema.get("properties", {})
    return {name: " or ".join(map(str, each.get("enum") or [f"<{name}>"])) for name, each in found.items()}


def _written(**action: Any) -> str:
    return json.dumps(action, ensure_ascii=False)
