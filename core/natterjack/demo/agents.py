"""The demo's three agents. They share findings, analysis and draft by context, and wake one another by events."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from natterjack.components import Agent
from natterjack.demo.analysis import Findings, Verdict, assess, research
from natterjack.demo.corpus import Corpus, Hit
from natterjack.demo.phrasing import Wording, asking
from natterjack.demo.report import notes, write_report
from natterjack.messages import Event
from natterjack.runs import RunContext
from natterjack.settings import Settings

EDITOR = "editor"
PATIENCE = 240.0
"""Seconds that the editor may take."""
MAX_ROUNDS = 3
"""Rounds of research: the first, and two more that the analyst may ask for."""


class Researcher(Agent):
    """Finds passages that bear on a question."""

    class Config(Settings):
        """Settings of the researcher.

        Attributes:
            docs: Folder of text and Markdown files; the Python language reference by default.
            search: Tool that searches them, `server.tool`; by default it searches by itself.
        """

        docs: str | None = None
        search: str | None = None

    config: Config

    async def start(self) -> None:
        """Index the corpus, once."""
        docs = self.config.docs
        self._corpus = Corpus.from_folder(Path(docs)) if docs else Corpus.language_reference()

    async def handle(self, event: Event, ctx: RunContext) -> dict[str, Any]:
        """Search, share what was found, and say how much it is."""
        question, number, tool = event.data["question"], event.data.get("round", 1), self.config.search
        findings = await research(
            self._corpus,
            question,
            round=number,
            missing=event.data.get("missing", ()),
            search=partial(_search_by, tool, ctx) if tool else None,
        )
        await ctx.shared.set("findings", findings)
        return {
            "question": question,
            "round": number,
            "corpus": findings.corpus,
            "passages": len(findings.hits),
            "queries": findings.queries,
            "searched_by": tool,
        }


async def _search_by(tool: str, ctx: RunContext, query: str) -> list[Hit]:
    return [Hit.model_validate(hit) for hit in await ctx.tools.call(tool, query=query)]


class Analyst(Agent):
    """Judges findings from 1 to 5; below 3 it asks for more research, at most twice."""

    async def handle(self, event: Event, ctx: RunContext) -> dict[str, Any]:
        """Pass the findings on to the writer, or send the researcher out again."""
        findings = Findings.model_validate(ctx.shared.get("findings"))
        verdict = assess(findings)
        await ctx.shared.set("analysis", verdict)
        told = {"question": findings.question, "round": findings.round, "quality": verdict.quality}
        if not verdict.enough and verdict.missing and findings.round < MAX_ROUNDS:
            more = {"question": findings.question, "round": findings.round + 1, "missing": verdict.missing}
            await ctx.emit("research.more", more | {"quality": verdict.quality})
        else:
            await ctx.emit("analysis.approved", told | {"answerable": verdict.answerable, "reasons": verdict.reasons})
        return told


class Writer(Agent):
    """Writes the report; each statement cites the passage it is taken from."""

    class Config(Settings):
        """Settings of the writer.

        Attributes:
            model: The editor's model, which is asked for the short answer; by default the writer quotes one.
        """

        model: str | None = None

    config: Config

    async def handle(self, event: Event, ctx: RunContext) -> dict[str, Any]:
        """Write from what the others share."""
        findings = Findings.model_validate(ctx.shared.get("findings"))
        verdict = Verdict.model_validate(ctx.shared.get("analysis"))
        report = write_report(findings.question, findings, verdict, await self._wording(ctx, findings, verdict))
        await ctx.shared.set("draft", report.markdown)
        await ctx.shared.set("status", "complete")
        return report.model_dump(mode="json")

    async def _wording(self, ctx: RunContext, findings: Findings, verdict: Verdict) -> Wording | None:
        noted = notes(findings, verdict)
        if self.config.model is None or not noted:
            return None
        answer = await ctx.ask_peer(EDITOR, asking(findings.question, noted), timeout=PATIENCE)
        return Wording(model=self.config.model, text=str(answer))
