"""Subjects: names, patterns, and what the system spells with them."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from natterjack import subjects
from natterjack.errors import InvalidNameError, PatternError

PART = r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}"
parts = st.from_regex(PART, fullmatch=True)
types = st.lists(parts, min_size=1, max_size=5).map(".".join)
agents = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True).filter(
    lambda name: name not in subjects.RESERVED_NAMES
)

# A small alphabet, so that patterns meet
few = st.sampled_from(["a", "b"])
few_names = st.lists(few, min_size=1, max_size=4).map(".".join)
few_patterns = st.builds(
    lambda head, tail: ".".join([*head, *tail]),
    st.lists(few | st.just("*"), max_size=3),
    st.sampled_from([["a"], ["*"], [">"]]),
)


def regex(pattern: str) -> str:
    found = [r".+" if token == ">" else r"[^.]+" if token == "*" else re.escape(token) for token in pattern.split(".")]
    return r"\.".join(found)


# Names


@given(agents)
def test_valid_agent_names_are_returned(name: str) -> None:
    assert subjects.check_name(name) == name


@given(types)
def test_valid_types_are_returned_and_are_patterns(name: str) -> None:
    assert subjects.check_type(name) == name
    assert subjects.check_pattern(name) == name


@given(st.text() | st.none() | st.integers() | st.binary())
@example("a\n")
@example("ä")
@example("a..b")
@example("٣")
def test_any_other_name_is_refused_in_one_way(name: object) -> None:
    valid = isinstance(name, str) and re.fullmatch(rf"{PART[:-5]}*(\.{PART[:-5]}*)*", name) and len(name) <= 255
    if valid:
        assert subjects.check_type(name) == name
    else:
        with pytest.raises(InvalidNameError, match="is no valid event type"):
            subjects.check_type(name)


@pytest.mark.parametrize("name", ["", "A", "a.b", "-a", "_a", "a b", "a*", ">", "a\n", "é", "core", "a" * 65])
def test_bad_agent_names(name: str) -> None:
    with pytest.raises(InvalidNameError) as caught:
        subjects.check_name(name)
    assert repr(name) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["a" * 256, "a..b", ".a", "a.", "a.*", ">", "$JS.API", "a.-b", 3])
def test_bad_types(name: str) -> None:
    with pytest.raises(InvalidNameError):
        subjects.check_type(name)


@pytest.mark.parametrize("pattern", ["*", ">", "a.*", "a.>", "*.*.b", "a-b.c_d.>"])
def test_good_patterns(pattern: str) -> None:
    assert subjects.check_pattern(pattern) == pattern


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("", "empty"),
        ("a.>.b", "only stand last"),
        ("a*", "whole token"),
        ("a.b>", "whole token"),
        ("a..b", "joined by"),
        ("a b", "joined by"),
        ("a." * 200 + "b", "at most 255"),
    ],
)
def test_bad_patterns(pattern: str, reason: str) -> None:
    with pytest.raises(PatternError, match=reason):
        subjects.check_pattern(pattern)


@given(st.text(alphabet="ab.*>$ -é\n", max_size=12))
def test_any_pattern_is_returned_or_refused(pattern: str) -> None:
    try:
        assert subjects.check_pattern(pattern) == pattern
    except PatternError:
        event("refused")


# Patterns against a naive oracle


@given(few_patterns, few_names)
def test_matches_agrees_with_a_regular_expression(pattern: str, name: str) -> None:
    assert subjects.matches(pattern, name) == bool(re.fullmatch(regex(pattern), name))


@given(types)
def test_a_name_matches_itself_and_everything(name: str) -> None:
    assert subjects.matches(name, name)
    assert subjects.matches(">", name)
    assert subjects.matches(".".join("*" for _ in name.split(".")), name)
    assert not subjects.matches(f"{name}.>", name)


EVERY_NAME = [".".join(found) for length in range(1, 6) for found in product("ab", repeat=length)]


@given(few_patterns, few_patterns)
def test_overlap_agrees_with_trying_every_name(one: str, other: str) -> None:
    both = any(subjects.matches(one, name) and subjects.matches(other, name) for name in EVERY_NAME)
    assert subjects.overlap(one, other) == both
    assert subjects.overlap(other, one) == both


# What is spelt


@given(agents, types)
def test_stored_subjects_round_trip(principal: str, name: str) -> None:
    for stored in (
        subjects.stored_events(name, principal),
        subjects.stored_messages(name, principal),
        subjects.feed_events(name, principal),
        subjects.feed_messages(name, principal),
        f"{subjects.stored_inbox('counter')[:-1]}{principal}.{name}",
    ):
        assert subjects.split_stored(stored) == (principal, name)


@given(agents, types)
def test_stored_subjects_are_what_consumers_filter_by(principal: str, name: str) -> None:
    assert subjects.matches(subjects.stored_events(), subjects.stored_events(name, principal))
    assert subjects.matches(subjects.stored_events(name), subjects.stored_events(name, principal))
    assert subjects.matches(subjects.stored_messages(), subjects.stored_messages(name, principal))
    assert not subjects.matches(subjects.stored_messages(), subjects.stored_events(name, principal))
    assert subjects.matches(subjects.feed_context(), subjects.feed_context(name))


@given(agents, agents, agents, agents)
def test_durables_of_two_triggers_differ(one: str, label: str, other: str, other_label: str) -> None:
    same = (one, label) == (other, other_label)
    assert (subjects.durable(one, label) == subjects.durable(other, other_label)) == same


def test_the_table_of_subjects() -> None:
    assert [
        subjects.event("research.complete"),
        subjects.message("news"),
        subjects.inbox("writer", "draft.start"),
        subjects.ask("writer"),
        subjects.cancel("writer", "r1"),
        subjects.service("PING"),
        subjects.service("INFO", "agents", "i1"),
        subjects.key("context", "a.b"),
        subjects.bucket_stream("context"),
        subjects.journal("writer", "run", 3),
        subjects.feed_journal("writer"),
        subjects.dead("writer", "event"),
        subjects.durable("writer", "event"),
    ] == [
        "events.research.complete",
        "messages.news",
        "inbox.writer.draft.start",
        "agents.ask.writer",
        "agents.cancel.writer.r1",
        "$SRV.PING",
        "$SRV.INFO.agents.i1",
        "$KV.context.a.b",
        "KV_context",
        "journal.writer.run.3",
        "feed.journal.writer.*.*",
        "dead.writer.event",
        "writer=event",
    ]
