"""Selection: the sentences of the hits that answer a question best, without repetition."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from natterjack.demo.analysis import Findings, Word
from natterjack.demo.passages import Passage
from natterjack.demo.sentences import sentences
from natterjack.demo.words import exact, stems

MOST_STATEMENTS = 12
LEAST_SCORE = 0.5
"""Of the fifth best sentence's score: what scores less is left out."""
DIVERSITY = 0.6
"""How much of its score a sentence loses for repeating one that was chosen."""
LONG = 200
"""Characters above which a sentence is harder to read."""
OPENING = 40
"""Characters in which a sentence names its subject."""

_DEPENDENT = re.compile(
    r"(?:this|it(?! is (?:a `|an? error|possible|not possible))|its|they|these|those|such|that|both|however|thus"
    r"|therefore|hence|otherwise|instead|also|then|in (?:this|that) case|in addition|for (?:example|instance)"
    r"|similarly|likewise|next|note also|he|she|but|and|so|the (?:latter|former|same)|if so|here|as above)\b",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r"(?:changed|new|added|deprecated|removed) in version|see\b|for (?:more|full|further)\b|note\b|refer to"
    r"|.*\b(?:following|below|this|above)[.:]$",
    re.IGNORECASE,
)
_STATES = re.compile(r"\b(?:is|are) (?:an?|the|used|called|defined|known)\b|\bmeans\b|\bdefines?\b")


@dataclass(frozen=True)
class Candidate:
    """A sentence that could stand in the report."""

    text: str
    passage: Passage
    place: tuple[int, int]
    tokens: frozenset[str]
    score: float
    holds: frozenset[str]

    @property
    def depends(self) -> bool:
        """Whether it leans on the sentence before it."""
        return _DEPENDENT.match(self.text) is not None


def candidates(findings: Findings) -> list[Candidate]:
    """Return the sentences of all hits, each with its score, best first."""
    found = [
        (rank, place, text)
        for rank, hit in enumerate(findings.hits)
        for place, text in enumerate(sentences(hit.passage.text))
    ]
    tokens = stems(text for _, _, text in found)
    titles = stems(hit.passage.title for hit in findings.hits)
    best = findings.hits[0].score if findings.hits else 1.0
    unique: dict[str, Candidate] = {}
    for (rank, place, text), own in zip(found, tokens, strict=True):
        hit = findings.hits[rank]
        score = _relevance(findings.words, text, own, titles[rank]) * (0.5 + 0.5 * hit.score / best)
        score *= 1.15 if place == 0 else 1.0
        holds = frozenset(word.stem for word in findings.words if word.stem in own)
        unique.setdefault(text, Candidate(text, hit.passage, (rank, place), frozenset(own), score, holds))
    return sorted(unique.values(), key=lambda each: (-each.score, each.place))


def _relevance(words: Sequence[Word], text: str, own: Sequence[str], title: Sequence[str]) -> float:
    """Return the share of the question's weight in a sentence and its heading, for statements and not asides."""
    total = sum(word.weight for word in words) or 1.0
    forms, opening = set(exact(text).split()), exact(text[:OPENING]).split()
    share = titled = 0.0
    for word in words:
        titled += word.weight if word.stem in title else 0.0
        if word.stem in own:
            share += word.weight * (1.0 if exact(word.read_as or word.shown) in forms else 0.8)
            share += word.weight * 0.5 * (f"`{word.shown}`" in text)  # named itself, not used in an expression
            share += word.weight * 0.15 * (exact(word.shown) in opening)
        elif word.stem in title:
            share += word.weight * 0.6
    score = share / total * (0.65 + 0.35 * titled / total) * (0.85 if len(text) > LONG else 1.0)
    if _ASIDE.match(text):
        return score * 0.4
    if any(_defines(text, word) for word in words if word.weight > total / 3):
        return score * 1.5
    return score * (1.15 if _STATES.search(text[: max(OPENING, len(text) // 2)]) else 1.0)


def _defines(text: str, word: Word) -> bool:
    """Whether a sentence says what the word means: "A metaclass is …", "… is known as a metaclass"."""
    name = re.escape(exact(word.read_as or word.shown)[:-1] or word.shown)
    before = r"^(?:in general, )?(?:an?|the)?\s?`?"
    named = r"(?:known as|called|said to be)\s(?:[\w\u2019]+\s){0,2}`?"
    return re.search(rf"{before}{name}s?`?(?: \w+)? (?:is|are)\b|{named}{name}", text, re.IGNORECASE) is not None


def choose(ranked: Sequence[Candidate]) -> list[Candidate]:
    """Choose by maximal marginal relevance: relevant, and unlike what was chosen before."""
    chosen: list[Candidate] = []
    left = list(ranked)
    least = LEAST_SCORE * ranked[min(4, len(ranked) - 1)].score if ranked else 0.0
    while left and len(chosen) < MOST_STATEMENTS:
        best = max(left, key=lambda each: _gain(each, chosen))
        if not _gain(best, chosen) > least:
            break
        chosen.append(best)
        left.remove(best)
    return chosen


def _gain(candidate: Candidate, chosen: Sequence[Candidate]) -> float:
    rank, place = candidate.place
    follows = any(each.place == (rank, place - 1) for each in chosen)
    overlap = max((_likeness(candidate.tokens, each.tokens) for each in chosen), default=0.0)
    news = bool(candidate.holds.difference(*(each.holds for each in chosen))) if chosen else False
    lonely = 0.4 if candidate.depends and not follows else 1.0
    return candidate.score * lonely * (1 - DIVERSITY * overlap) * (1.3 if follows or news else 1.0)


def _likeness(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / (len(one | other) or 1)
