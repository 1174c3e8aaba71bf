"""The demo with a model: it phrases the short answer, and what the documents do not state is left out of it."""

from dataclasses import replace

import pytest

from natterjack.cli.play import QUESTION, Stage, demo_team, play
from natterjack.demo.agents import EDITOR, Writer
from natterjack.demo.analysis import assess, research
from natterjack.demo.corpus import Corpus
from natterjack.demo.phrasing import MOST_NOTES, Wording, asking, held
from natterjack.demo.report import Report, notes, write_report
from natterjack.errors import ConfigError, PluginError
from natterjack.plugins import DISABLED, Plugins
from natterjack.process import AgentProcess
from natterjack.runtime import AgentRuntime
from natterjack.testing import NatsServer

from .model_server import ModelServer

SHORTER = "The `with` statement is used to wrap the execution of a block."
INVENTED = "The `with` statement was invented by a frog in 1987."
MODEL = "openai:gpt-5-mini"


async def wording(text: str) -> Report:
    findings = await research(Corpus.language_reference(), QUESTION)
    return write_report(QUESTION, findings, assess(findings), Wording(model=MODEL, text=text))


def assert_quoted(report: Report) -> None:
    """Every statement stands word by word in the passage that it cites."""
    assert report.statements
    for statement in report.statements:
        assert statement.text in " ".join(report.passages[statement.source - 1].text.split())
        assert f"- {statement.text} [{statement.source}]" in report.markdown or not report.phrases


async def test_a_model_is_asked_with_the_notes_alone() -> None:
    findings = await research(Corpus.language_reference(), QUESTION)
    noted = notes(findings, assess(findings))
    asked = asking(QUESTION, noted)
    assert asked.startswith(QUESTION)
    assert [line.removeprefix("- ") for line in asked.splitlines()[1:]] == [note.text for note in noted[:MOST_NOTES]]


async def test_what_a_statement_says_is_kept_and_the_rest_is_counted() -> None:
    report = await wording(f"{SHORTER} {INVENTED}")
    assert_quoted(report)
    (phrase,) = report.phrases
    assert phrase.text == SHORTER
    assert f"**In short.** {SHORTER} [{phrase.source}]" in report.markdown
    assert SHORTER.removesuffix(".") in " ".join(report.passages[phrase.source - 1].text.split())
    assert report.model == MODEL
    assert report.dropped == 1
    assert INVENTED not in report.markdown
    assert "wrote 2 sentences" in report.markdown
    assert report.citations == len(report.statements) + 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "wrote no sentence"),
        ("I do not know.", "wrote no sentence"),
        (INVENTED, "None is kept"),
        ("You should <script>ignore</script> all of the notes!", "wrote 1 sentence from the statements below. None is"),
    ],
)
async def test_where_nothing_is_kept_the_answer_is_quoted_and_it_is_said(text: str, told: str) -> None:
    report = await wording(text)
    assert_quoted(report)
    assert report.phrases == []
    assert told in report.markdown
    assert "<script>" not in report.markdown


@pytest.mark.parametrize(
    ("statement", "sentence", "kept"),
    [
        ("A toad may eat a fly, but it never eats a frog.", "A toad may eat a fly, but it eats a frog.", False),
        ("A toad may eat a fly, but it never eats a frog.", "A toad may eat a fly, but never a frog.", True),
        ("Frogs eat flies in the evening at the pond.", "Flies eat frogs at the pond.", False),
        ("Frogs eat flies in the evening at the pond.", "Frogs eat flies at the pond.", True),
        ("If it returns without an error, `f` is called always.", "If it returns an error, `f` is called.", False),
        ("Frogs eat flies in the evening at the pond.", "It is so, and it will be.", False),
    ],
)
async def test_a_sentence_may_leave_words_out_and_add_none(statement: str, sentence: str, kept: bool) -> None:
    findings = await research(Corpus.language_reference(), QUESTION)
    (note, *_) = notes(findings, assess(findings))
    found, dropped = held(Wording(model=MODEL, text=sentence), [replace(note, text=statement)])
    assert ([text for text, _ in found], dropped) == (([sentence], 0) if kept else ([], 1))


async def test_a_provider_is_asked_over_http(model_server: ModelServer, own_server: NatsServer) -> None:
    findings = await research(Corpus.language_reference(), QUESTION)
    runtime = AgentRuntime(own_server.url)
    runtime.add_process(AgentProcess("writer", agent=Writer.create({"model": MODEL}), asks=[EDITOR]))
    runtime.add_process(AgentProcess(EDITOR, agent_config={"kind": "llm", "model": MODEL}))
    model_server.script = lambda body: f"{SHORTER} {INVENTED}"
    async with runtime:
        await runtime.context.set("findings", findings)
        await runtime.context.set("analysis", assess(findings))
        run = await runtime.inject_event("writer", {"type": "analysis.approved"})
        report = Report.model_validate(await run.result(20))
    assert_quoted(report)
    assert [phrase.text for phrase in report.phrases] == [SHORTER]
    (asked,) = model_server.asked
    assert asked["model"] == "gpt-5-mini"
    assert notes(findings, assess(findings))[0].text in str(asked["input"])


@pytest.mark.parametrize(
    ("model", "problem"),
    [("openai:gpt-5-mini", "OPENAI_API_KEY"), ("nobody:x", "Unknown model"), ("local:no.gguf", "'local'")],
)
async def test_a_model_that_cannot_be_used_is_one_error_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, model: str, problem: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    shown: list[str] = []
    with pytest.raises(ConfigError, match=problem) as raised:
        await play(QUESTION, None, Stage(lambda who, what: shown.append(who), lambda who, line: None), model)
    assert "\n" not in str(raised.value)
    assert shown == []


def test_without_the_plugin_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DISABLED, "llm")
    with pytest.raises(PluginError, match="`natterjack install natterjack-llm`"):
        demo_team(None, Plugins.load(), "local")
