"""Endings: the last entries of runs that wrote no other. Nobody waits for them [R18].

Those of one turn of the event loop are sent together and have one acknowledgement, upon which the messages that the
runs handled are acked. Where it does not come, each is written again as every other entry: that tells what is stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from natterjack.bus import Message, check_posted
from natterjack.components import Entry
from natterjack.errors import DisconnectedError, NatterjackError
from natterjack.journal import StreamJournal

log = logging.getLogger("natterjack.delivery")


class Ending(NamedTuple):
    """The end of one run.

    Attributes:
        message: What the run handled.
        entry: Its last entry.
        written: Subject and payload of that.
    """

    message: Message
    entry: Entry
    written: tuple[str, bytes]


class Endings:
    """Sends endings.

    Args:
        journal: Where to.
        ack: Called with each message whose run is journaled to its end.
        again: Called with each ending that may not be stored.

    Attributes:
        runs: Those whose ending is on its way.
    """

    def __init__(self, journal: StreamJournal, ack: Callable[[Message], None], again: Callable[[Ending], None]) -> None:
        self._journal, self._ack, self._again = journal, ack, again
        self._turn: list[Ending] = []  # those of this turn of the event loop
        self._sent: dict[asyncio.Future[Message], Sequence[Ending]] = {}
        self.runs: set[str] = set()

    def add(self, message: Message, entry: Entry) -> None:
        """Send an ending with the others of this turn of the event loop.

        Raises:
            PayloadError: It cannot be sent as JSON, or is too large for one message.
        """
        ending = Ending(message, entry, self._journal.written(entry))
        if not self._turn:
            asyncio.get_running_loop().call_soon(self._send)
        self._turn.append(ending)
        self.runs.add(entry.run)

    def _send(self) -> None:
        endings, self._turn = self._turn, []
        if len(endings) > 1 and not self._journal.joins:
            for ending in endings:
                self._post([ending])
        elif endings:
            self._post(endings)

    def _post(self, endings: Sequence[Ending]) -> None:
        try:
            answer = self._journal.post([ending.written for ending in endings])
        except DisconnectedError as error:
            self._failed(endings, error)
            return
        self._sent[answer] = endings
        answer.add_done_callback(self._answered)

    def _answered(self, answer: asyncio.Future[Message]) -> None:
        endings = self._sent.pop(answer)
        if answer.cancelled():  # given up
            return
        try:
            check_posted("journal", answer.result(), len(endings))
        except NatterjackError as error:
            self._failed(endings, error)
            return
        for ending in endings:
            self.runs.discard(ending.entry.run)
            self._ack(ending.message)

    def _failed(self, endings: Sequence[Ending], error: NatterjackError) -> None:
        log.debug("the ends of %d runs are written again: %s", len(endings), error)
        for ending in endings:
            self.runs.discard(ending.entry.run)
            self._again(ending)

    def under_way(self) -> list[asyncio.Future[Message]]:
        """Send what is left, and return what is not answered yet."""
        self._send()
        return list(self._sent)

    def give_up(self) -> list[Message]:
        """Wait no more, and return the messages that are not acked."""
        messages = [ending.message for endings in self._sent.values() for ending in endings]
        for answer in self._sent:
            answer.cancel()
        return messages
