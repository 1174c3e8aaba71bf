"""A provider's model, whose errors say which model, and where; also an answer that makes no sense is one of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

from pydantic_ai import ModelMessagesTypeAdapter
from pydantic_ai.exceptions import ModelAPIError, UnexpectedModelBehavior
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings


class ProviderModel(WrapperModel):
    """A provider's model.

    Args:
        wrapped: The model, as the library has it: of an answer that is none it raises what happens to come up.
    """

    def __init__(self, wrapped: Model) -> None:
        super().__init__(wrapped)
        self._where = f"{wrapped.model_name} at {_shown(wrapped.base_url)}" if wrapped.base_url else wrapped.model_name

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Ask the model."""
        with self._named():
            response = await self.wrapped.request(messages, model_settings, model_request_parameters)
            _check(response)
            return response

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        """Ask it, and read its answer as it comes."""
        asking = self.wrapped.request_stream(messages, model_settings, model_request_parameters, run_context)
        with self._named():
            async with asking as stream:
                yield stream
                _check(stream.get())

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except ModelAPIError as error:
            error.model_name = self._where
            raise
        except (UnexpectedModelBehavior, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ModelAPIError(self._where, "its answer makes no sense") from error


def _check(response: ModelResponse) -> None:
    """Raise `ValueError` if the answer, once it is in the journal, could not be read again."""
    ModelMessagesTypeAdapter.validate_python(ModelMessagesTypeAdapter.dump_python([response], mode="json"))


def _shown(url: str) -> str:
    """Return an address without what may be secret."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")
