"""The permission guard: what it refuses, and what its refusals say."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natterjack import Rule, Verb
from natterjack.testing.contracts import GuardContract
from natterjack_permissions import PermissionGuard

RULES = [
    Rule("researcher", "write", "findings", "team.toml:12"),
    Rule("researcher", "write", "sources", "team.toml:12"),
    Rule("writer", "write", "draft", "team.toml:31"),
    Rule("editor", "write", "draft.>", "team.toml:40"),
    Rule("researcher", "read", "notes.*", "team.toml:13"),
]
GOVERNED: frozenset[tuple[str, Verb]] = frozenset({("*", "write"), ("researcher", "read")})


class TestPermissionGuard(GuardContract):
    component = PermissionGuard
    rules = RULES
    governed = GOVERNED
    refused = ("researcher", "write", "draft")
    allowed = ("researcher", "write", "findings")


def guard(rules: list[Rule] = RULES, governed: frozenset[tuple[str, Verb]] = GOVERNED) -> PermissionGuard:
    made = PermissionGuard()
    made.load(rules, governed)
    return made


@pytest.mark.parametrize(
    ("principal", "verb", "what"),
    [
        ("researcher", "write", "findings"),
        ("editor", "write", "draft.intro.first"),
        ("researcher", "read", "notes.today"),
        ("writer", "read", "anything"),  # only the researcher's reading is governed
        ("researcher", "emit", "anything"),
    ],
)
def test_allows(principal: str, verb: Verb, what: str) -> None:
    assert guard().refuse(principal, verb, what) is None


@pytest.mark.parametrize(
    ("principal", "verb", "what", "reason"),
    [
        (
            "researcher",
            "write",
            "draft",
            "that is for 'writer' (team.toml:31); it may write 'findings', 'sources' (team.toml:12)",
        ),
        ("stranger", "write", "draft.a", "that is for 'editor' (team.toml:40); it may write nothing"),
        ("writer", "write", "drafts", "no rule allows it to anyone; it may write 'draft' (team.toml:31)"),
        ("researcher", "read", "plan", "no rule allows it to anyone; it may read 'notes.*' (team.toml:13)"),
    ],
)
def test_refusal_says_who_may_and_where_it_is_written(principal: str, verb: Verb, what: str, reason: str) -> None:
    assert guard().refuse(principal, verb, what) == reason


def test_refusal_names_all_who_may() -> None:
    rules = [Rule("one", "ask", "x", "t:1"), Rule("two", "ask", "*", "t:2"), Rule("three", "ask", ">", "t:2")]
    reason = guard(rules, frozenset({("*", "ask")})).refuse("four", "ask", "x")
    assert reason == "that is for 'one' (t:1), 'two', 'three' (t:2); it may ask nothing"


def test_refusal_without_origins_and_of_two_rules_on_one_line() -> None:
    rules = [Rule("one", "ask", "x"), Rule("one", "ask", "*"), Rule("two", "ask", "y")]
    assert guard(rules, frozenset({("*", "ask")})).refuse("two", "ask", "x") == "that is for 'one'; it may ask 'y'"


def test_refusal_shows_the_nearest_own_rules_first_and_not_all_of_many() -> None:
    rules = [Rule("one", "write", f"key{number}", f"t:{number}") for number in range(40)]
    reason = guard(rules).refuse("one", "write", "key7x")
    assert reason is not None
    assert reason.startswith("no rule allows it to anyone; it may write 'key7' (t:7), ")
    assert reason.endswith(", …")
    assert len(re.findall("'key", reason)) == 5


@pytest.mark.parametrize(
    ("pattern", "what", "allowed"),
    [
        ("*", ">", False),
        ("a.*", "a.>", False),
        ("a.*", "a.*", True),
        ("a.>", "a.*", True),
        ("a.>", "a.>", True),
        (">", ">", True),
        ("a.b", "a.*", False),
    ],
)
def test_a_pattern_is_allowed_only_if_one_rule_allows_all_of_it(pattern: str, what: str, allowed: bool) -> None:
    reason = guard([Rule("one", "hear", pattern)], frozenset({("*", "hear")})).refuse("one", "hear", what)
    assert (reason is None) == allowed


def test_load_replaces_what_was_loaded() -> None:
    made = guard()
    made.load([], frozenset({("*", "write")}))
    assert made.refuse("researcher", "write", "findings") is not None
    assert made.refuse("researcher", "read", "plan") is None


def test_nothing_governed_is_open() -> None:
    assert guard([], frozenset()).refuse("anyone", "write", "draft") is None


# Random rules and requests, against regular expressions

tokens = st.sampled_from(["a", "b", "c"])
names = st.lists(tokens, min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    lambda head, tail: ".".join([*head, *tail]),
    st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
) | st.just(">")
principals = st.sampled_from(["one", "two", "three"])
verbs: st.SearchStrategy[Verb] = st.sampled_from(["write", "emit"])
rules = st.lists(st.builds(Rule, principals, verbs, patterns, st.sampled_from(["t:1", "t:2"])), max_size=6)
governs = st.frozensets(st.tuples(principals | st.just("*"), verbs), max_size=3)


def regex(pattern: str) -> str:
    parts = [r".+" if token == ">" else r"[^.]+" if token == "*" else token for token in pattern.split(".")]
    return r"\.".join(parts)


@given(rules, governs, principals, verbs, names)
def test_agrees_with_a_naive_oracle(
    rules: list[Rule], governed: frozenset[tuple[str, Verb]], principal: str, verb: Verb, what: str
) -> None:
    allowed = [rule for rule in rules if rule.verb == verb and re.fullmatch(regex(rule.pattern), what)]
    is_governed = any(who in (principal, "*") and which == verb for who, which in governed)
    reason = guard(rules, governed).refuse(principal, verb, what)
    assert (reason is not None) == (is_governed and all(rule.principal != principal for rule in allowed))
    if reason is not None:
        named = set(re.findall("'(.*?)'", reason.partition(";")[0]))
        assert named == {rule.principal for rule in allowed}
