"""What becomes of posts that fail."""

from __future__ import annotations

from natterjack import NatterjackError


class PostError(NatterjackError):
    """An event could not be posted; it is tried again."""


class PostRefusedError(PostError):
    """The receiver does not want this event, now or later."""

    retry = False
