"""Why nobody stores what was sent to a stream."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import orjson

from natterjack import subjects
from natterjack.errors import BrokerError, NotProvisionedError, RefusedError, ShareError

if TYPE_CHECKING:
    from natterjack.bus.streams import Streams

log = logging.getLogger("natterjack.bus")


async def check_stored(bus: Streams, subject: str) -> None:
    """Tell what no retry mends from a stream whose leader is being elected.

    Raises:
        NotProvisionedError: No stream captures the subject.
        ShareError: This principal has stored more than its share; or a context is closed but for some keys, because
            somebody has.
    """
    if bus.server.attests:
        await _check_share(bus, subject)
        if not bus.operates:
            return  # it may not ask for streams, and would not be there without them
    try:
        found = await bus.api("STREAM.NAMES", {"subject": subject}, timeout=2.0)
    except (BrokerError, RefusedError) as error:
        log.debug("cannot tell whether a stream captures %s: %s", subject, error)
        return
    if not found.get("streams"):
        msg = f"a stream for {subject!r}"
        raise NotProvisionedError(msg)


async def _check_share(bus: Streams, subject: str) -> None:
    """Look for who stores nothing more on which subjects, `{"events.": ["researcher"]}`, as `storage` has written."""
    try:
        _, data = await bus.value(subjects.TEAM_BUCKET, subjects.REFUSED_KEY)
        refused = orjson.loads(data or b"{}")
    except (BrokerError, ValueError) as error:
        log.debug("cannot tell who is refused on %s: %s", subject, error)
        return
    place, who = next(((place, who) for place, who in refused.items() if subject.startswith(place)), ("", []))
    if bus.principal in who:
        msg = (
            f"{bus.principal!r} has stored more on {subject!r} and the like than one may, and is refused there for a"
            " while; who looks after the team sees how much by `natterjack storage`"
        )
        raise ShareError(msg)
    if who and bus.operates and place.startswith(subjects.key(subjects.CONTEXT_BUCKET, "")[:-1]):
        msg = (
            f"nobody may store on {subject!r} now, because {', '.join(map(repr, who))} stored too much there, and this"
            " belongs to nobody else; `natterjack storage` shows how much"
        )
        raise ShareError(msg)
