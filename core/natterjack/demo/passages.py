"""Passages: paragraph-sized pieces of a text, cleaned of markup, each under its heading.

Understands what pydoc's topics, reStructuredText and Markdown have in common: blank lines between
blocks, underlined or `#` headings, indented or fenced code, lists.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

PASSAGE_SIZE = 900
"""Characters after which a passage is full."""
LARGEST_PARAGRAPH = 1200
CODE_INDENT = "    "

_RULE = re.compile(r"\s*([*=\-~^\"#+_])\1{2,}\s*")
_HASH_HEADING = re.compile(r"#{1,6}\s+(\S.{0,199}?)\s*#*")
_LABELS = frozenset({"see also:", "note:", "warning:", "tip:"})
_FENCE = re.compile(r"\s*(```|~~~)")
_BULLET = re.compile(r"\s*(?:[*+•-]|\d{1,3}[.)]|\[\d{1,3}\])\s+")
_NOT_PROSE = re.compile(r"::=|^\s*(?:>>>|\.\.\. |\$ |\||\+[-=]|@\w|</?\w)", re.MULTILINE)
_DEFINITION = re.compile(r"(?:(?:class|async|exception|coroutine)\s+)?[\w.]+(?:\(.*\)|\[.*\])?")
_SMALL_WORDS = re.compile(
    r"\b(?:a|an|the|is|are|be|was|of|to|and|or|in|on|for|by|with|as|that|this|it|not|if|can|has|from|at|when|which|will"
    r"|may|must|you|we|der|die|das|und|ist|le|la|les|de|et|est|el|los|que|y|es)\b",
    re.IGNORECASE,
)
_LITERAL = re.compile(r"(?<![\w\"`'])\"(?=\S)([^`\n]{1,160}?)(?<=\S)\"(?![\w\"'])")
_MARKUP: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"<!--.{0,2000}?-->|</?[A-Za-z][^<>]{0,200}>"), ""),
    (re.compile(r"!\[[^\]]{0,200}\]\([^)\s]{0,500}\)"), ""),
    (re.compile(r"\[([^\[\]]{1,200})\]\([^()\s]{0,500}\)"), r"\1"),
    (re.compile(r"(?<![\w*])\*\*(?=\S)([^*]{1,200}?)(?<=\S)\*\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<![\w*])\*(?=[^\s*])([^*]{1,200}?)(?<=[^\s*])\*(?![\w*])"), r"\1"),
    (re.compile(r"(?<!\w)__?(?=[^\s_])([^_\s]{1,80} [^_]{1,200}?)(?<=[^\s_])__?(?!\w)"), r"\1"),
    (re.compile(r"(?<!\w)(__\w{1,80}__)(?!\w)"), r"`\1`"),
    (re.compile(r"\s?\[\d{1,3}\](?=[\s.,;:)]|$)"), ""),
]
_ROLE = re.compile(r":[\w:+-]{2,40}:(?=`)")
_ROLE_TARGET = re.compile(r"`([^`<]{1,120}?)\s*<[^`>]{1,200}>`_{0,2}")


class Passage(BaseModel):
    """A citeable piece of text.

    Attributes:
        id: Short and unique in its corpus, as `with-3`.
        source: Where it stands, for people.
        title: The heading above it.
        text: Paragraphs separated by a blank line; code keeps its lines, indented by four spaces.
        line: First line in its file, counted from 1; None without a file.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    source: str
    title: str
    text: str
    line: int | None = None


@dataclass(frozen=True)
class Block:
    """Consecutive lines that belong together. `text` is cleaned; a heading has `kind` "heading"."""

    kind: str
    text: str
    line: int


def split(text: str, title: str, *, quoted_literals: bool = False) -> Iterator[tuple[str, str, int]]:
    """Split a document into (title, text, line) of passages.

    Args:
        text: The document.
        title: The title until the first heading.
        quoted_literals: Whether "x" means code, as in pydoc's topics.
    """
    kept: list[Block] = []
    document = ""
    for block in _blocks(text, quoted_literals):
        if block.kind == "heading" or _is_full(kept, block):
            yield from _passage(title, kept)
            kept = []
        if block.kind == "heading":
            document = document or block.text
            title = f"{document} (footnotes)" if block.text == "Footnotes" else block.text
        else:
            kept.append(block)
    yield from _passage(title, kept)


def _is_full(kept: list[Block], block: Block) -> bool:
    size = sum(len(each.text) for each in kept)
    leads_on = bool(kept) and kept[-1].kind == "prose" and kept[-1].text.endswith(":")
    return size + len(block.text) > PASSAGE_SIZE and not (leads_on and size < PASSAGE_SIZE)


def _passage(title: str, kept: list[Block]) -> Iterator[tuple[str, str, int]]:
    if any(block.kind == "prose" for block in kept):
        yield title, "\n\n".join(block.text for block in kept), kept[0].line


def _blocks(text: str, quoted_literals: bool) -> Iterator[Block]:
    """Yield the cleaned blocks of a document."""
    ended_with_colon, skip_deeper_than = False, None
    groups = list(_groups(text.expandtabs(4).splitlines()))
    for number, (line, lines, fenced) in enumerate(groups):
        indent = _indent(lines[0])
        if skip_deeper_than is not None and indent > skip_deeper_than:
            continue
        skip_deeper_than = None
        heading = None if fenced else _heading(lines)
        following = groups[number + 1][1][0] if number + 1 < len(groups) else ""
        if heading is None and _is_definition(lines, following):
            heading = f"`{lines[0].strip()}`"
        if heading is not None:
            yield Block("heading", clean(heading, quoted_literals=quoted_literals), line)
        elif lines[0].strip().lower() in _LABELS:
            skip_deeper_than = indent if lines[0].strip().lower() == "see also:" else None
        elif fenced or not _is_prose(lines, indented=indent > 0, after_colon=ended_with_colon):
            yield Block("code", "\n".join(_dedented(lines))[:LARGEST_PARAGRAPH], line)
        else:
            ended_with_colon = lines[-1].rstrip().endswith(":")
            yield from (Block("prose", part, line) for part in _paragraphs(lines, quoted_literals))
            continue
        ended_with_colon = False


def _groups(lines: list[str]) -> Iterator[tuple[int, list[str], bool]]:
    """Yield (line number, lines, fenced): what blank lines, fences, headings and bullets separate."""
    group: list[str] = []
    start, fence = 1, False
    for number, line in enumerate([*lines, ""], start=1):
        marks_fence = _FENCE.match(line) is not None
        is_break = marks_fence or (not fence and (not line.strip() or _starts_group(line, group)))
        if is_break and group:
            yield start, group, fence
            group = []
        if marks_fence:
            fence = not fence
        elif line.strip() or fence:
            start = start if group else number
            group.append(line)
    if group:
        yield start, group, fence


def _starts_group(line: str, group: list[str]) -> bool:
    after_heading = bool(group) and _heading(group) is not None
    return after_heading or _HASH_HEADING.fullmatch(line) is not None or _BULLET.match(line) is not None


def _heading(lines: list[str]) -> str | None:
    if lines == ["-[ Footnotes ]-"]:
        return "Footnotes"
    match = _HASH_HEADING.fullmatch(lines[0]) if len(lines) == 1 else None
    if match:
        return match[1]
    if len(lines) == 2 and _RULE.fullmatch(lines[1]) and len(lines[0].strip()) < 200:
        return None if _indent(lines[0]) else lines[0].strip() or None
    return None


def _is_definition(lines: list[str], following: str) -> bool:
    """Whether a line is a signature that heads the indented block below it: `object.__enter__(self)`."""
    is_signature = len(lines) == 1 and "." in lines[0] and _DEFINITION.fullmatch(lines[0]) is not None
    return is_signature and _indent(following) > 0


def _is_prose(lines: list[str], *, indented: bool, after_colon: bool) -> bool:
    text = " ".join(lines).strip()
    if _NOT_PROSE.search("\n".join(lines)) or _RULE.fullmatch(text):
        return False
    if not indented:
        return True
    words = len(re.findall(r"\w+", text)) or 1
    ends_well = text.endswith((".", ":", "!", "?", ")", ",", ";"))
    starts_well = text[0].isupper() or not text[0].isalpha()
    few_small_words = len(_SMALL_WORDS.findall(text)) / words < (0.15 if after_colon else 0.08)
    return ends_well and starts_well and not few_small_words


def _paragraphs(lines: list[str], quoted_literals: bool) -> Iterator[str]:
    """Yield one cleaned paragraph, in pieces if it is very long."""
    is_definition = len(lines) > 1 and _indent(lines[1]) > _indent(lines[0]) and not _BULLET.match(lines[0])
    if is_definition and lines[0].rstrip()[-1].isalnum():
        lines = [f"{lines[0].rstrip()}:", *lines[1:]]
    text = clean("\n".join(lines), quoted_literals=quoted_literals)
    while len(text) > LARGEST_PARAGRAPH:
        cut = max(text.rfind(". ", 0, LARGEST_PARAGRAPH) + 1, text.rfind(" ", 0, LARGEST_PARAGRAPH // 2))
        cut = cut if cut > 0 else LARGEST_PARAGRAPH
        yield text[:cut].strip()
        text = text[cut:].strip()
    if text:
        yield text


def clean(text: str, *, quoted_literals: bool = False) -> str:
    """Return one line of readable text: code in backticks, no other markup, no footnote marks."""
    text = re.sub(r"(?<=\w)-\n\s*(?=[a-z])", "-", text)
    text = " ".join(text.split())
    if quoted_literals:
        text = _LITERAL.sub(r"`\1`", text)
    text = _ROLE_TARGET.sub(r"\1", _ROLE.sub("", text.replace("``", "`")))
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else _plain(piece) for piece in pieces).strip()


def _plain(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text


def _dedented(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    margin = min((_indent(line) for line in lines if line.strip()), default=0)
    return [CODE_INDENT + line[margin:].rstrip() for line in lines]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
