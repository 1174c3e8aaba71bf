"""What a model writes, held to the documents: it may shorten what they state, and what it adds is left out.

A sentence of a model stays if its words stand in one statement of the report, in that order, and it denies no more
and no less. Words that say nothing about a subject (`STOP_WORDS`) are free.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from natterjack.demo.selection import Candidate
from natterjack.demo.sentences import sentences
from natterjack.demo.words import STOP_WORDS, stems

MOST_NOTES = 6
MOST_PHRASES = 3
SIZES = {"local": "a small one of 135 million parameters, which writes weakly"}

_DENIES = re.compile(
    r"\b(?:not?|never|none|neither|nor|nothing|nobody|without|cannot|unless|except|only|if|may|should|must)\b|n['\u2019]t\b",
    re.IGNORECASE,
)


class Wording(BaseModel):
    """What a model answered from the notes.

    Attributes:
        model: The model, as the user named it.
        text: Its answer.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    text: str


def asking(question: str, notes: Sequence[Candidate]) -> str:
    """Return what a model is asked."""
    listed = "\n".join(f"- {note.text}" for note in notes[:MOST_NOTES])
    return f"{question} Answer in two or three short sentences. Use only these notes, and only their words:\n{listed}"


def held(wording: Wording, notes: Sequence[Candidate]) -> tuple[list[tuple[str, Candidate]], int]:
    """Return the model's sentences that the notes state, each with its note, and how many were left out."""
    written = list(dict.fromkeys(sentences(wording.text)))
    found = [(sentence, note) for sentence in written if (note := _stating(sentence, notes))]
    return found[:MOST_PHRASES], len(written) - len(found[:MOST_PHRASES])


def _stating(sentence: str, notes: Iterable[Candidate]) -> Candidate | None:
    return next((note for note in notes if _states(note.text, sentence)), None)


def _states(statement: str, sentence: str) -> bool:
    said, meant, free = stems([sentence, statement, " ".join(STOP_WORDS)])
    words, left = [word for word in said if word not in free], iter([word for word in meant if word not in free])
    return len(words) > 1 and all(word in left for word in words) and _denied(sentence) == _denied(statement)


def _denied(text: str) -> list[str]:
    return sorted(word.lower() for word in _DENIES.findall(text))
