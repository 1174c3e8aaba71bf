"""Signatures of webhooks: an HMAC over the body, and in most schemes over the time, in a header.

The schemes are those of GitHub, Stripe, Slack and Standard Webhooks 1.0 as their documentation has them, and any other
that signs the body alone.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from pydantic import Field

from natterjack import ConfigError, Settings

Headers = Mapping[str, str]
"""Of a request; names are in lower case, or compared without regard to case."""

Name = Literal["github", "stripe", "slack", "standard"]
HeaderName = Field(pattern=r"^[A-Za-z0-9-]{1,100}$")

STANDARD: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")
_TIME: Final = re.compile(r"[0-9]{1,12}")
_ENCODED: Final = "whsec_"


class Hmac(Settings):
    """A scheme that signs the body alone.

    Attributes:
        header: Name of the header that has the signature.
        algorithm: Hash function.
        encoding: How the signature is written.
        prefix: What stands before it in the header, e.g. `sha256=`.
    """

    header: str = HeaderName
    algorithm: Literal["sha1", "sha256", "sha384", "sha512"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = ""


class Given(NamedTuple):
    """What a request gives as its signature.

    Attributes:
        signatures: Digests, decoded; those that cannot be decoded are left out.
        before: What is signed before the body.
        time: When it was signed, Unix seconds, where the scheme says so.
    """

    signatures: tuple[bytes, ...] = ()
    before: bytes = b""
    time: int | None = None


class Verifier:
    """Holds the signatures of requests to the secrets of one hook.

    Args:
        scheme: Name of a scheme, or how the body alone is signed.
        secrets: All that are valid: more than one while they are exchanged.
        tolerance: Seconds by which the time of a request may differ from ours.
    """

    def __init__(self, scheme: Name | Hmac, secrets: Sequence[str], tolerance: float) -> None:
        self._algorithm = scheme.algorithm if isinstance(scheme, Hmac) else "sha256"
        self._read = (lambda headers: _plain(scheme, headers)) if isinstance(scheme, Hmac) else _SCHEMES[scheme]
        self._keys = [standard_key(each) if scheme == "standard" else each.encode() for each in secrets]
        self._tolerance = tolerance

    def read(self, headers: Headers) -> Given | None:
        """Return the signature in the headers, None where there is none; one that is malformed matches nothing."""
        return self._read(headers)

    def refusal(self, given: Given, body: bytes, now: float) -> str | None:
        """Return why a request is refused, in words for the log, or None if it is genuine and recent."""
        genuine = False
        for key in self._keys:
            digest = _digest(key, given.before + body, self._algorithm)
            for signature in given.signatures:  # all of them, so that the time taken does not tell which one fits
                genuine |= hmac.compare_digest(digest, signature)
        if not genuine:
            return "its signature fits none of the secrets"
        if given.time is not None and abs(now - given.time) > self._tolerance:
            return f"it was signed {now - given.time:.0f} s ago, and {self._tolerance:g} s are tolerated"
        return None


def sign_standard(secrets: Sequence[str], id: str, time: int, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks for what is sent: id, time, and a signature for each secret."""
    keys = [standard_key(each) for each in secrets]
    signed = f"{id}.{time}.".encode() + body
    signatures = [f"v1,{b64encode(_digest(key, signed, 'sha256')).decode()}" for key in keys]
    return dict(zip(STANDARD, (id, str(time), " ".join(signatures)), strict=True))


def standard_key(secret: str) -> bytes:
    """Return the key in a secret of Standard Webhooks: base64 after `whsec_`; without that it is the text itself.

    Raises:
        ConfigError: What follows is no base64.
    """
    if not secret.startswith(_ENCODED):
        return secret.encode()
    key = b"".join(_decoded(secret.removeprefix(_ENCODED), "base64"))
    if not key:
        msg = f"a secret begins with {_ENCODED!r}, but what follows is no base64; copy it again"
        raise ConfigError(msg)
    return key


def _digest(key: bytes, signed: bytes, algorithm: str) -> bytes:
    return hmac.new(key, signed, getattr(hashlib, algorithm)).digest()


def _decoded(text: str, encoding: str) -> tuple[bytes, ...]:
    """Return the digest in a header, as the only item, or none where it is malformed."""
    try:
        return (bytes.fromhex(text) if encoding == "hex" else b64decode(text, validate=True),)
    except (ValueError, binascii.Error):
        return ()


def _plain(scheme: Hmac, headers: Headers) -> Given | None:
    found = headers.get(scheme.header.lower())
    if found is None:
        return None
    if not found.startswith(scheme.prefix):
        return Given()
    return Given(_decoded(found.removeprefix(scheme.prefix), scheme.encoding))


def _github(headers: Headers) -> Given | None:
    return _plain(Hmac(header="x-hub-signature-256", prefix="sha256="), headers)


def _stripe(headers: Headers) -> Given | None:
    found = headers.get("stripe-signature")
    if found is None:
        return None
    parts = [tuple(part.strip().partition("=")[::2]) for part in found.split(",")]
    times = [value for name, value in parts if name == "t"]
    if len(times) != 1 or not _TIME.fullmatch(times[0]):
        return Given()
    signatures = [each for name, value in parts if name == "v1" for each in _decoded(value, "hex")]
    return Given(tuple(signatures), f"{times[0]}.".encode(), int(times[0]))


def _slack(headers: Headers) -> Given | None:
    found, time = headers.get("x-slack-signature"), headers.get("x-slack-request-timestamp")
    if found is None or time is None:
        return None
    if not _TIME.fullmatch(time) or not found.startswith("v0="):
        return Given()
    return Given(_decoded(found.removeprefix("v0="), "hex"), f"v0:{time}:".encode(), int(time))


def _standard(headers: Headers) -> Given | None:
    id, time, found = (headers.get(name) for name in STANDARD)
    if id is None or time is None or found is None:
        return None
    if not _TIME.fullmatch(time):
        return Given()
    versions = [part.partition(",") for part in found.split(" ")]
    signatures = [each for version, _, text in versions if version == "v1" for each in _decoded(text, "base64")]
    return Given(tuple(signatures), f"{id}.{time}.".encode(), int(time))


_SCHEMES: Final[dict[str, Callable[[Headers], Given | None]]] = {
    "github": _github,
    "stripe": _stripe,
    "slack": _slack,
    "standard": _standard,
}
