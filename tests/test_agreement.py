"""One rule set, three enforcers: the guard of a process, the broker and the tool servers agree on any request."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from natterjack import Team, Verb, agent_rights, matches, permissions, subjects
from natterjack.plugins import Plugins
from natterjack_permissions import PermissionGuard
from natterjack_permissions.explain import explained
from natterjack_permissions.star import PREFIX, Account, star

PLUGINS = Plugins.load()
NAMES = ("ann", "ben", "cat", "dan")
TOKENS = st.sampled_from(["a", "b", "c"])
TYPES = st.lists(TOKENS, min_size=1, max_size=3).map(".".join)
PATTERNS = st.builds(
    lambda tokens, end: ".".join([*tokens, *end]),
    st.lists(st.sampled_from(["a", "b", "c", "*"]), max_size=2),
    st.sampled_from([["a"], ["*"], [">"], ["b"]]),
)
SOME = st.none() | st.lists(PATTERNS, max_size=3, unique=True)
AGENT = st.fixed_dictionaries(
    {
        "kind": st.just("natterjack.components:Agent"),
        "emits": SOME,
        "publishes": SOME,
        "writes": SOME,
        "asks": st.none() | st.lists(st.sampled_from(NAMES), max_size=3, unique=True),
        "tools": st.just(["desk"]) | st.just([]),
    }
)
ROLES = st.dictionaries(
    st.sampled_from(["search", "publish"]), st.lists(st.sampled_from(NAMES), min_size=1, max_size=2)
)
DESK = {"kind": "mcp", "command": ["true"]}
SUBJECT: dict[Verb, Callable[[str], str]] = {
    "emit": subjects.event,
    "publish": subjects.message,
    "write": partial(subjects.key, "context"),
}


def team_of(agents: dict[str, dict[str, Any]], roles: dict[str, list[str]] | None) -> Team:
    said = {name: {key: value for key, value in each.items() if value is not None} for name, each in agents.items()}
    desk = DESK if roles is None else {**DESK, "roles": roles}
    return Team.model_validate({"agents": said, "tools": {"desk": desk}})


def broker_lets(account: Account, subject: str) -> bool:
    """Whether the user may publish there, and it leads out of its account."""
    led = any(matches(call.to, subject) for call in account.calls)
    return led and any(matches(pattern, subject) for pattern in account.publish)


@settings(max_examples=settings().max_examples // 4)
@given(st.fixed_dictionaries(dict.fromkeys(NAMES, AGENT)), TYPES, st.none() | ROLES)
def test_all_enforcers_say_the_same(agents: dict[str, Any], what: str, roles: dict[str, list[str]] | None) -> None:
    team = team_of(agents, roles)
    closed = team.closed()
    rights = agent_rights(closed, PLUGINS)
    accounts = {
        each.principal: each
        for each in star({name: permissions(name, all, attested=True) for name, all in rights.items()})
    }
    guard = PermissionGuard()
    guard.load(closed.rules(), closed.governed())

    def agree(who: str, verb: Verb, what: str, broker: bool) -> None:
        allowed = guard.refuse(who, verb, what) is None
        assert allowed == broker, (who, verb, what)

    for who in NAMES:
        for verb, subject in SUBJECT.items():
            agree(who, verb, what, broker_lets(accounts[who], subject(what)))
        for peer in NAMES:
            if peer != who:
                agree(who, "ask", peer, broker_lets(accounts[who], subjects.ask(peer)))
        for tool in ("search", "publish"):
            called = broker_lets(accounts[who], f"tools.desk.call.{tool}")
            admitted = "desk" in closed.agents[who].tools and closed.tools["desk"].admits(
                tool, who, closed.roles_of(who)
            )
            assert called == admitted
        assert all(call.account == "CORE" or call.account.startswith(PREFIX) for call in accounts[who].calls)
    assert explained(team, "ann", "emit", what)[0] == (guard.refuse("ann", "emit", what) is None)
