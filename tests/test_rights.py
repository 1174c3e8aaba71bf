"""Rights: the subject permissions that say the same, and nothing more."""

from __future__ import annotations

from contextlib import nullcontext
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natterjack import InvalidNameError, PatternError, subjects
from natterjack.rights import Permissions, Right, Verb, permissions

VERBS: tuple[Verb, ...] = get_args(Verb)
names = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
rights = st.builds(Right, st.sampled_from(VERBS), names)


def may_publish(granted: Permissions, subject: str) -> bool:
    return any(subjects.matches(pattern, subject) for pattern in granted.publish)


def may_subscribe(granted: Permissions, subject: str) -> bool:
    return any(subjects.matches(pattern, subject) for pattern in (*granted.subscribe, *granted.serve))


def test_without_rights_a_principal_reads_the_team_hears_its_replies_and_writes_its_audit() -> None:
    granted = permissions("writer", [])
    audit = [f"audit.writer.{area}.refuse" for area in ("broker", "guard", "tools")]
    read = [
        f"$JS.API.DIRECT.GET.KV_team.$KV.team.{key}"
        for key in ("origins", "refused", "revoked", "settings.writer", "team")
    ]
    assert granted.publish == (*read, *audit)
    assert granted.subscribe == ("_INBOX.writer.>",)


@pytest.mark.parametrize(
    ("right", "is_one"),
    [
        (Right("emit", "a.b"), True),
        (Right("emit", "a.*"), True),
        (Right("emit", "a."), False),
        (Right("emit", "a/b"), False),
        (Right("read", "finance/a.>"), True),
        (Right("read", "finance/"), False),
        (Right("write", "Finance/a"), False),
        (Right("ask", "ben"), True),
        (Right("ask", "Ben"), False),
        (Right("ask", "agents://claude/ann/desk"), True),
        (Right("ask", "agents://claude/ann"), False),
        (Right("ask", "https://else.where/"), True),
        (Right("call", "desk/*"), True),
        (Right("call", "desk/find it"), True),
        (Right("call", "/find"), False),
        (Right("consume", "EVENTS/ann=event-a"), True),
        (Right("consume", ""), False),
    ],
)
def test_of_what_there_can_be_a_right(right: Right, *, is_one: bool) -> None:
    with nullcontext() if is_one else pytest.raises((InvalidNameError, PatternError)):
        right.check()


@pytest.mark.parametrize(
    ("right", "publish", "subscribe"),
    [
        (Right("emit", "research.*"), ["events.research.done"], []),
        (Right("publish", "news.>"), ["messages.news.a.b"], []),
        (Right("inject", "writer.draft"), ["inbox.writer.draft"], []),
        (Right("ask", "editor"), ["agents.ask.editor", "agents.cancel.editor.r1"], []),
        (Right("ask", "editor"), ["agents.prompt.natterjack.team.editor", "agents.answer.editor.r1"], []),
        (Right("ask", "agents://echo/al/main"), ["agents.prompt.echo.al.main", "$SRV.INFO.agents"], []),
        (Right("write", "draft"), ["$KV.context.draft"], []),
        (
            Right("read", "draft.>"),
            ["$JS.API.STREAM.INFO.KV_context", "$JS.API.DIRECT.GET.KV_context.$KV.context.draft.a"],
            ["feed.context.draft.a"],
        ),
        (Right("hear", "research.*"), [], ["feed.events.*.research.*", "feed.messages.*.research.*"]),
        (Right("listen", "sensors.*.temperature"), [], ["sensors.roof.temperature"]),
        (
            Right("consume", "EVENTS/writer=event"),
            ["$JS.API.CONSUMER.MSG.NEXT.EVENTS.writer=event", "$JS.ACK.EVENTS.writer=event.1.2.3.4.5"],
            [],
        ),
        (
            Right("serve", "writer"),
            ["_INBOX.editor.reply"],
            ["agents.ask.writer", "agents.cancel.writer.r1", "$SRV.PING", "$SRV.INFO.agents.i1"],
        ),
        (
            Right("serve", "writer"),
            ["agents.hb.natterjack.team.writer"],
            [f"agents.{verb}.natterjack.team.writer" for verb in ("prompt", "status")] + ["agents.answer.writer.r1"],
        ),
        (Right("converse", "writer"), ["$KV.conversations.writer.k"], []),
        (Right("converse", "writer"), ["$JS.API.DIRECT.GET.KV_conversations.$KV.conversations.writer.k"], []),
        (Right("journal", "writer"), ["journal.writer.run.1"], ["feed.journal.writer.run.1"]),
        (Right("bury", "writer"), ["dead.writer.event"], []),
        (
            Right("call", "desk/say.it"),
            ["tools.desk.call.say~2eit", "tools.desk.tools~2flist", "tools.desk.cancel.r1"],
            [],
        ),
        (Right("call", "desk/*"), ["tools.desk.call.say", "tools.desk.tools~2flist"], []),
        (
            Right("provide", "desk"),
            ["_INBOX.writer.reply", "tools.desk.feed.changes"],
            ["tools.desk.call.say", "tools.desk.tools~2flist", "tools.desk.cancel.r1", "$SRV.INFO.desk"],
        ),
    ],
)
def test_a_right_grants_what_it_says(right: Right, publish: list[str], subscribe: list[str]) -> None:
    before, after = permissions("writer", []), permissions("writer", [right])
    assert [subject for subject in publish if not may_publish(after, subject)] == []
    assert [subject for subject in subscribe if not may_subscribe(after, subject)] == []
    assert [subject for subject in publish if may_publish(before, subject)] == []
    assert [subject for subject in subscribe if may_subscribe(before, subject)] == []


@given(st.lists(rights, max_size=5), st.lists(rights, max_size=5))
def test_rights_add_up_and_their_order_does_not_matter(some: list[Right], others: list[Right]) -> None:
    together = permissions("writer", [*some, *others])
    assert together == permissions("writer", [*others, *some, *others])
    assert set(together.publish) == set(permissions("writer", some).publish) | set(
        permissions("writer", others).publish
    )


@given(st.lists(rights, max_size=8))
def test_no_right_changes_streams_or_consumers_or_reads_the_replies_of_others(given_rights: list[Right]) -> None:
    granted = permissions("writer", given_rights)
    for verb in ("CREATE", "UPDATE", "DELETE", "PURGE"):
        assert not may_publish(granted, f"$JS.API.STREAM.{verb}.EVENTS")
        assert not may_publish(granted, f"$JS.API.CONSUMER.{verb}.EVENTS.x")
    assert not may_subscribe(granted, "_INBOX.zz-other.reply")
    assert not may_publish(granted, "stored.events.zz-other.type")
    assert not may_publish(granted, "$KV.team.agents")


@given(names, names)
def test_rights_end_at_the_name(own: str, other: str) -> None:
    granted = permissions("writer", [Right("write", own), Right("emit", own), Right("ask", own)])
    for subject in (subjects.key("context", other), subjects.event(other), subjects.ask(other)):
        assert may_publish(granted, subject) == (own == other)


def test_where_authors_are_attested_one_reads_back_only_ones_own() -> None:
    rights = [Right("emit", "a"), Right("publish", "b"), Right("inject", "x.c")]
    assert may_publish(permissions("writer", rights), "$JS.API.DIRECT.GET.EVENTS")
    narrow = permissions("writer", rights, attested=True)
    for stream, subject in (
        ("EVENTS", "stored.events.{}.a"),
        ("MESSAGES", "stored.messages.{}.b"),
        ("INBOX", "stored.inbox.x.{}.c"),
    ):
        assert not may_publish(narrow, f"$JS.API.DIRECT.GET.{stream}")
        assert may_publish(narrow, f"$JS.API.DIRECT.GET.{stream}.{subject.format('writer')}")
        assert not may_publish(narrow, f"$JS.API.DIRECT.GET.{stream}.{subject.format('editor')}")
    assert may_publish(
        permissions("writer", [*rights, Right("replay", "a")], attested=True), "$JS.API.DIRECT.GET.EVENTS"
    )
