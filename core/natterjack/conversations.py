"""Conversations: what an agent keeps of each, for all of its replicas, in a bucket where nobody else may read.

The agent says what it keeps, in bytes; here is where that is, under which key, and that two who write at once do not
lose what the other wrote.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from natterjack import subjects
from natterjack.bus import Bus
from natterjack.errors import PayloadError

MAX_ID: Final = 256
"""Characters of an id."""
MAX_DAYS: Final = 30
"""After which a conversation is forgotten that nobody went on with."""
BUCKET: Final = subjects.CONVERSATIONS_BUCKET


def named(id: str | None) -> str:
    """Return an id as it is sent: empty for none; errors as for `Conversations.check_id`."""
    return "" if id is None else Conversations.check_id(id)


class Conversations:
    """The conversations of one agent.

    Args:
        bus: The connection.
        agent: The agent, whose replicas share them.
        asked: Id of the one to which the question belongs that is answered now; empty: none.

    Attributes:
        asked: The same.
    """

    def __init__(self, bus: Bus, agent: str, asked: str = "") -> None:
        self._bus, self._agent, self.asked = bus, agent, asked

    @staticmethod
    def check_id(id: object) -> str:
        """Return the id of a conversation, or raise.

        Raises:
            PayloadError: It is no text, empty, or longer than 256 characters.
        """
        if isinstance(id, str) and 0 < len(id) <= MAX_ID and not any("\ud800" <= each <= "\udfff" for each in id):
            return id
        msg = f"{id!r:.100} is no conversation_id: it is text of 1 to {MAX_ID} characters, e.g. 'ticket-4711'"
        raise PayloadError(msg)

    async def read(self, *names: str) -> bytes:
        """Return what is kept of a conversation; nothing if there is none.

        Args:
            names: What it is known by, e.g. who asks, and the id; any text.

        Raises:
            NotProvisionedError: The team has not been provisioned on this server, or by an older version.
            RefusedError: The broker does not allow it.
            BrokerError: The broker is away.
        """
        _, kept = await self._bus.value(BUCKET, self._key(names))
        return kept

    async def change(self, *names: str, change: Callable[[bytes], bytes]) -> None:
        """Keep what `change` makes of what is kept; it is called again if somebody else was first.

        Args:
            names: See `read`.
            change: Returns what to keep; the same: nothing is written.

        Raises:
            PayloadError: That is larger than the server takes. For the rest see `read`.
        """
        await self._bus.change(BUCKET, self._key(names), change)

    def _key(self, names: tuple[str, ...]) -> str:
        digest = hashlib.sha256(repr(names).encode()).hexdigest()[:40]  # a name may be anything, a key may not
        return f"{self._agent}.{digest}"
