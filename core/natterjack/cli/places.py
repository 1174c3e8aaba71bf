"""Places: whose is what in the streams in which all store, and how one is kept out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Final

from natterjack import subjects
from natterjack.stores import ATTESTED, STREAMS, attested
from natterjack.team import Team

SHARED: Final = {
    subjects.EVENTS: subjects.stored_events(">", "{}"),
    subjects.MESSAGES: "stored.messages.{}.>",
    subjects.INBOX: "stored.inbox.*.{}.>",
    subjects.JOURNAL: subjects.journal("{}", "*", "*"),
    subjects.WAKES: subjects.wake("{}"),
    subjects.DEAD: subjects.dead("{}", "*"),
    subjects.object_stream(subjects.JOURNAL_OBJECTS): subjects.object_chunk(subjects.JOURNAL_OBJECTS, "{}", "*"),
    subjects.bucket_stream(subjects.CONVERSATIONS_BUCKET): subjects.key(subjects.CONVERSATIONS_BUCKET, "{}.*"),
    subjects.bucket_stream(subjects.LIMITS_BUCKET): subjects.key(subjects.LIMITS_BUCKET, "{}.*"),
}
"""Streams in which each principal has subjects of its own, and which these are."""
NOBODY: Final = "-"
"""Whose it is what several may store."""


class Place(ABC):
    """A stream in which all store.

    Attributes:
        stream: Its name.
        begins: How the subjects begin on which principals publish what it stores.
    """

    stream: str
    begins: str

    @abstractmethod
    def owner(self, subject: str) -> str:
        """Return whose it is what is stored on a subject; `NOBODY`'s, if not one principal's alone."""

    @abstractmethod
    def can_refuse(self, who: str) -> bool:
        """Tell whether somebody can be kept out."""

    @abstractmethod
    def subjects(self, refused: Collection[str]) -> list[str]:
        """Return the stream's subjects where some are kept out."""


def places(team: Team) -> list[Place]:
    """Return the places in which a team stores."""
    contexts = [_Context(team, bucket) for bucket in ("", *team.buckets)]
    return [*(_Common(team, stream) for stream in SHARED), *contexts]


class _Common(Place):
    """A stream in which a principal's name is in the subjects; what is without it is nobody's, and can be kept out."""

    def __init__(self, team: Team, stream: str) -> None:
        self.stream, self._theirs = stream, SHARED[stream]
        self.begins = self._theirs.removeprefix("stored.").partition("{}")[0].partition("*")[0]
        self._whole, self._at = self._theirs.format("*"), self._theirs.partition("{}")[0].count(".")
        self._team = team

    def owner(self, subject: str) -> str:
        return subject.split(".")[self._at] if subjects.matches(self._whole, subject) else NOBODY

    def can_refuse(self, who: str) -> bool:
        trusted = {subjects.OPERATOR, *self._team.operators}
        return who not in trusted and (who != subjects.ANYONE or self._counts_for_all)

    @property
    def _counts_for_all(self) -> bool:
        """Whether all may store there in the name of anyone, as they count what the team may do together."""
        return self.stream == subjects.bucket_stream(subjects.LIMITS_BUCKET)

    def subjects(self, refused: Collection[str]) -> list[str]:
        config = attested(STREAMS[self.stream]) if self.stream in ATTESTED else STREAMS[self.stream]
        every: list[str] = config["subjects"]
        if not refused:
            return every
        others = [each for each in every if not subjects.overlap(each, self._whole)]
        team = self._team
        known = sorted({*team.agents, *team.tools, *team.users, subjects.OPERATOR, subjects.ANYONE})
        admitted = [who for who in known if who not in refused]
        return [*(() if NOBODY in refused else others), *map(self._theirs.format, admitted)]


class _Context(Place):
    """A context, in which a key is its principal's that alone may write it, operators aside."""

    def __init__(self, team: Team, bucket: str) -> None:
        name = subjects.context_bucket(bucket)
        self.stream, self.begins, self._every = (
            subjects.bucket_stream(name),
            subjects.key(name, ""),
            subjects.key(name, ">"),
        )
        all_may = {subjects.OPERATOR, *team.operators}
        self._writers = [
            (subjects.key(name, keys), rule.principal)
            for rule in team.closed().rules()
            for of, keys in [subjects.split_keys(rule.pattern)]
            if rule.verb == "write" and of == bucket and rule.principal not in all_may
        ]

    def owner(self, subject: str) -> str:
        owners = {who for pattern, who in self._writers if subjects.matches(pattern, subject)}
        return owners.pop() if len(owners) == 1 else NOBODY

    def can_refuse(self, who: str) -> bool:
        return who != NOBODY

    def subjects(self, refused: Collection[str]) -> list[str]:
        if not refused:
            return [self._every]
        left = [pattern for pattern, who in self._writers if who not in refused]
        return subjects.widest(left) or [self.begins + NOBODY]
