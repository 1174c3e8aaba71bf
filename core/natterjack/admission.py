"""Admission: what doors of a team let those do who come by a token, and not by the broker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from natterjack import codec
from natterjack.bus import Bus
from natterjack.errors import BrokerError, NatterjackError, NotProvisionedError, RefusedError, TokenError
from natterjack.guards import Guards
from natterjack.needs import enforced
from natterjack.record import stored_team
from natterjack.rights import Verb
from natterjack.subjects import OPERATOR, REVOKED_KEY, TEAM_BUCKET, TEAM_KEY
from natterjack.team import Team
from natterjack.team.users import GRANTS

log = logging.getLogger("natterjack.admission")

FRESH: Final = 2.0
"""Seconds for which a door goes by what it has read."""
_PATIENCE: Final = 2.0
"""Seconds for one look; while the broker is away, a door goes on by what it has read before."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What a door has read."""

    at: float
    revoked: Mapping[str, int]
    """Until when tokens are refused, in Unix seconds, by whom they speak for."""
    sequence: int
    """Of the stored team; 0: there is none."""
    team: Team
    closed: bool
    """Whether the broker attests who comes: then nobody may anything that does not stand in the team."""
    guards: Guards


class Admission:
    """Tells a door whom it may let in, and to what: by the team's rules as they are now, and by what was revoked.

    A door is a process of the team that acts for others, who show it a token. What it refuses is in the audit.

    Example::

        claims = await tokens.verify(shown)
        await admission.admit(claims.subject, claims.values)
        await admission.check(claims.subject, "ask", "researcher")

    Args:
        bus: The connection of the door.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._known: _Known | None = None
        self._failure: tuple[float, str] | None = None
        self._looking = asyncio.Lock()

    async def prepare(self) -> None:
        """Look for the first time: then a broker that is away later does not keep those out who would wait for it."""
        try:
            await self._look()
        except NatterjackError as error:
            log.warning("whom the team lets in cannot be read yet: %s", error)

    async def admit(self, caller: str, claims: Mapping[str, Any]) -> None:
        """Return if a token that is valid was not revoked, and is none of an operator of a secured team.

        The broker lets no operator in by a token, so that the key of tokens is no master key; nor do doors.

        Args:
            caller: Whom it speaks for.
            claims: What it says; `iat` tells when it was made.

        Raises:
            TokenError: It was, or is; or nobody can tell, because the team cannot be read.
        """
        try:
            known = await self._look()
        except NatterjackError as error:
            log.warning("whether a token of %r was revoked cannot be read: %s", caller, error)
            msg = "whether it was revoked cannot be read from the broker now; try again"
            raise TokenError(msg) from error
        msg, until = "", known.revoked.get(caller, 0)
        if known.closed and caller in (OPERATOR, *known.team.operators):
            msg = "it is an operator's, and none is let in by a token: get one of an agent or user that has the rights"
        elif until and claims.get("iat", 0) <= until:
            moment = f"{datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M:%S}"
            msg = f"it was revoked, as were all of its subject that were made by {moment} UTC; get another"
        if msg:
            self.refused(caller, "enter", "", msg)
            raise TokenError(msg)

    async def check(self, caller: str, verb: Verb, what: str) -> None:
        """Return if somebody may do something.

        Raises:
            RefusedError: It may not: who wanted what, who may, and which line says so.
            BrokerError: The team cannot be read.
        """
        known = await self._look()
        try:
            _check(known, caller, verb, what)
        except RefusedError as error:
            self.refused(caller, verb, what, str(error))
            raise

    def refused(self, caller: str, verb: str, what: str, reason: str) -> None:
        """Write into the audit what a door itself has refused somebody whom it knows.

        Not for those whom nobody knows: any stranger could fill the audit then.
        """
        self._bus.audit.refused(verb, what, reason, who=caller)

    async def allowed(self, caller: str, verb: Verb, each: Iterable[str]) -> list[str]:
        """Return those of many things to which somebody may do that; nothing is written down.

        Raises:
            BrokerError: The team cannot be read.
        """
        known = await self._look()
        return [what for what in each if _may(known, caller, verb, what)]

    async def revoke(self, until: Mapping[str, int]) -> None:
        """Have all doors of the team refuse tokens that were made by then.

        Args:
            until: Unix seconds, by whom the tokens speak for. Who is not in it keeps what was said before.

        Raises:
            NotProvisionedError: There is no team, so no doors.
            BrokerError: It cannot be written.
        """

        def later(data: bytes) -> bytes:
            found = _read(data)
            return codec.encode(found | {who: max(at, found.get(who, 0)) for who, at in until.items()})

        await self._bus.change(TEAM_BUCKET, REVOKED_KEY, later)

    # What is known

    async def _look(self) -> _Known:
        known = self._known
        if known is not None and time.monotonic() - known.at < FRESH:
            return known
        async with self._looking:
            if self._known is known:  # nobody else has looked meanwhile
                self._known = await self._refreshed(known)
        return self._known or await self._look()

    async def _refreshed(self, known: _Known | None) -> _Known:
        if known is not None and not self._bus.connected:
            return known
        if known is None and self._failure and time.monotonic() - self._failure[0] < FRESH:
            raise BrokerError(self._failure[1])  # or all who wait would look in vain, one after another
        try:
            async with asyncio.timeout(_PATIENCE):
                return await self._learned(known)
        except (BrokerError, TimeoutError) as error:
            if known is None:
                msg = f"the team cannot be read from {self._bus.server}: {str(error) or 'it does not answer'}"
                self._failure = time.monotonic(), msg
                raise BrokerError(msg) from error
            log.info("the team cannot be read now, so it counts as it was: %s", str(error) or "no answer")
            return replace(known, at=time.monotonic())

    async def _learned(self, known: _Known | None) -> _Known:
        try:
            sequence, _ = await self._bus.value(TEAM_BUCKET, TEAM_KEY)
            revoked = _read((await self._bus.value(TEAM_BUCKET, REVOKED_KEY))[1])
        except NotProvisionedError:
            if known is not None and known.sequence:
                raise  # there was a team: without it all would be open, and no token revoked
            sequence, revoked = 0, {}
        if known is not None and sequence == known.sequence:
            return replace(known, at=time.monotonic(), revoked=revoked)
        stored = await stored_team(self._bus) if sequence else Team()
        team = enforced(stored, self._bus.server)
        closed = team is not stored
        rules, governed = [*team.rules(), *team.reading()], _governed(team, closed=closed)
        return _Known(time.monotonic(), revoked, sequence, team, closed, Guards.load(rules, governed))


def _check(known: _Known, caller: str, verb: Verb, what: str) -> None:
    known.guards.check(caller, verb, what)
    if verb == "call" and not _may_call(known, caller, what):
        msg = f"{caller!r} may not call {what!r}: by `tools` and `roles` of the team it may call nothing of that name"
        raise RefusedError(msg)


def _may(known: _Known, caller: str, verb: Verb, what: str) -> bool:
    try:
        _check(known, caller, verb, what)
    except RefusedError:
        return False
    return True


def _may_call(known: _Known, caller: str, what: str) -> bool:
    """Tell whether the team lets somebody call `<server>/<tool>`, or with `<server>/*` anything of a server.

    In open mode that is said of users alone; else servers say it themselves.
    """
    team, server = known.team, what.partition("/")[0]
    if caller in (OPERATOR, *team.operators) or not (known.closed or caller in team.users):
        return True
    found = {right.what for right in (team.calls(caller) if caller in team.callers else ())}
    if what == f"{server}/*":
        return any(each.partition("/")[0] == server for each in found)
    return not found.isdisjoint({what, f"{server}/*"})


def _governed(team: Team, *, closed: bool) -> frozenset[tuple[str, Verb]]:
    reads: set[tuple[str, Verb]] = {(name, "read") for name, spec in team.agents.items() if spec.reads is not None}
    everyone: set[tuple[str, Verb]] = {("*", verb) for verb in GRANTS} if closed else set()
    return team.governed() | reads | everyone


def _read(data: bytes) -> dict[str, int]:
    return codec.decode(data) if data else {}
