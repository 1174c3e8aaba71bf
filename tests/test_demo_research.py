"""The demo's research: real retrieval, a real gate, and reports that state only what they cite."""

import asyncio
import json
import os
import random
import sqlite3
import string
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from natterjack.demo import words
from natterjack.demo.analysis import Findings, Verdict, assess, research
from natterjack.demo.corpus import LARGEST_FILE, Corpus, CorpusError
from natterjack.demo.report import Report, write_report
from natterjack.demo.selection import MOST_STATEMENTS
from natterjack.demo.sentences import sentences
from natterjack.demo.words import FullTextMissingError, stems, terms
from natterjack.errors import NatterjackError

ANSWERABLE = {
    "How does the with statement work?": "context manager",
    "What is the difference between is and ==?": "same object",
    "how are default arguments evaluated": "evaluated from left to right when the function definition is executed",
    "what is a metaclass": "metaclass",
    "how do generators work with yield from": "generator function",
    "How does async with work?": "asynchronous context manager",
    "what does global do": "entire current code block",
    "when is __del__ called?": "about to be destroyed",
    "What does the else clause on a for loop do?": "`else` clause",
    "how does exception chaining work with raise from": "`__cause__`",
    "what does lambda do": "anonymous function",
    "what is a descriptor": "binding behavior",
}
UNANSWERABLE = [
    "What is the capital of France?",
    "best recipe for lasagne",
    "quantum entanglement decoherence",
    "Who won the world cup in 2018?",
    "How do I install Docker on Ubuntu?",
    "who is the president of the United States",
    "how to lose weight fast",
    "is god real",
]
ASKED = ["with", "is", "==", "yield", "from", "metaclass", "scope", "default", "del", "class", "name", "object"]
NOISE = "".join(random.Random(7).choices(string.ascii_letters + string.punctuation + " ", k=10_000))
HOSTILE = [
    "",
    "   \n\t ",
    "?!...,;((",
    "what is the difference, and how does it work",
    '"',
    "'; DROP TABLE passages; --",
    'NEAR("a" AND *) OR title:x^2 "unbalanced',
    "{zz natterjack} : - ^ * AND OR NOT",
    "\x00\x1b[31m\ud800",
    "😀 🐍 👩‍👩‍👧",
    "नमस्ते 世界 ß İ ﬁ",
    "a" * 10_000,
    "(" * 5_000,
    "`" * 999,
    NOISE,
    " ".join(f"word{number}" for number in range(2_000)),
]


@pytest.fixture(scope="module")
def reference() -> Corpus:
    return Corpus.language_reference()


def answer(corpus: Corpus, question: str) -> tuple[Report, list[Verdict]]:
    """Run the three stages as the agents do: every value crosses as JSON."""
    verdicts: list[Verdict] = []
    missing: list[str] = []
    while True:
        found = asyncio.run(research(corpus, question, round=len(verdicts) + 1, missing=missing))
        findings = Findings.model_validate_json(found.model_dump_json())
        verdict = Verdict.model_validate_json(assess(findings).model_dump_json())
        verdicts.append(verdict)
        if verdict.enough:
            report = write_report(question, findings, verdict)
            return Report.model_validate_json(report.model_dump_json()), verdicts
        missing = verdict.missing


def assert_cites_verbatim(report: Report, corpus: Corpus) -> None:
    known = {passage.id: passage for passage in corpus.passages}
    body, _, sources = report.markdown.partition("## Sources")
    assert report.citations == len(report.statements) <= MOST_STATEMENTS
    for statement in report.statements:
        passage = report.passages[statement.source - 1]
        assert statement.text in " ".join(passage.text.split())
        assert f"{statement.text} [{statement.source}]" in body
        body = body.replace(f"{statement.text} [{statement.source}]", "", 1)
    for number, passage in enumerate(report.passages, start=1):
        assert passage == known[passage.id]
        assert f"{number}. **{passage.id}** · {passage.source}" in sources
    left = [line for line in body.splitlines() if line.strip(" -") and not line.startswith(("#", "**In short.**"))]
    assert left == []


@pytest.mark.parametrize("question", ANSWERABLE)
def test_the_reference_answers_with_verbatim_cited_sentences(reference: Corpus, question: str) -> None:
    report, verdicts = answer(reference, question)
    assert report.answered
    assert verdicts[-1].quality >= 3
    assert ANSWERABLE[question].lower() in report.markdown.partition("## Sources")[0].lower()
    assert report.citations >= 2
    assert_cites_verbatim(report, reference)


@pytest.mark.parametrize("question", UNANSWERABLE)
def test_what_the_reference_cannot_answer_is_refused_plainly(reference: Corpus, question: str) -> None:
    report, verdicts = answer(reference, question)
    assert not report.answered
    assert len(verdicts) == 3
    assert [verdict.answerable for verdict in verdicts] == [False] * 3
    assert report.citations == len(report.passages) == len(report.statements) == 0
    assert "**Not answered.**" in report.markdown
    assert "## What was searched for" in report.markdown


def test_a_refusal_names_the_words_that_the_corpus_lacks(reference: Corpus) -> None:
    report, verdicts = answer(reference, "What is the capital of France?")
    assert verdicts[-1].missing == ["France"]
    assert "## Words the corpus does not hold\n\n- France\n" in report.markdown
    assert "## Nearest topics" in report.markdown


@pytest.mark.parametrize("question", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_questions_end_in_a_plain_refusal(reference: Corpus, question: str) -> None:
    started = time.perf_counter()
    report, verdicts = answer(reference, question)
    assert time.perf_counter() - started < 5
    assert not report.answered
    assert len(verdicts) <= 3
    assert "\n" not in report.title
    assert len(report.title) <= 120
    assert len(report.markdown) < 6_000


@given(st.text(max_size=200))
@settings(deadline=None, max_examples=100)
def test_no_query_is_a_syntax_error(query: str) -> None:
    hits = Corpus.language_reference().search(query)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@given(st.lists(st.sampled_from(ASKED), min_size=1))
@settings(deadline=None, max_examples=40)
def test_every_statement_is_a_verbatim_sentence_of_its_passage(asked: list[str]) -> None:
    corpus = Corpus.language_reference()
    report, _ = answer(corpus, " ".join(asked))
    if report.answered:
        assert_cites_verbatim(report, corpus)
    else:
        assert report.statements == []


def test_other_questions_give_other_reports_and_the_same_question_the_same(reference: Corpus) -> None:
    reports = [answer(reference, question)[0].markdown for question in ANSWERABLE]
    assert len({markdown.partition("\n")[2] for markdown in reports}) == len(reports)
    again = Corpus("the Python language reference", reference.passages)
    assert [answer(again, question)[0].markdown for question in ANSWERABLE] == reports


def test_a_misspelt_word_is_found_in_the_second_round(reference: Corpus) -> None:
    report, verdicts = answer(reference, "what is a generater function")
    assert [verdict.enough for verdict in verdicts] == [False, True] or verdicts[0].missing == ["generater"]
    report, verdicts = answer(reference, "generater")
    assert len(verdicts) == 2
    assert report.answered
    assert "'generater' was read as 'generator'." in verdicts[-1].reasons


def test_later_rounds_search_more(reference: Corpus) -> None:
    question = "what is the walrus operator for expressions"
    rounds = [asyncio.run(research(reference, question, round=number, missing=["walrus"])) for number in (1, 2, 3)]
    assert len(rounds[0].queries) < len(rounds[1].queries) < len(rounds[2].queries)
    assert all(findings.round == number for number, findings in enumerate(rounds, start=1))


def test_the_gate_wants_the_words_in_one_place(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# Toads\n\nThe natterjack runs instead of hopping on its short legs.\n")
    (tmp_path / "b.md").write_text("# Brokers\n\nA broker stores messages until consumers acknowledge them.\n")
    corpus = Corpus.from_folder(tmp_path)
    together = assess(asyncio.run(research(corpus, "does the natterjack run on short legs")))
    apart = assess(asyncio.run(research(corpus, "do natterjacks acknowledge consumers with short messages")))
    assert together.quality == 5
    assert apart.coverage == 1
    assert apart.quality < together.quality


def test_operators_and_keywords_count_where_they_are_meant_as_code() -> None:
    assert [term.shown for term in terms("How does the with statement work?")] == ["with", "statement", "work"]
    assert [term.shown for term in terms("how do I work with files in folders")] == ["work", "files", "folders"]
    assert [term.shown for term in terms("is vs ==")] == ["is", "=="]
    assert [term.shown for term in terms("what is `in` for")] == ["in"]
    assert terms("what is it") == []


def test_stems_are_those_of_the_index() -> None:
    assert stems(["Evaluated, evaluates", "", "`is` is"]) == [
        ["evalu", "evalu"],
        [],
        ["keywordis0", "keywordis0", "is"],
    ]


def test_passages_are_citeable_pieces(reference: Corpus) -> None:
    ids = [passage.id for passage in reference.passages]
    assert len(set(ids)) == len(ids) > 300
    assert "with-1" in ids
    assert len({passage.text for passage in reference.passages}) == len(ids)
    assert max(len(passage.text) for passage in reference.passages) < 6_000
    assert next(p for p in reference.passages if p.id == "with-1").source == "The Python Language Reference: with"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Use e.g. a list or a tuple. It works as well here.",
            ["Use e.g. a list or a tuple.", "It works as well here."],
        ),
        (
            "The `a.b. C` span stays whole. `await` may begin one.",
            ["The `a.b. C` span stays whole.", "`await` may begin one."],
        ),
        (
            "See Dr. Smith for the details.\nA 3.11 is the floor.",
            ["See Dr. Smith for the details.", "A 3.11 is the floor."],
        ),
        ("1. The context expression is evaluated first.", ["The context expression is evaluated first."]),
        ("    code = sentence. That is not prose at all.", []),
        ("The following holds for every one of them:", []),
    ],
)
def test_sentences_are_whole(text: str, expected: list[str]) -> None:
    assert list(sentences(text)) == expected


def test_a_folder_is_read_recursively_and_what_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.md").write_text("Hidden folders are nobody's documents at all.")
    (tmp_path / "notes" / "foo.md").write_text(
        "---\n\n# Lamps\n\nA **lighthouse** keeper [cleans](http://x.invalid/) the `lens` <b>daily</b> [3].\n\n"
        "```python\nprint('no prose')\n```\n\n- Oil is kept in the cellar of the tower.\n"
    )
    (tmp_path / "notes" / "deep" / "bar.rst").write_text("Fog\n===\n\nThe fog signal sounds ``twice`` each minute.\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 100)
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01" * 100)
    (tmp_path / "huge.md").write_bytes(b"x" * (LARGEST_FILE + 1))
    (tmp_path / "photo.png").write_bytes(b"png")
    (tmp_path / "broken.md").symlink_to(tmp_path / "absent.md")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "away.md").symlink_to(__file__)
    os.mkfifo(tmp_path / "pipe.md")
    corpus = Corpus.from_folder(tmp_path)
    assert sorted(passage.title for passage in corpus.passages) == ["Fog", "Lamps"]
    lamps = next(passage for passage in corpus.passages if passage.title == "Lamps")
    assert (lamps.source, lamps.line) == ("notes/foo.md:5", 5)
    assert "A lighthouse keeper cleans the `lens` daily." in lamps.text
    unread = ["away.md", "binary.txt", "broken.md", "huge.md", "latin.txt", "pipe.md"]
    assert [name.split(":")[0] for name in corpus.skipped] == [*unread, "1 of type .png"]
    report, _ = answer(corpus, "what does the lighthouse keeper clean")
    assert [statement.text for statement in report.statements][:1] == ["A lighthouse keeper cleans the `lens` daily."]


def test_one_line_of_a_million_characters_is_cut(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 200_000 + "x" * 500_000)
    started = time.perf_counter()
    corpus = Corpus.from_folder(tmp_path)
    assert time.perf_counter() - started < 10
    assert max(len(passage.text) for passage in corpus.passages) < 6_000
    assert corpus.search("word")


@given(st.text(max_size=400))
@settings(deadline=None, max_examples=100)
def test_any_text_becomes_passages_or_none(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("docs")
    last = "A sentence that is always there."
    (folder / "any.md").write_text(f"{text}\n\n{last}\n", encoding="utf-8", errors="replace")
    (folder / "other.md").write_text("A paragraph for every case.")
    passages = Corpus.from_folder(folder).passages
    assert json.loads(json.dumps([passage.model_dump() for passage in passages]))


@pytest.mark.parametrize("make", [lambda path: path / "absent", lambda path: path])
def test_a_folder_without_text_is_a_clear_error(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    folder = make(tmp_path)
    with pytest.raises(CorpusError, match="UTF-8 text") as caught:
        Corpus.from_folder(folder)
    assert isinstance(caught.value, NatterjackError)
    assert repr(str(folder)) in str(caught.value)


def test_sqlite_without_fts5_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "TOKENIZER", "no_such_tokenizer")
    with pytest.raises(FullTextMissingError, match=f"SQLite {sqlite3.sqlite_version}.*uv python install"):
        words.open_index("text")


def test_a_question_is_answered_in_under_a_second() -> None:
    started = time.perf_counter()
    corpus = Corpus.language_reference.__func__.__wrapped__(Corpus)  # type: ignore[attr-defined]
    report, _ = answer(corpus, "What is the capital of France?")
    report, _ = answer(corpus, "How does the with statement work?")
    assert report.answered
    assert time.perf_counter() - started < 3  # 0.3 s alone; the machine may be busy
