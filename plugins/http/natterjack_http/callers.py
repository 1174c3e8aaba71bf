"""Who calls: by a token, or nobody knows."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.datastructures import Headers

from natterjack import Admission, BrokerError, RefusedError, TokenError, Tokens
from natterjack_http.problems import Problem

ANYONE: Final = "anyone"
"""Who calls where no token is asked for."""
AGAIN: Final = 2.0
"""Seconds between two looks whether who was let in still would be."""


class Callers:
    """Knows callers by their tokens.

    Args:
        agent: Whom they ask.
        admission: Knows which tokens were revoked, and what the team lets callers do.
        tokens: Verifies what they show; None: they show nothing.
        roles: They need one of these; empty: none.
    """

    def __init__(self, agent: str, admission: Admission, tokens: Tokens | None, roles: tuple[str, ...] = ()) -> None:
        self._agent, self._admission, self._tokens, self._roles = agent, admission, tokens, frozenset(roles)

    async def asker(self, headers: Headers) -> str:
        """Return who calls, and may ask the agent.

        Raises:
            Problem: It must be known, and is not; or it may not ask.
        """
        caller = await self.name(headers)
        try:
            await self._admission.check(caller, "ask", self._agent)
        except RefusedError as error:
            raise Problem(403, str(error)) from None
        except BrokerError:
            msg = "whether you may ask cannot be read from the broker now; ask again"
            raise Problem(503, msg) from None
        return caller

    async def refusal(self, headers: Headers) -> Problem:
        """Return why who was let in would not be any more, once that is so: its token has ended, or was revoked."""
        while True:
            await asyncio.sleep(AGAIN)
            try:
                await self.name(headers)
            except Problem as problem:
                return problem

    async def name(self, headers: Headers) -> str:
        """Return who calls.

        Raises:
            Problem: It must be known, and is not; or it has not the role.
        """
        if self._tokens is None:
            return _local(headers)
        shown = self._shown(headers)
        try:
            claims = await self._tokens.verify(shown)
            await self._admission.admit(claims.subject, claims.values)
        except TokenError as error:
            raise self._unknown(error.reason, "invalid_token") from None
        if not claims.subject.isprintable():
            msg = "its claim `sub` is no name that can be shown"
            raise self._unknown(msg, "invalid_token")
        if self._roles and not self._roles & claims.roles:
            roles = " or ".join(repr(role) for role in sorted(self._roles))
            msg = f"{claims.subject!r} may not ask {self._agent!r}: that needs the role {roles} in the token"
            self._admission.refused(claims.subject, "ask", self._agent, msg)
            raise Problem(403, msg)
        return claims.subject

    def _shown(self, headers: Headers) -> str:
        given = headers.getlist("authorization")
        if len(given) > 1:
            msg = "there are two headers `Authorization`; send one"
            raise self._unknown(msg, "invalid_request")
        scheme, _, shown = (given[0] if given else "").partition(" ")
        if scheme.lower() != "bearer" or not shown.strip():
            msg = "show a token in the header `Authorization: Bearer …`; `natterjack token mint NAME` makes one"
            raise self._unknown(msg)
        return shown.strip()

    def _unknown(self, reason: str, error: str = "") -> Problem:
        challenge = f'Bearer realm="{self._agent}"'
        if error:
            challenge += f', error="{error}", error_description="{reason}"'
        return Problem(401, f"nobody knows who calls: {reason}", {"www-authenticate": challenge})


def _local(headers: Headers) -> str:
    """Return that anyone calls; but no web page, whichever a browser on this machine shows."""
    if "origin" in headers:
        msg = "a web page sent this, and without tokens only programs of this machine may ask; give the agent a key"
        raise Problem(403, msg)
    return ANYONE
