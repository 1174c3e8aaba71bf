"""Why an ask came to nothing, as HTTP tells it (RFC 9457), and as an asker reads it again."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson

from natterjack import (
    NatterjackError,
    PayloadError,
    PeerBusyError,
    PeerError,
    PeerRefusedError,
    PeerTimeoutError,
    PeerUnavailableError,
)

MEDIA: Final = "application/problem+json"
CANCELLED: Final = 499
"""Status, and code over NATS, of what was cancelled; HTTP has none of its own for that."""
_STATUS: Final = {408: 504}
"""Where HTTP means something else by a code that stands over NATS: there, 408 is a request that came too slowly."""
_CODES: Final = {401: 403, 502: 503, 504: 408}
"""The code that a status stands for, where it does not say itself; proxies answer 502 and 504."""
_AGAIN: Final = "1"
"""Seconds after which to ask again."""
_KINDS: Final = {403: PeerRefusedError, 408: PeerTimeoutError, 429: PeerBusyError, 503: PeerUnavailableError}


class Problem(Exception):
    """A request that is answered by a problem; the text tells nothing about us.

    Args:
        status: Of the answer.
        detail: What happened, and what to do.
        headers: Of the answer.
        code: As over NATS; by default the status.
    """

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None, *, code: int | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.code = status, detail, status if code is None else code
        again = {"retry-after": _AGAIN} if status in (429, 503) else {}
        self.headers = {**again, **(headers or {})}

    @property
    def body(self) -> dict[str, Any]:
        """What stands in the answer."""
        return {"title": _title(self.status), "status": self.status, "detail": self.detail, "code": self.code}


def _title(status: int) -> str:
    return "Cancelled" if status == CANCELLED else HTTPStatus(status).phrase


def problem_of(error: NatterjackError) -> Problem:
    """Return what an error of an ask is over HTTP."""
    if isinstance(error, PayloadError):
        return Problem(413, str(error))
    if not isinstance(error, PeerError):
        return Problem(500, f"it failed ({type(error).__name__}); its log says more")
    status = _STATUS.get(error.code, error.code)
    if not 400 <= status <= 599 or (status != CANCELLED and status not in list(HTTPStatus)):
        status = 500
    return Problem(status, error.message or str(error), code=error.code)


def error_of(agent: str, status: int, content: bytes) -> PeerError:
    """Return the error that an answer stands for."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        body = None
    told = body if isinstance(body, dict) else {}
    detail, code = told.get("detail"), told.get("code")
    text = detail if isinstance(detail, str) else f"it was answered {status}, by something that is no agent"
    return kind_of(agent, code if isinstance(code, int) and status < 600 else _CODES.get(status, status), text)


def kind_of(agent: str, code: int, text: str) -> PeerError:
    """Return the error of a code."""
    code = _CODES.get(code, code)
    return _KINDS.get(code, PeerError)(agent, code, text)
