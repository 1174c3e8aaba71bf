"""What can go wrong with a model."""

from __future__ import annotations

from natterjack import NatterjackError


class ModelError(NatterjackError):
    """A model did not answer well, after what its provider's client tried by itself.

    Attributes:
        retry: Whether it is worth to try again.
        retry_after: Seconds before which that is in vain, as the provider says.
    """

    def __init__(self, message: str, *, retry: bool, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry, self.retry_after = retry, retry_after  # type: ignore[misc]


class LimitError(NatterjackError):
    """A run met one of its limits; it is not tried again, because it would meet that again."""

    retry = False
