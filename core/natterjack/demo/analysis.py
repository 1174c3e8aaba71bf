"""Research and its quality gate: what was found for a question, and whether that is enough.

The measure: every word of the question weighs its inverse document frequency. *Coverage* is the
weight found anywhere in the hits; *focus* is the weight that one single passage holds. A question
whose words are all there, but never together, is not answered by the corpus.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from natterjack.demo.corpus import Corpus, Hit
from natterjack.demo.words import SOFT_WORDS, STOP_WORDS, Term, exact, stems, terms

ROUNDS = 3
ENOUGH = 3
"""The lowest quality that a report may be written from."""
LONGEST_QUESTION = 10_000
"""Characters; the rest is not read."""
MOST_HITS = 16
SOFT_WEIGHT = 0.05
NAME_WEIGHT = 1.5
"""A name (a capital inside the question) that the corpus lacks weighs more than another missing word."""
READ_AS_WEIGHT = 0.8
"""Of a word that was found only in another spelling."""
_STEPS = ((0.92, 5), (0.78, 4), (0.6, 3), (0.3, 2))
"""Least strength (0 to 1) of each quality; below all of them it is 1."""


class Word(BaseModel):
    """A word of the question and what the corpus knows of it.

    Attributes:
        shown: The word as it was asked.
        stem: As indexed; the stem of `read_as` if there is one.
        weight: How much depends on it: its rarity in the corpus.
        passages: In how many passages it occurs.
        soft: Whether it asks rather than names, as "difference" does.
        read_as: The corpus's own word for it, where it has another.
    """

    model_config = ConfigDict(frozen=True)

    shown: str
    stem: str
    weight: float
    passages: int
    soft: bool = False
    read_as: str | None = None


class Findings(BaseModel):
    """What research found, best first, and how it searched."""

    model_config = ConfigDict(frozen=True)

    question: str
    round: int
    queries: list[str]
    hits: list[Hit]
    words: list[Word] = []
    corpus: str = ""
    topics: list[str] = []


class Verdict(BaseModel):
    """A judgement of findings.

    Attributes:
        quality: 1 (nothing) to 5 (everything, in one place).
        coverage: Share of the question's weight that the hits hold, 0 to 1.
        missing: The words that no hit holds.
        reasons: What decided, one line each.
        enough: Whether research should stop.
        answerable: Whether the findings answer the question.
    """

    model_config = ConfigDict(frozen=True)

    quality: int
    coverage: float
    missing: list[str]
    reasons: list[str]
    enough: bool
    answerable: bool


Search = Callable[[str], Awaitable[list[Hit]]]
"""Finds the passages that match a query, best first."""


async def research(
    corpus: Corpus, question: str, *, round: int = 1, missing: Sequence[str] = (), search: Search | None = None
) -> Findings:
    """Search for a question.

    Round 2 adds a search for each missing word and its nearest spelling in the corpus, round 3 the
    question together with words that stand beside it in the best passages.

    Args:
        corpus: What is searched; it weighs the words.
        question: Any text.
        round: 1 to 3.
        missing: The words that the verdict of the round before missed; none means all.
        search: Searches it elsewhere, as a tool server does; here by default.
    """

    async def search_here(query: str) -> list[Hit]:
        return corpus.search(query)

    search = search or search_here
    question = question[:LONGEST_QUESTION].encode(errors="replace").decode()  # lone surrogates are not JSON
    words = [_word(corpus, term, respell=round > 1) for term in terms(question)]
    queries = [" ".join(question.split())[:500]] if any(not word.soft for word in words) else []
    wanted = [word for word in words if word.shown in missing] or words
    if round > 1 and queries:
        queries += [_spoken(word) for word in wanted]
        queries += [" ".join(map(_spoken, words))] if any(word.read_as for word in words) else []
    found = {query: await search(query) for query in dict.fromkeys(queries)}
    hits = _best(found.values())
    if round > 2 and hits:
        more = " ".join([*map(_spoken, words), *_related(corpus, words, hits)])
        found[more] = found.get(more) or await search(more)
        hits = _best(found.values())
    return Findings(
        question=question,
        round=round,
        queries=list(found),
        hits=hits,
        words=words,
        corpus=corpus.name,
        topics=list(dict.fromkeys(hit.passage.title for hit in hits))[:5] or corpus.topics(),
    )


def assess(findings: Findings) -> Verdict:
    """Judge findings: how much of the question they cover, and how well it stands together."""
    total = sum(word.weight for word in findings.words)
    if all(word.soft for word in findings.words):
        reason = "The question names nothing that could be searched for."
        return Verdict(quality=1, coverage=0.0, missing=[], reasons=[reason], enough=True, answerable=False)
    held = [set(tokens) for tokens in stems(f"{hit.passage.title}. {hit.passage.text}" for hit in findings.hits)]
    everywhere = set().union(*held)
    coverage = _share(findings.words, everywhere) / total
    focus = max((_share(findings.words, tokens) for tokens in held), default=0.0) / total
    supporting = sum(_share(findings.words, tokens) / total >= focus * 0.6 for tokens in held) if focus else 0
    missing = [word.shown for word in findings.words if word.stem not in everywhere and not word.soft]
    strength = 0.45 * coverage + 0.5 * focus + 0.05 * min(supporting, 3) / 3
    quality = next((quality for least, quality in _STEPS if strength >= least), 1)
    return Verdict(
        quality=quality,
        coverage=round(coverage, 3),
        missing=missing,
        reasons=_reasons(findings, coverage, focus, supporting, missing),
        enough=quality >= ENOUGH or findings.round >= ROUNDS,
        answerable=quality >= ENOUGH,
    )


def _word(corpus: Corpus, term: Term, *, respell: bool) -> Word:
    passages = corpus.frequency(term.stem)
    factor = SOFT_WEIGHT if term.soft else NAME_WEIGHT if term.named and not passages else 1.0
    weight = round(factor * corpus.rarity(term.stem), 4)
    read_as = corpus.nearest(term.shown.lower()) if respell and not passages and not term.named else None
    stem = stems([read_as])[0][0] if read_as else term.stem
    return Word(shown=term.shown, stem=stem, weight=weight, passages=passages, soft=term.soft, read_as=read_as)


def _spoken(word: Word) -> str:
    """Return a word as a query: in backticks, so that keywords and operators stay code."""
    return word.read_as or (f"`{word.shown}`" if word.stem.endswith("0") else word.shown)


def _best(found: Iterable[list[Hit]]) -> list[Hit]:
    """Return the hits of all queries, each once with its best score; later queries count for half."""
    best: dict[str, Hit] = {}
    for number, hits in enumerate(found):
        for hit in hits:
            score = hit.score if number == 0 else hit.score / 2
            if hit.passage.id not in best or best[hit.passage.id].score < score:
                best[hit.passage.id] = Hit(passage=hit.passage, score=round(score, 6))
    return sorted(best.values(), key=lambda hit: (-hit.score, hit.passage.id))[:MOST_HITS]


def _related(corpus: Corpus, words: Sequence[Word], hits: Sequence[Hit], most: int = 3) -> list[str]:
    """Return words that are frequent in the best hits, yet rare in the corpus, and not in the question."""
    asked = {exact(word.read_as or word.shown) for word in words}
    counts = Counter(
        form for hit in hits[:4] for form in set(exact(f"{hit.passage.title} {hit.passage.text}").split()) - asked
    )
    shared = {form[:-1]: count * corpus.rarity(form) for form, count in counts.items() if count > 1 and len(form) > 4}
    named = [form for form in shared if form.isalpha() and form not in STOP_WORDS | SOFT_WORDS]
    return sorted(named, key=lambda form: (-shared[form], form))[:most]


def _share(words: Iterable[Word], tokens: set[str]) -> float:
    return sum(word.weight * (READ_AS_WEIGHT if word.read_as else 1.0) for word in words if word.stem in tokens)


def _reasons(findings: Findings, coverage: float, focus: float, supporting: int, missing: Sequence[str]) -> list[str]:
    if not coverage:
        return [f"No passage of {findings.corpus or 'the corpus'} holds what the question asks about."]
    reasons = [
        f"{len(findings.hits)} passages hold {coverage:.0%} of what the question asks, by the rarity of its words.",
        f"The best single passage holds {focus:.0%}; {supporting} come close to it.",
    ]
    reasons += [f"{word.shown!r} was read as {word.read_as!r}." for word in findings.words if word.read_as]
    if missing:
        reasons.append(f"Not found: {', '.join(missing[:12])}{' …' if len(missing) > 12 else ''}.")
    return reasons
