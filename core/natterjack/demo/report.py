"""A report: the best sentences of the passages found, each cited, and nothing else."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from natterjack.demo.analysis import Findings, Verdict, Word
from natterjack.demo.passages import CODE_INDENT, Passage
from natterjack.demo.sentences import sentences
from natterjack.demo.words import exact, stems

MOST_STATEMENTS = 12
ANSWER_STATEMENTS = 2
LEAST_SCORE = 0.45
"""Of the best sentence's score: what scores less is left out."""
DIVERSITY = 0.6
"""How much of its score a sentence loses for repeating one that was chosen."""
OPENING = 40
"""Characters in which a sentence names its subject."""
MOST_QUOTED = 500
MOST_LISTED = 12

_DEPENDENT = re.compile(
    r"(?:this|it(?! is (?:a `|an? error|possible|not possible))|its|they|these|those|such|that|both|however|thus|therefore|hence|otherwise|instead|also|then|in this case"
    r"|in that case|in addition|for example|for instance|similarly|likewise|note also|he|she|but|and|so|the latter"
    r"|the former|the same|if so|here|as above)\b",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r"(?:changed|new|added|deprecated|removed) in version|see\b|for (?:more|full|further)\b|note\b|refer to"
    r"|.*\b(?:following|below|this|above)[.:]$",
    re.IGNORECASE,
)
_DEFINES = re.compile(r"\b(?:is|are) (?:an?|the|used|called|defined|known|objects?|functions?|classes)\b|\bmeans\b|\bdefines?\b")


class Statement(BaseModel):
    """A verbatim sentence of a passage; `source` is the passage's number in the report, from 1."""

    model_config = ConfigDict(frozen=True)

    text: str
    source: int


class Report(BaseModel):
    """A cited answer in Markdown, or the plain word that there is none.

    Attributes:
        title: The question, on one line.
        markdown: The whole report.
        citations: How many statements cite a passage.
        answered: Whether the corpus answers the question.
        passages: The cited passages; number n of the report is `passages[n - 1]`.
        statements: What the report states, in order.
    """

    model_config = ConfigDict(frozen=True)

    title: str
    markdown: str
    citations: int
    answered: bool
    passages: list[Passage]
    statements: list[Statement] = []


@dataclass(frozen=True)
class _Candidate:
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


def write_report(question: str, findings: Findings, verdict: Verdict) -> Report:
    """Write the report on a question from what was found; what is not answerable is not answered."""
    title = _one_line(question) or "(empty question)"
    chosen = _choose(_candidates(findings)) if verdict.answerable else []
    if not chosen:
        return Report(title=title, markdown=_refusal(title, findings, verdict), citations=0, answered=False, passages=[])
    answer = [each for each in chosen if not each.depends][:ANSWER_STATEMENTS] or chosen[:1]
    sections = _sections([each for each in chosen if each not in answer])
    ordered = answer + [each for _, section in sections for each in section]
    passages = list({each.passage.id: each.passage for each in ordered}.values())
    numbers = {passage.id: number for number, passage in enumerate(passages, start=1)}

    def cited(candidate: _Candidate) -> str:
        return f"{candidate.text} [{numbers[candidate.passage.id]}]"

    lines = [f"# {title}", "", "**In short.** " + " ".join(map(cited, answer)), ""]
    for heading, section in sections:
        lines += [f"## {heading}", "", *(f"- {cited(each)}" for each in section), ""]
    lines += ["## Sources", "", *(_source(number, passages[number - 1], ordered) for number in numbers.values())]
    return Report(
        title=title,
        markdown="\n".join(lines) + "\n",
        citations=len(ordered),
        answered=True,
        passages=passages,
        statements=[Statement(text=each.text, source=numbers[each.passage.id]) for each in ordered],
    )


def _candidates(findings: Findings) -> list[_Candidate]:
    """Return the sentences of all hits, each with its score, best first."""
    found = [
        (rank, place, text)
        for rank, hit in enumerate(findings.hits)
        for place, text in enumerate(sentences(hit.passage.text))
    ]
    tokens = stems(text for _, _, text in found)
    titles = stems(hit.passage.title for hit in findings.hits)
    best = findings.hits[0].score if findings.hits else 1.0
    candidates: dict[str, _Candidate] = {}
    for (rank, place, text), own in zip(found, tokens, strict=True):
        hit = findings.hits[rank]
        score = _relevance(findings.words, text, own, titles[rank]) * (0.4 + 0.6 * hit.score / best)
        score *= 1.15 if place == 0 else 1.0
        holds = frozenset(word.stem for word in findings.words if word.stem in own)
        candidates.setdefault(text, _Candidate(text, hit.passage, (rank, place), frozenset(own), score, holds))
    return sorted(candidates.values(), key=lambda each: (-each.score, each.place))


def _relevance(words: Sequence[Word], text: str, own: Sequence[str], title: Sequence[str]) -> float:
    """Return the share of the question's weight in a sentence and its heading, for statements and not asides."""
    total = sum(word.weight for word in words) or 1.0
    forms, opening = set(exact(text).split()), text[:OPENING].lower()
    share = titled = 0.0
    for word in words:
        titled += word.weight if word.stem in title else 0.0
        if word.stem in own:
            share += word.weight * (1.0 if exact(word.read_as or word.shown) in forms else 0.8)
            share += word.weight * 0.25 * (f"`{word.shown}`" in text)  # named itself, not used in an expression
            share += word.weight * 0.15 * (word.shown.lower() in opening)
        elif word.stem in title:
            share += word.weight * 0.6
    score = share / total * (0.8 + 0.2 * titled / total)
    if _ASIDE.match(text):
        return score * 0.4
    return score * (1.25 if _DEFINES.search(text[: max(OPENING, len(text) // 2)]) else 1.0)


def _choose(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Choose by maximal marginal relevance: relevant, and unlike what was chosen before."""
    chosen: list[_Candidate] = []
    left = list(candidates)
    while left and len(chosen) < MOST_STATEMENTS:
        best = max(left, key=lambda each: _gain(each, chosen))
        if not _gain(best, chosen) > LEAST_SCORE * candidates[0].score:
            break
        chosen.append(best)
        left.remove(best)
    return chosen


def _gain(candidate: _Candidate, chosen: Sequence[_Candidate]) -> float:
    rank, place = candidate.place
    follows = any(each.place == (rank, place - 1) for each in chosen)
    overlap = max((_likeness(candidate.tokens, each.tokens) for each in chosen), default=0.0)
    news = bool(candidate.holds.difference(*(each.holds for each in chosen))) if chosen else False
    lonely = 0.4 if candidate.depends and not follows else 1.0
    return candidate.score * lonely * (1 - DIVERSITY * overlap) * (1.3 if follows or news else 1.0)


def _likeness(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / (len(one | other) or 1)


def _sections(chosen: Iterable[_Candidate]) -> list[tuple[str, list[_Candidate]]]:
    """Group by heading, the best group first; within a group in the order of the source."""
    groups: dict[str, list[_Candidate]] = {}
    for each in chosen:
        groups.setdefault(each.passage.title, []).append(each)
    return [(heading, sorted(group, key=_reading_order)) for heading, group in groups.items()]


def _reading_order(candidate: _Candidate) -> tuple[str, int, int]:
    name, _, number = candidate.passage.id.rpartition("-")
    return name, int(number) if number.isdecimal() else 0, candidate.place[1]


def _source(number: int, passage: Passage, cited: Iterable[_Candidate]) -> str:
    """Return the entry of one source: id, place, and the paragraphs that the report cites."""
    texts = [each.text for each in cited if each.passage.id == passage.id]
    paragraphs = [part for part in passage.text.split("\n\n") if not part.startswith(CODE_INDENT)]
    quoted = " … ".join(part for part in paragraphs if any(text in part for text in texts))
    if len(quoted) > MOST_QUOTED:
        quoted = " … ".join(texts)
    return f"{number}. **{passage.id}** · {passage.source} · {passage.title}\n   > {quoted}\n"


def _refusal(title: str, findings: Findings, verdict: Verdict) -> str:
    """Return the report that says plainly why there is no answer."""
    where = findings.corpus or "the corpus"
    rounds = f"{findings.round} round{'s' if findings.round > 1 else ''}"
    lines = [f"# {title}", "", f"**Not answered.** {where[0].upper()}{where[1:]} does not answer this question."]
    lines += ["", f"## Why (quality {verdict.quality} of 5 after {rounds})", ""]
    lines += [f"- {_one_line(reason, 400)}" for reason in verdict.reasons]
    absent = [word.shown for word in findings.words if not word.passages]
    if absent:
        lines += ["", "## Words the corpus does not hold", "", *_listed(absent)]
    if findings.queries:
        lines += ["", "## What was searched for", "", *_listed(findings.queries)]
    if findings.topics:
        lines += ["", "## Nearest topics" if findings.hits else "## What the corpus is about", ""]
        lines += _listed(findings.topics)
    return "\n".join(lines) + "\n"


def _listed(items: Sequence[str]) -> list[str]:
    more = [f"- … and {len(items) - MOST_LISTED} more"] if len(items) > MOST_LISTED else []
    return [f"- {_one_line(item)}" for item in items[:MOST_LISTED]] + more


def _one_line(text: str, most: int = 120) -> str:
    """Return text from outside as one harmless line of Markdown."""
    text = "".join(each if unicodedata.category(each)[0] != "C" else " " for each in text[: most * 20])
    text = " ".join(text.split())
    text = text if len(text) <= most else text[: most - 1].rstrip() + "…"
    text = text if text.count("`") % 2 == 0 else text.replace("`", "'")
    text = re.sub(r"(?<![`\w])(__\w+__)(?![`\w])", r"`\1`", text)
    return re.sub(r"([<\[])(?=[\w/!?])", r"\\\1", text)
