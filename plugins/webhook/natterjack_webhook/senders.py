"""What senders say of a request beside its data: the name of the event, and an id by which a repetition is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from natterjack_webhook.signatures import Given, Headers, Hmac, Name

KEPT: Final[dict[str, tuple[str, ...]]] = {"github": ("X-GitHub-Event", "X-GitHub-Delivery")}
"""Headers that events keep, by scheme."""
UNWRAPPED: Final = ("github", "slack")
"""Schemes that put JSON into the field `payload` of a form."""
_TYPE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9][A-Za-z0-9_-]*)*")
_ID: Final = re.compile(r"[!-~]{1,100}")


class Naming(NamedTuple):
    """What a request is called.

    Attributes:
        type: Name of its event, None where it has none that can be a type.
        id: Deduplication id, None where nothing tells a repetition from a second event.
    """

    type: str | None = None
    id: str | None = None


def naming(
    scheme: Name | Hmac | None, headers: Headers, data: Any, body: bytes, given: Given, id_header: str | None
) -> Naming:
    """Return what a sender calls a request.

    An id counts alone where it is signed. One from a header that is not, counts together with the body, so that who
    repeats a request under another's id, or a sender that gives one id to all, suppresses nothing. Where there is none,
    but the time is signed, the same request is known by all that is signed.
    """
    fields = data if isinstance(data, Mapping) else {}
    digest = blake2b(given.before + body, digest_size=12).hexdigest()
    kind: Any = None
    id: Any = None
    if scheme == "github":
        kind, id = headers.get("x-github-event"), _with_body(headers.get("x-github-delivery"), digest)
    elif scheme == "stripe":
        kind, id = fields.get("type"), fields.get("id")
    elif scheme == "slack":
        event = fields.get("event")
        kind = event.get("type") if isinstance(event, Mapping) else fields.get("type")
        id = fields.get("event_id")
    elif scheme == "standard":
        kind, id = fields.get("type"), headers.get("webhook-id")
    if id_header is not None:
        id = _with_body(headers.get(id_header.lower()), digest)
    if id is None and given.time is not None:
        id = digest
    return Naming(kind if is_type(kind) else None, _short(id))


def is_type(name: object) -> bool:
    """Tell whether something can be the type of an event."""
    return isinstance(name, str) and len(name) <= 128 and _TYPE.fullmatch(name) is not None


def challenge(scheme: Name | Hmac | None, data: Any) -> str | None:
    """Return what Slack wants to be answered when it verifies a URL; None for all else."""
    if scheme == "slack" and isinstance(data, Mapping) and data.get("type") == "url_verification":
        found = data.get("challenge")
        return found if isinstance(found, str) else None
    return None


def _with_body(id: str | None, digest: str) -> str | None:
    return f"{id}.{digest}" if id else None


def _short(id: object) -> str | None:
    """Return an id as one may be: itself, or the digest of one that is long or odd."""
    if not isinstance(id, str) or not id:
        return None
    return id if _ID.fullmatch(id) else blake2b(id.encode(errors="replace"), digest_size=16).hexdigest()
