"""Advice: what is probably a mistake in a team, though it can run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from natterjack.errors import nearest
from natterjack.subjects import is_wild, overlap
from natterjack.team import Team
from natterjack.team.model import APPROVAL_ANSWERED, APPROVAL_REQUESTED


def warnings(team: Team) -> list[str]:
    """Return what is probably a mistake, one line each, and at most 20 of each sort."""
    return [line for sort in (_unheard_of, _unheard, _repeated) for line in islice(sort(team), 20)]


def _unheard_of(team: Team) -> Iterator[str]:
    """Events that somebody waits for and nobody emits."""
    known = _Patterns([*team.outside, *(pattern for spec in team.agents.values() for pattern in spec.emitted)])
    for agent, spec in team.agents.items():
        waits = (each for each in spec.waits if each != APPROVAL_ANSWERED)  # humans emit that
        for key, pattern in (*(("on", each) for each in spec.awaited), *(("waits", each) for each in waits)):
            if known.meet(pattern):
                continue
            yield (
                f"{team.place(agent, key)} waits for {pattern!r}, which nobody in the team emits."
                f"{nearest(pattern, known.all)} If it comes from outside, add it to `external` of [team]."
            )


def _unheard(team: Team) -> Iterator[str]:
    """Events that somebody emits and nobody waits for."""
    awaited = _Patterns(team.heard("emit"))
    for agent, spec in team.agents.items():
        for pattern in (each for each in spec.emitted if each != APPROVAL_REQUESTED and not awaited.meet(each)):
            key = "emits" if pattern in (spec.emits or ()) else spec.result_key(pattern)
            yield f"{team.place(agent, key)} emits {pattern!r}, which no agent of the team waits for"


def _repeated(team: Team) -> Iterator[str]:
    """Agents that wake themselves, and triggers that fire for one and the same event.

    A wildcard in `emits` is authority only and says nothing about a loop.
    """
    for agent, spec in team.agents.items():
        place = team.place(agent, "on")
        for index, pattern in enumerate(spec.awaited):
            for own in (each for each in spec.emitted if not is_wild(each) and overlap(each, pattern)):
                yield f"{place} waits for {pattern!r} and emits {own!r} itself: that may never end"
            for other in (each for each in spec.awaited[:index] if overlap(each, pattern)):
                yield f"{place} waits for both {other!r} and {pattern!r}: an event that both match is handled twice"


class _Patterns:
    """Patterns, to find quickly whether one of them meets another: a team may have thousands."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.all = dict.fromkeys(patterns)
        self._wild = [pattern for pattern in self.all if is_wild(pattern)]

    def meet(self, pattern: str) -> bool:
        others = self.all if is_wild(pattern) else self._wild
        return pattern in self.all or any(overlap(pattern, other) for other in others)
