"""Keys that tokens are signed with. Each has one algorithm, so that no token can choose another."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from natterjack.errors import ConfigError, TokenError

if TYPE_CHECKING:
    from jwt import PyJWKSet

# pyjwt and cryptography take 60 ms and 15 MB to import: lazily, where a key is read.

logger = logging.getLogger(__name__)

MIN_SECRET: Final = 32
"""Bytes that a secret should have at least: those of the hash (RFC 7518, section 3.2)."""
_MIN_RSA: Final = 2048
"""Bits (RFC 7518, section 3.3)."""
_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_RETRY: Final = 5.0
"""Seconds until keys are fetched again that could not be."""
_PATIENCE: Final = 5.0
"""Seconds for fetching them."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and the algorithm that it is used with.

    Attributes:
        material: The secret, or an object of `cryptography`.
        algorithm: As in a token's header `alg`.
    """

    material: Any
    algorithm: str

    async def find(self, token: str) -> Key:
        """Return itself, which each token must be signed with."""
        del token
        return self


class Keys(Protocol):
    """Where the key of a token is found."""

    async def find(self, token: str) -> Key:
        """Return the key that a token must be signed with; raise `TokenError` if there is none."""


def secret_key(secret: str | bytes) -> Key:
    """Return the key that a secret is.

    Raises:
        ConfigError: It is empty, or a PEM.
    """
    octets = _octets(secret)
    if not octets or octets.lstrip().startswith(b"-----BEGIN"):
        msg = "the secret of tokens is empty, or a PEM; a PEM goes to `private_key` or `public_key`"
        raise ConfigError(msg)
    # HMAC fills keys with zeros itself (RFC 2104): the signature is the same, and pyjwt does not warn of each token.
    return Key(octets.ljust(MIN_SECRET, b"\0"), "HS256")


def public_key(pem: str | bytes) -> Key:
    """Return a public key.

    Raises:
        ConfigError: It is no PEM of one, or too weak.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        return _public(load_pem_public_key(_octets(pem)))
    except ValueError as error:
        msg = f"`public_key` cannot be used: {_told(error, 'it is no PEM of a public key')}"
        raise ConfigError(msg) from error


def key_pair(pem: str | bytes) -> tuple[Key, Key]:
    """Return a private key and its public half.

    Raises:
        ConfigError: It is no PEM of one, or too weak.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(_octets(pem), None)
        public = _public(private.public_key())
    except (ValueError, TypeError) as error:  # TypeError: it needs a password
        msg = f"`private_key` cannot be used: {_told(error, 'it is no PEM of a private key without a password')}"
        raise ConfigError(msg) from error
    return Key(private, public.algorithm), public


def _told(error: Exception, otherwise: str) -> str:
    return str(error) if isinstance(error, ConfigError) else otherwise


def _octets(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _public(key: object) -> Key:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA:
        return Key(key, "RS256")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return Key(key, _CURVES[key.curve.name])
    if isinstance(key, ed25519.Ed25519PublicKey):
        return Key(key, "EdDSA")
    msg = "it is none of RSA with 2048 bits or more, EC (P-256, P-384, P-521), and Ed25519"
    raise ConfigError(msg)


class KeySet:
    """A JSON Web Key Set (RFC 7517) that is given.

    Raises:
        ConfigError: It is none.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        import jwt

        try:
            self._set = jwt.PyJWKSet.from_dict(dict(given))
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            msg = f"`jwks` is no JSON Web Key Set: {error}"
            raise ConfigError(msg) from error

    async def find(self, token: str) -> Key:
        """Return the key that a token names; raise `TokenError` if it is not there."""
        return _found(_look_up(self._set, _key_id(token)))


class FetchedKeySet:
    """A JSON Web Key Set at a URL: kept for five minutes, and fetched for a key that it lacks, twice a minute at most.

    Raises:
        ConfigError: The URL is none that may be trusted.
    """

    def __init__(self, url: str) -> None:
        from jwt import PyJWKClient

        parts = urlsplit(url)
        trusted = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        if not trusted or not parts.hostname:
            msg = f"`jwks` is {url!r}; give an https:// URL (http:// only on this machine), or the set itself"
            raise ConfigError(msg)
        self._url = url
        self._client = PyJWKClient(url, timeout=_PATIENCE)
        self._fetching = asyncio.Lock()
        self._not_before = -math.inf

    async def find(self, token: str) -> Key:
        """Return the key that a token names; raise `TokenError` if it is not there."""
        key_id = _key_id(token)
        if found := self._cached(key_id):
            return found
        async with self._fetching:  # one fetch for all who wait
            if not self._cached(key_id) and time.monotonic() >= self._not_before:
                await self._fetch(key_id)
        return _found(self._cached(key_id))

    def _cached(self, key_id: str) -> Key | None:
        cache = self._client.jwk_set_cache
        found = cache.get() if cache else None
        return _look_up(found, key_id) if found else None

    async def _fetch(self, key_id: str) -> None:
        import jwt

        try:
            await asyncio.to_thread(self._client.get_signing_key, key_id)  # it is the one to say how often
        except (jwt.PyJWKClientConnectionError, jwt.PyJWKSetError, OSError, ValueError) as error:
            self._not_before = time.monotonic() + _RETRY
            logger.warning("the keys at %s cannot be fetched: %s", self._url, error)
        except jwt.PyJWKClientError as error:
            logger.debug("%s: %s", self._url, error)


def _key_id(token: str) -> str:
    import jwt

    try:
        found = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        msg = "it is malformed"
        raise TokenError(msg) from error
    if not isinstance(found, str):
        msg = "its header has no `kid` to say which key it is signed with"
        raise TokenError(msg)
    return found


def _look_up(keys: PyJWKSet, key_id: str) -> Key | None:
    for each in keys.keys:
        if each.key_id == key_id and each.public_key_use in ("sig", None):
            try:
                _public(each.key)
            except ConfigError:  # weak; or a symmetric one: whoever may read the set could sign with it
                return None
            return Key(each.key, each.algorithm_name)
    return None


def _found(key: Key | None) -> Key:
    if key is None:
        msg = "it is signed with a key that the key set does not have"
        raise TokenError(msg)
    return key
