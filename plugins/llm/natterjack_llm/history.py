"""The history of a conversation: what was said in the turns before, on whatever machine these were.

A turn that is repeated sees again the turns that it saw first, and is kept once. Of two turns at once neither waits for
the other: each sees what there was when it began, and both are kept, in the order in which they end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart

from natterjack_llm.config import Kept
from natterjack_llm.turn import TurnContext

log = logging.getLogger("natterjack.llm")

_DAY: Final = 86_400.0


class KeptTurn(BaseModel):
    """A turn, as it is kept.

    Attributes:
        run: Its run.
        time: When it ended, Unix seconds.
        messages: What was said: the question first, each result of a tool after its call, the answer last.
    """

    run: str
    time: float
    messages: list[ModelMessage]


_TURNS: Final = TypeAdapter(list[KeptTurn])


class History:
    """The history of one conversation, as one turn sees it.

    Args:
        ctx: The turn's run.
        kept: What is kept.
        conversation: What it is known by.
    """

    def __init__(self, ctx: TurnContext, kept: Kept, conversation: Sequence[str]) -> None:
        self._ctx, self._kept, self._conversation = ctx, kept, conversation

    async def recall(self) -> list[ModelMessage]:
        """Return what was said before."""
        turns = self._read(await self._ctx.conversations.read(*self._conversation))

        async def runs() -> list[str]:
            return [turn.run for turn in turns]

        seen = set(await self._ctx.step("recall", runs))
        return [message for turn in turns if turn.run in seen for message in turn.messages]

    async def keep(self, prompt: str, messages: Sequence[ModelMessage], answer: str) -> None:
        """Keep what was said in this turn.

        Args:
            prompt: The question.
            messages: All of it.
            answer: The answer, which together with the question is kept if all of it is too much.
        """
        own = [replace(each, instructions=None) if isinstance(each, ModelRequest) else each for each in messages]
        turn = KeptTurn(run=self._ctx.run_id, time=time.time(), messages=own)
        if not self._bounded([turn]):
            brief = [ModelRequest([UserPromptPart(prompt)]), ModelResponse([TextPart(answer)])]
            turn = turn.model_copy(update={"messages": brief})
        if not self._bounded([turn]):
            text = "run %s is not kept in its conversation: question and answer have more than %d bytes"
            log.warning(text, turn.run, self._kept.bytes)
            return

        def added(kept: bytes) -> bytes:
            turns = self._read(kept)
            if any(each.run == turn.run for each in turns):  # by an attempt that could not tell
                return kept
            return _TURNS.dump_json(self._bounded([*turns, turn]))

        async def keep() -> None:
            await self._ctx.conversations.change(*self._conversation, change=added)

        await self._ctx.step("keep", keep)

    def _read(self, kept: bytes) -> list[KeptTurn]:
        try:
            turns = _TURNS.validate_json(kept or b"[]")
        except ValidationError as error:
            problem = " ".join(str(error.errors(include_input=False, include_url=False)[0]).split())
            log.warning("a conversation of %s cannot be read, and begins anew: %s", self._ctx.agent, problem)
            return []
        since = time.time() - self._kept.days * _DAY
        return [turn for turn in turns if turn.time >= since]

    def _bounded(self, turns: Sequence[KeptTurn]) -> list[KeptTurn]:
        """Return the newest turns, as many as may be kept."""
        messages, size, first = 0, 1, len(turns)
        for place in reversed(range(len(turns))):
            messages += len(turns[place].messages)
            size += len(turns[place].model_dump_json().encode()) + 1
            if messages > self._kept.messages or size > self._kept.bytes:
                break
            first = place
        return list(turns[first:])
