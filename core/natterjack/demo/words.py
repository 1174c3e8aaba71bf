"""Words: what a question asks about, in the tokens that the full-text index holds.

SQLite's FTS5 is the only tokeniser and stemmer (unicode61 and Porter), so that the question, the
passages and the report always agree on what a word is.
"""

import keyword
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import NamedTuple

from natterjack.errors import NatterjackError

TOKENIZER = "porter unicode61 remove_diacritics 2"
MOST_TERMS = 32

STOP_WORDS = frozenset(
    """
    a about after all also am an and any are as at be because been being but by can could did do does doing for from get
    give had has have he her here him his how i if in into is it its just let like me more most my no not of on one or
    other our out over own please she should so some such than that the their them then there these they this those to
    too two under up us very was we were what when where which while who whom whose why will with would you your s t re
    ve ll d m vs versus
    """.split()  # noqa: SIM905 - words to read, not a list of quotes
)
"""Words that say nothing about the subject of a question."""

SOFT_WORDS = frozenset(
    """
    best between describe difference differences different done example examples explain exactly good happen happens
    handle know look make mean meaning means need purpose show tell thing things understand use used uses using
    want way ways work working works write
    """.split()  # noqa: SIM905 - words to read, not a list of quotes
)
"""Words that ask rather than name; a question of nothing else names nothing to search for."""

KEYWORDS = frozenset(keyword.kwlist)
CODE_WORDS = KEYWORDS & STOP_WORDS
_CODE = "|".join(sorted(CODE_WORDS))
_OPERATOR = r"\*\*=?|//=?|==|!=|<=|>=|:=|->|<<|>>|\+=|-=|\*=|@=|[*@%^~|&]"
_IN_QUOTES = re.compile(
    r"`([^`\n]{1,80})`|(?<!\w)[\"'\u201c\u2018]([^\"'\u201c\u201d\u2018\u2019\n]{1,40})[\"'\u201d\u2019](?!\w)"
)
_AS_CODE = re.compile(
    rf"\b(?:does|between|versus|vs\.?|async|yield|keyword)\s+({_CODE})\b"
    rf"|\b({_CODE})(?=\s+(?:statements?|operators?|keywords?|clauses?|loops?|blocks?|expressions?|vs|versus)\b)"
    rf"|\b({_CODE})(?=\s+(?:and|or)\s+[`\"']?(?:{_OPERATOR})(?!\w))"
    rf"|(?<=[=<>!]\s)(?:and|or)\s+({_CODE})\b",
    re.IGNORECASE,
)
_TOKEN = re.compile(rf"[^\W_]+|(?<![^\s`\"'\u201c(])(?:{_OPERATOR})(?![^\s`\"'\u201d),.?!])")
_WORD = re.compile(r"[^\W_]+")
_SPAN = re.compile(r"`[^`]*`")


class FullTextMissingError(NatterjackError):
    """This Python's SQLite cannot search text."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"SQLite {sqlite3.sqlite_version} of this Python has no usable FTS5 full-text search ({reason}). "
            "Use a Python whose sqlite3 module has it: one from python.org, or `uv python install 3.12`."
        )


class Term(NamedTuple):
    """One word of a question: as shown to people, as indexed, its stem, and what kind of word it is."""

    shown: str
    indexed: str
    stem: str = ""
    position: int = 0
    soft: bool = False
    named: bool = False


def open_index(columns: str) -> sqlite3.Connection:
    """Open an empty index in memory: FTS5 table `passages`, its vocabulary in `terms` and `instances`.

    Raises:
        FullTextMissingError: SQLite was built without FTS5.
    """
    index = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        index.executescript(f"""
            CREATE VIRTUAL TABLE passages USING fts5({columns}, content='', tokenize='{TOKENIZER}');
            CREATE VIRTUAL TABLE terms USING fts5vocab(passages, 'row');
            CREATE VIRTUAL TABLE instances USING fts5vocab(passages, 'instance');
        """)
    except sqlite3.OperationalError as error:
        index.close()
        raise FullTextMissingError(str(error)) from error
    return index


def stems(texts: Iterable[str]) -> list[list[str]]:
    """Return the stemmed tokens of each text, in order, exactly as the index would store them."""
    rows = list(enumerate(map(searchable, texts)))
    found: list[list[str]] = [[] for _ in rows]
    with closing(open_index("text")) as index:
        index.executemany("INSERT INTO passages(rowid, text) VALUES (?, ?)", rows)
        for document, term in index.execute('SELECT doc, term FROM instances ORDER BY doc, "offset"'):
            found[document].append(term)
    return found


def searchable(text: str) -> str:
    """Return the text to index: in code spans, operators and keywords that are also stop words become words."""
    return _SPAN.sub(_searchable_span, text)


def _searchable_span(span: re.Match[str]) -> str:
    """Return the tokens of a code span; one that stands alone is named, not used, and counts twice."""
    code = _TOKEN.sub(_code_token, span.group())
    return f"{code} {code}" if _TOKEN.fullmatch(span.group()[1:-1]) else code


def exact(text: str) -> str:
    """Return the words of a text in a form that Porter leaves alone: it makes one stem of generator and generic."""
    return " ".join(map(_exact_token, _WORD.findall(text.lower())))


def terms(question: str) -> list[Term]:
    """Return the distinct words that a question asks about, at most `MOST_TERMS`, in order.

    Stop words go, unless the question uses them as code: "the with statement", "`is`", "async with".
    """
    tokens = list(_TOKEN.finditer(question))
    code = _code_positions(question)
    if all(token.group().lower() in KEYWORDS for token in tokens):
        code = {token.start() for token in tokens}
    found: dict[str, Term] = {}
    for position, token in enumerate(tokens):
        word = token.group()
        is_code = token.start() in code or not word[0].isalnum()
        if word.lower() in STOP_WORDS and not is_code:
            continue
        indexed = _code_token(token) if is_code else word
        named = position > 0 and word[0].isupper() and not is_code
        found.setdefault(indexed.lower(), Term(word[:60], indexed, "", position, word.lower() in SOFT_WORDS, named))
        if len(found) == MOST_TERMS:
            break
    return _stemmed(found.values())


def _stemmed(found: Iterable[Term]) -> list[Term]:
    """Replace the words of terms with their stems; of words with one stem the first stays."""
    found = list(found)
    kept: dict[str, Term] = {}
    for term, tokens in zip(found, stems(term.indexed for term in found), strict=True):
        if len(tokens) == 1:
            kept.setdefault(tokens[0], term._replace(stem=tokens[0]))
    return list(kept.values())


def _code_positions(question: str) -> set[int]:
    """Return where words start that the question marks, or uses, as code."""
    positions = {match.start(group) for match in _AS_CODE.finditer(question) for group in range(1, 5) if match[group]}
    for span in _IN_QUOTES.finditer(question):
        positions.update(token.start() for token in _TOKEN.finditer(question, span.start(), span.end()))
    return positions


def _code_token(token: re.Match[str]) -> str:
    word = token.group()
    if not word[0].isalnum():
        return f"operator{word.encode().hex()}0"
    return f"keyword{word.lower()}0" if word.lower() in CODE_WORDS else word


def _exact_token(word: str) -> str:
    plural = len(word) > 3 and word.endswith("s") and not word.endswith("ss")
    return f"{word[:-1] if plural else word}0"
