"""A report: the best sentences of the passages found, each cited, and nothing else."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from natterjack.demo.analysis import Findings, Verdict
from natterjack.demo.passages import CODE_INDENT, Passage
from natterjack.demo.phrasing import SIZES, Wording, held
from natterjack.demo.selection import LONG, Candidate, candidates, choose

ANSWER_STATEMENTS = 2
MOST_QUOTED = 500
"""Characters of a source above which only the cited sentences are quoted."""
MOST_LISTED = 12


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
        model: The model that phrased the short answer, if one was asked.
        phrases: What is left of it: its own sentences, each with the passage that states it.
        dropped: How many of its sentences were left out, as no passage states them.
    """

    model_config = ConfigDict(frozen=True)

    title: str
    markdown: str
    citations: int
    answered: bool
    passages: list[Passage]
    statements: list[Statement] = []
    model: str | None = None
    phrases: list[Statement] = []
    dropped: int = 0


def notes(findings: Findings, verdict: Verdict) -> list[Candidate]:
    """Return the sentences that a report is made of; none where the question is not answerable."""
    return choose(candidates(findings)) if verdict.answerable else []


def write_report(question: str, findings: Findings, verdict: Verdict, wording: Wording | None = None) -> Report:
    """Write the report on a question from what was found; what is not answerable is not answered.

    Args:
        question: The question.
        findings: What was found.
        verdict: Whether that answers it.
        wording: How a model answers it from the notes; by default no model is asked.
    """
    title = _cut(question) or "(empty question)"
    chosen = notes(findings, verdict)
    if not chosen:
        refusal = _refusal(title, findings, verdict)
        return Report(title=title, markdown=refusal, citations=0, answered=False, passages=[])
    phrases, dropped = held(wording, chosen) if wording else ([], 0)
    answer = [] if phrases else _answer(chosen)
    sections = _sections([each for each in chosen if each not in answer])
    ordered = answer + [each for _, section in sections for each in section]
    passages = list({each.passage.id: each.passage for each in ordered}.values())
    numbers = {passage.id: number for number, passage in enumerate(passages, start=1)}

    def cited(candidate: Candidate) -> str:
        return f"{candidate.text} [{numbers[candidate.passage.id]}]"

    short = [f"{_one_line(text, MOST_QUOTED)} [{numbers[note.passage.id]}]" for text, note in phrases]
    lines = [f"# {_one_line(title)}", "", "**In short.** " + " ".join(short or map(cited, answer)), ""]
    lines += [_by_model(wording.model, len(phrases), dropped), ""] if wording else []
    for heading, section in sections:
        lines += [f"## {_one_line(heading)}", "", *(f"- {cited(each)}" for each in section), ""]
    lines += ["## Sources", "", *(_source(number, passages[number - 1], ordered) for number in numbers.values())]
    return Report(
        title=title,
        markdown="\n".join(lines) + "\n",
        citations=len(ordered) + len(phrases),
        answered=True,
        passages=passages,
        statements=[Statement(text=each.text, source=numbers[each.passage.id]) for each in ordered],
        model=wording.model if wording else None,
        phrases=[Statement(text=text, source=numbers[note.passage.id]) for text, note in phrases],
        dropped=dropped,
    )


def _by_model(model: str, kept: int, dropped: int) -> str:
    """Return who wrote what."""
    size = f" ({SIZES[model]})" if model in SIZES else ""
    count = kept + dropped
    if not count:
        return f"*The model `{model}`{size} wrote no sentence; the short answer is quoted, too.*"
    wrote = f"*The model `{model}`{size} wrote {count} sentence{'s' * (count > 1)} from the statements below."
    if not kept:
        return f"{wrote} None is kept, as they state none of them; the short answer is quoted, too.*"
    left = f" {dropped} more were left out, as they do not." if dropped else ""
    return f"{wrote} The {kept} above use their words, in their order.{left} All else is quoted.*"


def _answer(chosen: Sequence[Candidate]) -> list[Candidate]:
    """Return the best sentences that stand alone, short ones first."""
    alone = [each for each in chosen if not each.depends] or list(chosen)
    return sorted(alone, key=lambda each: len(each.text) > LONG)[:ANSWER_STATEMENTS]


def _sections(chosen: Iterable[Candidate]) -> list[tuple[str, list[Candidate]]]:
    """Group by heading, the best group first; within a group in the order of the source."""
    groups: dict[str, list[Candidate]] = {}
    for each in chosen:
        groups.setdefault(each.passage.title, []).append(each)
    return [(heading, sorted(group, key=_reading_order)) for heading, group in groups.items()]


def _reading_order(candidate: Candidate) -> tuple[str, int, int]:
    name, _, number = candidate.passage.id.rpartition("-")
    return name, int(number) if number.isdecimal() else 0, candidate.place[1]


def _source(number: int, passage: Passage, cited: Iterable[Candidate]) -> str:
    """Return the entry of one source: id, place, and the paragraphs that the report cites."""
    texts = [each.text for each in cited if each.passage.id == passage.id]
    paragraphs = [part for part in passage.text.split("\n\n") if not part.startswith(CODE_INDENT)]
    quoted = " … ".join(part for part in paragraphs if any(text in part for text in texts))
    if len(quoted) > MOST_QUOTED:
        quoted = " … ".join(texts)
    return f"{number}. **{passage.id}** · {passage.source} · {_one_line(passage.title)}\n   > {quoted}\n"


def _refusal(title: str, findings: Findings, verdict: Verdict) -> str:
    """Return the report that says plainly why there is no answer."""
    where = findings.corpus or "the corpus"
    rounds = f"{findings.round} round{'s' if findings.round > 1 else ''}"
    lines = [
        f"# {_one_line(title)}",
        "",
        f"**Not answered.** {where[0].upper()}{where[1:]} does not answer this question.",
    ]
    lines += ["", f"## Why (quality {verdict.quality} of 5 after {rounds})", ""]
    lines += [f"- {_one_line(reason, 400)}" for reason in verdict.reasons]
    absent = [word.shown for word in findings.words if not word.passages and not word.soft]
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
    text = _cut(text, most)
    text = text if text.count("`") % 2 == 0 else text.replace("`", "'")
    return "".join(each if each.startswith("`") else _escaped(each) for each in re.split(r"(`[^`]*`)", text))


def _cut(text: str, most: int = 120) -> str:
    """Return text from outside as one short line without control characters."""
    text = "".join(each if unicodedata.category(each)[0] != "C" else " " for each in text[: most * 20])
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _escaped(text: str) -> str:
    text = re.sub(r"(?<!\w)(__\w+__)(?!\w)", r"`\1`", text)
    return re.sub(r"([<\[])(?=[\w/!?])", r"\\\1", text)
