"""Why nobody stores what was sent to a stream."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import orjson

from natterjack import subjects
from natterjack.errors import BrokerError, NotProvisionedError, RefusedError

if TYPE_CHECKING:
    from natterjack.bus.streams import Streams

log = logging.getLogger("natterjack.bus")

REFUSED_KEY: Final = "refused"
"""In the team's bucket: who stores nothing more on which subjects, `{"events.": ["researcher"]}`; see `storage`."""


async def check_stored(bus: Streams, subject: str) -> None:
    """Tell what no retry mends from a stream whose leader is being elected.

    Raises:
        NotProvisionedError: No stream captures the subject.
        RefusedError: This principal has stored more than its share.
    """
    if bus.server.attests and bus.principal != subjects.OPERATOR:
        await _check_share(bus, subject)  # it may not ask for streams, and would not be there without them
        return
    try:
        found = await bus.api("STREAM.NAMES", {"subject": subject}, timeout=2.0)
    except (BrokerError, RefusedError) as error:
        log.debug("cannot tell whether a stream captures %s: %s", subject, error)
        return
    if not found.get("streams"):
        msg = f"a stream for {subject!r}"
        raise NotProvisionedError(msg)


async def _check_share(bus: Streams, subject: str) -> None:
    try:
        _, data = await bus.value(subjects.TEAM_BUCKET, REFUSED_KEY)
        refused = orjson.loads(data or b"{}")
    except (BrokerError, ValueError) as error:
        log.debug("cannot tell who is refused on %s: %s", subject, error)
        return
    for place, principals in refused.items():
        if subject.startswith(place) and bus.principal in principals:
            msg = (
                f"{bus.principal!r} has stored more on '{place}>' within an hour than anybody may, and is refused until"
                " less of it is so young; who looks after the team sees how much by `natterjack storage`"
            )
            raise RefusedError(msg)
