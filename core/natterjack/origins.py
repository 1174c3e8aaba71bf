"""What a run handles, as it was delivered; and as its journal keeps it, so that it can be handled again anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from natterjack.bus import Message, Place


@dataclass(slots=True)
class KeptMessage:
    """A message that comes from a journal."""

    subject: str
    reply: str
    data: bytes
    headers: dict[str, str] | None


class Origin(NamedTuple):
    """One delivered message, which a run handles.

    Attributes:
        trigger: Label of the trigger by which it came.
        message: The message.
        place: Where it stands.
        ticket: Sequence of the ticket that stands for it, because the run had left; else 0.
    """

    trigger: str
    message: Message
    place: Place
    ticket: int = 0

    def journaled(self) -> dict[str, Any]:
        """Return it as JSON data."""
        message, place = self.message, self.place
        return {
            "trigger": self.trigger,
            "subject": message.subject,
            "payload": message.data.decode(errors="replace"),  # what is no UTF-8 never gets as far as a handler
            "headers": message.headers or {},
            "stream": place.stream,
            "sequence": place.sequence,
            "stored": place.time,
        }

    @classmethod
    def kept(cls, data: Mapping[str, Any], reply: str, ticket: int) -> Self:
        """Return what a journal has, as a message that comes again.

        Args:
            data: As `journaled` gave it.
            reply: To whom its verdict goes.
            ticket: Sequence of the ticket that came for it.
        """
        message = KeptMessage(data["subject"], reply, data["payload"].encode(), data["headers"])
        return cls(data["trigger"], message, Place(data["stream"], 2, data["sequence"], data["stored"], 0), ticket)
