"""Sentences: the statements that a passage makes, verbatim."""

import re
from collections.abc import Iterator

from natterjack.demo.passages import CODE_INDENT

SHORTEST, LONGEST = 20, 420
"""Characters of a sentence that can stand in a report."""

_END = re.compile(r"[.!?\u2026]+[)\]\u201d\u2019\"'`]*(?=\s+(?:`|[\"\u201c\u2018'(\[]*[^\W_a-z]))|[\u3002\uff01\uff1f]")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|al|resp|approx|ca|no|fig|sec|ch|eq|pp?|mr|mrs|ms|dr|prof|st|[A-Z]|z\.B|bzw)|^\d+)\.$",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^(?:[*+\u2022-]|\d{1,3}[.)])\s+")
_FINISHED = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][)\u201d\u2019\"'`]*$")


def sentences(text: str) -> Iterator[str]:
    """Yield the complete sentences of a passage's text in order: no code, no fragments, no list marks."""
    for paragraph in text.split("\n\n"):
        if not paragraph.startswith(CODE_INDENT):
            yield from filter(_is_statement, _split(_BULLET.sub("", " ".join(paragraph.split()))))


def _split(paragraph: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(paragraph):
        sentence = paragraph[start : end.end()]
        in_code = sentence.count("`") % 2 == 1
        in_brackets = sentence.count("(") > sentence.count(")")
        if not (in_code or in_brackets or _ABBREVIATION.search(sentence)):
            yield sentence.strip()
            start = end.end()
    yield paragraph[start:].strip()


def _is_statement(sentence: str) -> bool:
    return (
        SHORTEST <= len(sentence) <= LONGEST
        and _FINISHED.search(sentence) is not None
        and not sentence.endswith(("e.g.", "i.e.", "?"))
        and not sentence[0].islower()
        and sentence[0] not in "(\u2014\u2013,;"
        and (" " in sentence or not sentence.isascii())
        and len(re.findall(r"[^\W\d_]+", sentence)) >= (4 if sentence.isascii() else 1)
        and sentence.count("`") % 2 == 0
        and sentence.count("(") == sentence.count(")")
    )
