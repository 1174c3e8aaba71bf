"""JSON Web Tokens (RFC 7519): minted, and verified, by the rules of RFC 8725."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from natterjack.errors import ConfigError, TokenError
from natterjack.keys import MIN_SECRET, FetchedKeySet, Key, Keys, KeySet, key_pair, public_key, secret_key

logger = logging.getLogger(__name__)

MAX_TOKEN: Final = 16 * 1024
"""Characters of a token that are looked at; HTTP servers take no longer header."""
_LATEST: Final = 253_402_300_799
"""Unix seconds: the last ones that are a date, here and for others who are given this moment."""
_RESERVED: Final = frozenset({"sub", "iat", "exp", "roles", "scope", "aud", "iss"})


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says.

    Attributes:
        subject: Who, `sub`.
        roles: `roles`, a list or words in one text.
        scopes: `scope` (RFC 8693), or else `scopes` or `scp`; the same.
        expires: Unix seconds, `exp`.
        values: All claims, as they stand there.
    """

    subject: str
    roles: frozenset[str]
    scopes: frozenset[str]
    expires: float
    values: Mapping[str, Any] = field(hash=False)


class Tokens:
    """Mints and verifies the tokens of one key, or verifies those of a key set.

    The key decides on the algorithm, never the token.

    Example::

        tokens = Tokens(secret=os.environ["SECRET"], audience="team-tools")
        token = tokens.mint("researcher", roles=["researcher"], expires=3600)
        claims = await tokens.verify(token)

    Args:
        secret: For HS256. One of less than 32 bytes is a warning in the log; see `check_exposed`.
        private_key: PEM of an RSA (RS256), EC (ES256, ES384, ES512) or Ed25519 (EdDSA) key; mints and verifies.
        public_key: PEM of its public half; verifies only.
        jwks: A JSON Web Key Set, or its URL; verifies only, and only tokens that name their key (`kid`).
        key_id: `kid` of minted tokens.
        audience: What minted tokens have as `aud`, and others must have there; None: they must have no `aud`.
        issuer: The same for `iss`; None: others may have any.
        leeway: Seconds that clocks may differ.

    Raises:
        ConfigError: Not exactly one key is given, or it is none.
    """

    def __init__(
        self,
        *,
        secret: str | bytes | None = None,
        private_key: str | bytes | None = None,
        public_key: str | bytes | None = None,
        jwks: str | Mapping[str, Any] | None = None,
        key_id: str | None = None,
        audience: str | None = None,
        issuer: str | None = None,
        leeway: float = 30.0,
    ) -> None:
        given = {"secret": secret, "private_key": private_key, "public_key": public_key, "jwks": jwks}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            msg = f"tokens need exactly one of {', '.join(given)}; given: {', '.join(names) or 'none'}"
            raise ConfigError(msg)
        self._key_id, self._audience, self._issuer, self._leeway = key_id, audience, issuer, leeway
        self._weakness = _weakness(secret) if secret else ""
        self._signing, self._keys = _read_keys(secret, private_key, public_key, jwks)
        if self._weakness:
            logger.warning("%s", self._weakness)

    @classmethod
    def of(cls, where: str, **settings: Any) -> Self:
        """Return the tokens of a key that is kept outside of the program.

        Args:
            where: `env:NAME` or `file:PATH`; a secret, a PEM or a JWK set stands there.
            settings: All else, as for the class.

        Raises:
            ConfigError: There is none.
        """
        return cls(**_key_at(where), **settings)

    @property
    def mints(self) -> bool:
        """Whether the key can mint tokens, and not only verify them."""
        return self._signing is not None

    def check_exposed(self) -> None:
        """Check that the key is strong enough where others than this machine's programs can try to guess it.

        Raises:
            ConfigError: The secret is too short; it tells a good one.
        """
        if self._weakness:
            raise ConfigError(self._weakness)

    def mint(
        self,
        subject: str,
        *,
        roles: Iterable[str] = (),
        scopes: Iterable[str] = (),
        expires: float = 3600.0,
        claims: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a token.

        Args:
            subject: Whom it speaks for, `sub`.
            roles: `roles`.
            scopes: `scope`.
            expires: Seconds until it is not valid any more.
            claims: Further claims, JSON.

        Raises:
            ConfigError: The key only verifies, or an argument makes no claim.
        """
        if self._signing is None:
            msg = "these keys only verify; tokens are minted with a `secret` or a `private_key`"
            raise ConfigError(msg)
        import jwt  # lazy: see keys.py

        if not subject:
            msg = "a token needs a subject, whom it speaks for; it is empty"
            raise ConfigError(msg)
        now = int(time.time())
        payload = {**_further(claims or {}), "sub": subject, "iat": now, "exp": now + _lifetime(expires)}
        payload |= {"roles": _words("role", roles), "scope": " ".join(_words("scope", scopes))}
        payload |= {name: value for name, value in (("aud", self._audience), ("iss", self._issuer)) if value}
        headers = {"kid": self._key_id} if self._key_id else None
        try:
            return jwt.encode(payload, self._signing.material, self._signing.algorithm, headers)
        except (TypeError, ValueError) as error:
            msg = f"the claims of a token must be JSON: {error}"
            raise ConfigError(msg) from error

    async def verify(self, token: str) -> Claims:
        """Return what a token says, once its signature, `exp`, `nbf`, `iat`, `aud` and `iss` are verified.

        Raises:
            TokenError: It is not valid; it says why.
        """
        if len(token) > MAX_TOKEN:
            msg = f"it is too long: {len(token):,} characters of at most {MAX_TOKEN:,}"
            raise TokenError(msg)
        return _read(self._decode(token, await self._keys.find(token)))

    def _decode(self, token: str, key: Key) -> dict[str, Any]:
        import jwt  # lazy: see keys.py

        try:
            return jwt.decode(
                token,
                key.material,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
                options={"require": ["exp", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise TokenError(_because(error)) from error


def inspect(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the header and the claims of a token, none of which is verified.

    Raises:
        TokenError: It is none.
    """
    import jwt  # lazy: see keys.py

    try:
        found = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise TokenError(_because(error)) from error
    return found["header"], found["payload"]


# Keys


def _key_at(where: str) -> dict[str, Any]:
    """Return the argument of `Tokens` that the key there is for."""
    text = _look_up(where)
    if "-----BEGIN" in text:
        return {"private_key" if "PRIVATE KEY" in text else "public_key": text}
    if text.startswith("{"):
        try:
            return {"jwks": json.loads(text)}
        except ValueError as error:
            msg = f"what stands at {where!r} begins like a JWK set, but is no JSON: {error}"
            raise ConfigError(msg) from error
    return {"secret": text}


def _look_up(where: str) -> str:
    kind, _, name = where.partition(":")
    if kind == "env" and name:
        if found := os.environ.get(name, "").strip():
            return found
        msg = f'{name} is not set; e.g. export {name}="$(openssl rand -base64 32)", or name another key'
        raise ConfigError(msg)
    if kind == "file" and name:
        try:
            return Path(name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"the key in {name!r} cannot be read: {type(error).__name__}"
            raise ConfigError(msg) from error
    msg = "write where the key of tokens is, as env:NAME or file:PATH, and never the key itself"
    raise ConfigError(msg)


def _read_keys(
    secret: str | bytes | None,
    private: str | bytes | None,
    public: str | bytes | None,
    jwks: str | Mapping[str, Any] | None,
) -> tuple[Key | None, Keys]:
    """Return the key that signs, if there is one, and those that verify."""
    if secret is not None:
        key = secret_key(secret)
        return key, key
    if private is not None:
        return key_pair(private)
    if public is not None:
        return None, public_key(public)
    return None, FetchedKeySet(jwks) if isinstance(jwks, str) else KeySet(jwks or {})


def _weakness(secret: str | bytes) -> str:
    size = len(secret.encode() if isinstance(secret, str) else secret)
    if size >= MIN_SECRET:
        return ""
    return (
        f"the secret of tokens has {size} bytes, so that it can be guessed, and whoever does can be anybody; it needs"
        f" {MIN_SECRET}, and less is refused off loopback. A good one, made just now: {secrets.token_urlsafe(32)}"
    )


# Claims


def _further(claims: Mapping[str, Any]) -> Mapping[str, Any]:
    if taken := sorted(_RESERVED & claims.keys()):
        msg = f"the claim {taken[0]!r} cannot be given among further claims: it has an argument of its own"
        raise ConfigError(msg)
    return claims


def _lifetime(expires: float) -> int:
    if not 0 < expires < math.inf:
        msg = f"a token cannot expire after {expires!r} seconds; give a positive number"
        raise ConfigError(msg)
    return math.ceil(expires)


def _words(kind: str, words: Iterable[str]) -> list[str]:
    if isinstance(words, str):
        msg = f"a token's {kind}s are a list; write [{words!r}]"
        raise ConfigError(msg)
    found = list(words)
    for word in found:
        if str(word).split() != [word]:
            msg = f"{word!r} is no {kind}: it must be text without spaces"
            raise ConfigError(msg)
    return found


def _read(values: Mapping[str, Any]) -> Claims:
    subject = values["sub"]
    if not subject:
        msg = "it says of nobody: its claim `sub` is empty"
        raise TokenError(msg)
    scope = next((values[name] for name in ("scope", "scopes", "scp") if name in values), ())
    if not isinstance(values.get("iat", 0), int | float):  # which pyjwt lets be a text
        msg = "its claim `iat` is no number"
        raise TokenError(msg)
    expires = float(values["exp"])
    if expires > _LATEST:
        msg = "its claim `exp` is no time before the year 10000"
        raise TokenError(msg)
    return Claims(subject, _texts("roles", values.get("roles", ())), _texts("scope", scope), expires, values)


def _texts(name: str, value: Any) -> frozenset[str]:
    found = value.split() if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not all(isinstance(each, str) for each in found):
        msg = f"its claim `{name}` is no list of texts"
        raise TokenError(msg)
    return frozenset(found)


def _because(error: Exception) -> str:
    """Return why a token is refused, without what it holds: the text goes to whoever sent it."""
    import jwt  # lazy: see keys.py

    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"it has no claim `{error.claim}`"
    reasons: dict[type[Exception], str] = {
        jwt.ExpiredSignatureError: "it has expired; get a new one",
        jwt.ImmatureSignatureError: "it is not valid yet; if it is new, compare the clocks of both machines",
        jwt.InvalidAudienceError: "it is for another audience",
        jwt.InvalidIssuerError: "it is of another issuer",
        jwt.InvalidSignatureError: "its signature does not fit the key",
        jwt.InvalidAlgorithmError: "it is not signed with the algorithm of the key",
    }
    return reasons.get(type(error), "it is malformed")
