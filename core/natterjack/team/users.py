"""What a team file says of users: humans and programs that are no agents, and what they may do from outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from natterjack.rights import Right, Verb
from natterjack.settings import Settings
from natterjack.subjects import split_keys
from natterjack.team.values import Keys, Names, Patterns

GRANTS: Final[dict[Verb, str]] = {
    "emit": "emits",
    "replay": "replays",
    "hear": "hears",
    "publish": "publishes",
    "inject": "injects",
    "ask": "asks",
    "write": "writes",
    "read": "reads",
}
"""The keys that give a user rights; those that it does not have give it nothing."""


class UserSpec(Settings):
    """One user: it has a key of its own, and on a secured broker may do only what stands here.

    Attributes:
        operator: Whether it may all that the operator may, in its own name; then it has no other keys.
        emits: Patterns of the events it may emit.
        replays: Patterns of the stored events it may read.
        hears: Patterns of the events and topics that it may follow live.
        publishes: Patterns of the topics it may publish to.
        injects: Patterns of the events it may give to one agent, as `<agent>.<type>`.
        asks: Agents it may ask.
        writes: Patterns of the context keys it may write, those of a bucket as `<bucket>/<pattern>`.
        reads: The same for the keys it may read.
        tools: Tool servers of the team whose tools it may call.
        roles: What it is to tool servers; by default, its name.
    """

    operator: bool = False
    emits: Patterns = ()
    replays: Patterns = ()
    hears: Patterns = ()
    publishes: Patterns = ()
    injects: Patterns = ()
    asks: Names = ()
    writes: Keys = ()
    reads: Keys = ()
    tools: Names = ()
    roles: Names = ()

    def granted(self) -> Iterator[Right]:
        """Yield its rights, but to call tools."""
        for verb in GRANTS:
            yield from (Right(verb, pattern) for pattern in self.allowed(verb))

    def allowed(self, verb: Verb) -> tuple[str, ...]:
        """Return the patterns of what it may emit, replay, hear, publish, inject, ask, write or read."""
        if self.operator:
            return (">",)
        found: tuple[str, ...] = getattr(self, GRANTS[verb])
        return found

    def readable(self, bucket: str) -> tuple[str, ...] | None:
        """Return the patterns of a bucket's keys that it may read; None: all."""
        if self.operator:
            return None
        return tuple(keys for name, keys in map(split_keys, self.reads) if name == bucket)

    def surplus(self) -> list[str]:
        """Return the keys that an operator has beside `operator`, which says it all."""
        return sorted(self.model_fields_set - {"operator"}) if self.operator else []
