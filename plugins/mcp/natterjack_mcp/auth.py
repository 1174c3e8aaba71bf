"""How a server knows its callers: by a token or by a key."""

from __future__ import annotations

import hashlib
import hmac
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Self

from natterjack import Admission, ConfigError, TokenError, Tokens
from natterjack_mcp.caller import Caller


class Auth(ABC):
    """Knows callers by what they show.

    Attributes:
        asks_for: What callers must show, as a sentence for them.
    """

    asks_for: str = ""

    @abstractmethod
    async def caller(self, shown: str) -> Caller:
        """Return who shows this.

        Args:
            shown: What stands behind `Bearer` in HTTP's header `Authorization`, or in its like.

        Raises:
            TokenError: Nobody that is known.
        """

    def check_exposed(self) -> None:  # noqa: B027 - most are strong enough
        """Raise `ConfigError` if it is too weak for others than this machine's programs."""


class JWTAuth(Auth):
    """Knows callers by JSON Web Tokens: `sub` is the name, `roles` and `scope` are what guards look at.

    Example::

        auth = JWTAuth(secret=os.environ["SECRET"], audience="team-tools")
        token = auth.token("researcher", roles=["researcher"], expires=3600)

    Args:
        secret: For HS256, 32 bytes or more; shorter ones serve on loopback only.
        private_key: PEM; the others are as for `natterjack.Tokens`.
        public_key: PEM.
        jwks: A JSON Web Key Set, or its URL.
        key_id: `kid` of minted tokens.
        audience: What `aud` must be.
        issuer: What `iss` must be.
        leeway: Seconds that clocks may differ.

    Raises:
        ConfigError: Not exactly one key is given, or it is none.
    """

    asks_for = "show a token (JWT)"

    def __init__(
        self,
        secret: str | bytes | None = None,
        *,
        private_key: str | bytes | None = None,
        public_key: str | bytes | None = None,
        jwks: str | Mapping[str, Any] | None = None,
        key_id: str | None = None,
        audience: str | None = None,
        issuer: str | None = None,
        leeway: float = 30.0,
    ) -> None:
        self._tokens = Tokens(
            secret=secret,
            private_key=private_key,
            public_key=public_key,
            jwks=jwks,
            key_id=key_id,
            audience=audience,
            issuer=issuer,
            leeway=leeway,
        )

    @classmethod
    def of(cls, where: str, **settings: Any) -> Self:
        """Return what knows callers by a key that is kept outside of the program; see `natterjack.Tokens.of`."""
        made = cls.__new__(cls)
        made._tokens = Tokens.of(where, **settings)
        return made

    async def caller(self, shown: str) -> Caller:
        """Return whom a token speaks for; raise `TokenError` if it is not valid."""
        claims = await self._tokens.verify(shown)
        return Caller(claims.subject, claims.roles, claims.scopes, claims.values, "jwt")

    def token(
        self,
        name: str,
        *,
        roles: Iterable[str] = (),
        scopes: Iterable[str] = (),
        expires: float = 3600.0,
        claims: Mapping[str, Any] | None = None,
    ) -> str:
        """Return a token for a caller.

        Args:
            name: Of the caller.
            roles: What it is.
            scopes: What it may do.
            expires: Seconds until it is not valid any more.
            claims: Further claims, JSON.

        Raises:
            ConfigError: The key only verifies, or an argument makes no claim.
        """
        return self._tokens.mint(name, roles=roles, scopes=scopes, expires=expires, claims=claims)

    def check_exposed(self) -> None:
        """Raise `ConfigError` if the secret is too short for others than this machine's programs."""
        self._tokens.check_exposed()


class ApiKeyAuth(Auth):
    """Knows callers by keys, which are long random texts.

    Example::

        auth = ApiKeyAuth({os.environ["RESEARCHER_KEY"]: Caller("researcher", frozenset({"researcher"}))})

    Args:
        keys: Who shows which key.

    Raises:
        ConfigError: A key is too short.
    """

    asks_for = "show an API key"
    MIN_KEY = 16
    """Characters."""

    def __init__(self, keys: Mapping[str, Caller]) -> None:
        short = [caller.name for key, caller in keys.items() if len(key) < self.MIN_KEY]
        if short or not keys:
            msg = (
                f"the API key of {short[0]!r} has less than {self.MIN_KEY} characters" if short else "there are no keys"
            )
            raise ConfigError(msg + "; make long random ones, e.g. by `openssl rand -base64 32`")
        self._callers = {
            _digest(key): Caller(each.name, each.roles, each.scopes, each.claims, "key") for key, each in keys.items()
        }

    async def caller(self, shown: str) -> Caller:
        """Return whose key it is; raise `TokenError` if it is nobody's."""
        digest, found = _digest(shown), None
        for known, caller in self._callers.items():
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            msg = "it is no API key of this server"
            raise TokenError(msg)
        return found


class TeamAuth(Auth):
    """Knows callers as another does, unless the team has revoked what they show.

    Args:
        auth: The other.
        admission: Knows what was revoked.
    """

    def __init__(self, auth: Auth, admission: Admission) -> None:
        self._auth, self._admission = auth, admission
        self.asks_for = auth.asks_for

    async def caller(self, shown: str) -> Caller:
        """Return who shows this; raise `TokenError` if it is nobody, or was revoked."""
        caller = await self._auth.caller(shown)
        await self._admission.admit(caller.name, caller.claims)
        return caller

    def check_exposed(self) -> None:
        """Raise `ConfigError` if it is too weak for others than this machine's programs."""
        self._auth.check_exposed()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
