"""A corpus: passages and a full-text index over them, in memory."""

import functools
import math
import os
import re
import stat
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from natterjack.demo.passages import Passage, split
from natterjack.demo.words import exact, open_index, searchable, terms
from natterjack.errors import NatterjackError

__all__ = ["Corpus", "CorpusError", "Hit", "Passage"]

SUFFIXES = (".txt", ".md", ".markdown", ".rst")
LARGEST_FILE = 2_000_000
"""Bytes; larger files are skipped."""
LARGEST_FOLDER = 40_000_000
"""Bytes read from a folder; what comes later is skipped."""
WEIGHTS = "3.0, 1.0, 1.0"
"""Of the index's columns in BM25: title, text, exact forms."""
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "site-packages"})


class CorpusError(NatterjackError):
    """There is nothing to search: the folder is missing or holds no text."""

    def __init__(self, folder: str, problem: str) -> None:
        self.folder = folder
        super().__init__(
            f"Folder {folder!r} {problem}. Name a folder with UTF-8 text ({', '.join(SUFFIXES)}), "
            "at least one paragraph in all."
        )


class Hit(BaseModel):
    """A passage found, and its BM25 score: larger is better."""

    model_config = ConfigDict(frozen=True)

    passage: Passage
    score: float


class Corpus:
    """Passages to search.

    Attributes:
        name: What the corpus is, for people.
        passages: All of them, in order.
        skipped: Files that were left out, each with the reason.
    """

    def __init__(self, name: str, passages: Iterable[Passage], skipped: Iterable[str] = ()) -> None:
        self.name = name
        self.passages = tuple(passages)
        self.skipped = tuple(skipped)
        self._index = open_index("title, text, exact")
        weakref.finalize(self, self._index.close)  # Python 3.13 warns of a connection that nobody closes
        self._index.executemany(
            "INSERT INTO passages(rowid, title, text, exact) VALUES (?, ?, ?, ?)",
            (
                (row, searchable(each.title), searchable(each.text), exact(f"{each.title} {each.text}"))
                for row, each in enumerate(self.passages)
            ),
        )

    @classmethod
    @functools.cache
    def language_reference(cls) -> Self:
        """Return the Python language reference, which every CPython carries inside."""
        from pydoc_data.topics import topics  # 500 KB of text: only for who searches it

        # Long topics repeat short ones: read the short ones first, so that a passage keeps its precise source.
        order = sorted(topics, key=lambda topic: (len(topics[topic]), topic not in topics[topic][:60], topic))
        documents = (
            (f"{topic}-", f"The Python Language Reference: {topic}", topic, topics[topic], False) for topic in order
        )
        return cls("the Python language reference", _passages(documents, quoted_literals=True))

    @classmethod
    def from_folder(cls, docs: Path) -> Self:
        """Return the text, Markdown and reStructuredText files below a folder.

        Raises:
            CorpusError: No folder, or no readable text in it.
        """
        if not docs.is_dir():
            raise CorpusError(str(docs), "does not exist or is not a folder")
        skipped: list[str] = []
        documents = (
            (f"{_slug(path)}-", path, Path(path).stem, text, True) for path, text in _read_folder(docs, skipped)
        )
        corpus = cls(f"the documents in {docs.name or docs}", _passages(documents, quoted_literals=False), skipped)
        if not corpus.passages:
            why = f" (skipped: {'; '.join(skipped[:5])})" if skipped else ""
            raise CorpusError(str(docs), f"holds no text to search{why}")
        return corpus

    def search(self, query: str, limit: int = 12) -> list[Hit]:
        """Return the passages that match any word of the query, best first; titles and exact forms weigh more."""
        match = _match(query)
        if not match:
            return []
        rows = self._index.execute(
            f"SELECT rowid, -bm25(passages, {WEIGHTS}) AS score FROM passages WHERE passages MATCH ? "  # noqa: S608 - a constant
            "ORDER BY score DESC, rowid LIMIT ?",
            (match, limit),
        )
        return [Hit(passage=self.passages[row], score=round(score, 6)) for row, score in rows]

    def frequency(self, stem: str) -> int:
        """Return in how many passages a stem occurs."""
        row = self._index.execute("SELECT doc FROM terms WHERE term = ?", (stem,)).fetchone()
        return int(row[0]) if row else 0

    def rarity(self, stem: str) -> float:
        """Return the inverse document frequency of a stem, as BM25 defines it."""
        frequency = self.frequency(stem)
        return math.log(1 + (len(self.passages) - frequency + 0.5) / (frequency + 0.5))

    def topics(self, most: int = 5) -> list[str]:
        """Return the headings under which most passages stand."""
        return [title for title, _ in Counter(passage.title for passage in self.passages).most_common(most)]

    def nearest(self, word: str) -> str | None:
        """Return the corpus's own word for one that it lacks: a longer form, or another spelling."""
        if len(word) < 5:
            return None
        close = [known for known in self._words if known.startswith(word)]
        close = close or get_close_matches(word, self._words, n=5, cutoff=0.88)
        return max(close, key=lambda known: (self._words[known], known), default=None)

    @functools.cached_property
    def _words(self) -> Counter[str]:
        """The words of the corpus, as written in lower case, with the number of passages that hold each."""
        rows = self._index.execute("SELECT term, doc FROM terms WHERE term GLOB '*0' AND doc > 1")
        return Counter({term[:-1]: doc for term, doc in rows if term[:-1].isalpha()})


def _match(query: str) -> str:
    """Return the FTS5 expression of a query: its words, their exact forms, and neighbours as phrases."""
    wanted = terms(query)
    wanted = [term for term in wanted if not term.soft] or wanted
    phrases = {word for term in wanted for word in (term.indexed, exact(term.indexed))}
    for left, right in pairwise(wanted):
        if right.position == left.position + 1:
            phrases.add(f"{left.indexed} {right.indexed}")
    return " OR ".join(f'"{phrase}"' for phrase in sorted(phrases))


def _passages(documents: Iterable[tuple[str, str, str, str, bool]], *, quoted_literals: bool) -> Iterator[Passage]:
    """Split (id prefix, source, title, text, cite the line); what was said before is not repeated."""
    seen: set[str] = set()
    numbers: Counter[str] = Counter()
    for prefix, source, title, text, cite_line in documents:
        for heading, body, line in split(text, title, quoted_literals=quoted_literals):
            if body in seen:
                continue
            seen.add(body)
            numbers[prefix] += 1
            yield Passage(
                id=f"{prefix}{numbers[prefix]}",
                source=f"{source}:{line}" if cite_line else source,
                title=heading,
                text=body,
                line=line if cite_line else None,
            )


def _read_folder(docs: Path, skipped: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (path within the folder, text); append what cannot be read to `skipped`, with the reason."""
    budget, others = LARGEST_FOLDER, Counter[str]()
    for path in _files(docs, skipped):
        name = path.relative_to(docs).as_posix().encode(errors="replace").decode()
        if path.suffix.lower() not in SUFFIXES:
            others[path.suffix.lower() or "none"] += 1
            continue
        text, problem = _read_text(path, docs, budget)
        if problem:
            skipped.append(f"{name}: {problem}")
        else:
            budget -= len(text)
            yield name, text
    skipped.extend(f"{count} of type {suffix}" for suffix, count in sorted(others.items()))


def _files(docs: Path, skipped: list[str]) -> Iterator[Path]:
    """Yield the files below a folder in a stable order, without hidden and installed folders."""
    for folder, folders, names in os.walk(docs, onerror=lambda error: skipped.append(str(error))):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _read_text(path: Path, docs: Path, budget: int) -> tuple[str, str]:
    """Return the text of a file, or an empty text and why it is not read."""
    most = min(LARGEST_FILE, budget)
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(docs.resolve()):
            return "", "a link out of the folder"
        details = path.stat()
        if not stat.S_ISREG(details.st_mode):
            return "", "not a regular file"
        if details.st_size > most:
            return "", f"{details.st_size:,} bytes are more than the {most:,} that may be read"
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return "", f"not UTF-8 at byte {error.start}"
    except OSError as error:
        return "", error.strerror or str(error)
    return ("", "binary, not text") if "\0" in text else (text, "")


def _slug(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.rsplit(".", 1)[0].lower()).strip("-")[-40:] or "passage"
