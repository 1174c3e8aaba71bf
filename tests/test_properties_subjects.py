"""Subjects as a real server takes them: what matches here is what it delivers, and names are told apart there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

import nats
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg

from natterjack import subjects
from natterjack.bus import Bus
from natterjack.errors import PatternError
from natterjack.plugins import Plugins
from natterjack.provision import provision
from natterjack.team import Team
from natterjack.testing import NatsServer

# Few letters, so that patterns meet; and what is close to a separator or a wildcard of ours.
parts = st.sampled_from(["a", "b", "A", "a-b", "a_b", "0", "event", "inbox"])
names = st.lists(parts, min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    lambda head, tail: ".".join([*head, tail]),
    st.lists(parts | st.just("*"), max_size=3),
    parts | st.sampled_from("*>"),
)
principals = st.sampled_from(["a", "b-1", "b_1", "anyone"])
kinds = st.from_regex(r"[ab][ab-]{0,4}", fullmatch=True)

with_a_server = settings(
    max_examples=settings().max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
async def stranger(nats_server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


async def delivered(client: Client, patterns: list[str], subjects: list[str]) -> set[tuple[str, str]]:
    """Return which subscription the server gives which subject."""
    found: set[tuple[str, str]] = set()
    subscriptions = []
    for pattern in patterns:

        async def note(message: Msg, pattern: str = pattern) -> None:
            found.add((pattern, message.subject))

        subscriptions.append(await client.subscribe(pattern, cb=note))
    for subject in subjects:
        await client.publish(subject)
    await client.flush()
    for subscription in subscriptions:
        await subscription.drain()  # type: ignore[no-untyped-call]
    return found


@pytest.mark.open_mode(reason="on subjects of which no right speaks")
@with_a_server
@given(wanted=st.lists(patterns, min_size=1, max_size=5), known=st.lists(names, min_size=1, max_size=8))
async def test_a_server_delivers_exactly_what_matches(stranger: Client, wanted: list[str], known: list[str]) -> None:
    feeds = {subjects.feed_events(pattern, "a"): pattern for pattern in wanted}
    found = await delivered(stranger, [*feeds], [subjects.feed_events(name, "a") for name in known])
    assert {(feeds[feed], subjects.split_stored(subject)[1]) for feed, subject in found} == {
        (pattern, name) for pattern in wanted for name in known if subjects.matches(pattern, name)
    }


@pytest.mark.open_mode(reason="on subjects of which no right speaks")
@with_a_server
@given(pattern=st.text("ab.*>_- $\t", min_size=1, max_size=6), name=names)
async def test_what_is_a_pattern_here_means_the_same_there(stranger: Client, pattern: str, name: str) -> None:
    try:
        subjects.check_pattern(pattern)
    except PatternError:
        return
    assert bool(await delivered(stranger, [pattern], [name])) == subjects.matches(pattern, name)


@pytest.mark.open_mode(reason="on subjects of which no right speaks")
@with_a_server
@given(one=patterns, other=patterns, name=names)
async def test_what_two_patterns_get_both_overlaps(stranger: Client, one: str, other: str, name: str) -> None:
    found = await delivered(stranger, [one, other], [name])
    assert len({one, other}) > len(found) or subjects.overlap(one, other)


async def test_published_and_stored_subjects_belong_together(bus: Bus) -> None:
    await provision(bus, Team(), Plugins())
    samples = ["a", "a.b", "inbox.a.b", "events.a", "stored.events.anyone.x", "A.b-c.d_e", "0"]
    spelt: list[Callable[[str], str]] = [
        subjects.event,
        subjects.message,
        partial(subjects.inbox, "counter"),
        partial(subjects.inbox, "inbox"),
    ]
    for spell, stream in zip(spelt, (subjects.EVENTS, subjects.MESSAGES, subjects.INBOX, subjects.INBOX), strict=True):
        for name in samples:
            sequence = (await bus.store(spell(name), b"")).sequence
            stored = (await bus.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence}))["message"]["subject"]
            assert subjects.stored_as(spell(name), bus.author) == stored
            assert subjects.split_stored(stored) == (bus.author, name)


@given(st.tuples(principals, kinds, patterns), st.tuples(principals, kinds, patterns))
@example(("a", "event-a", "b"), ("a", "event", "a-b"))
@example(("a", "a-", "b"), ("a", "a", "b"))
@example(("a", "event", "a.*"), ("a", "event", "a.>"))
def test_consumers_of_two_triggers_have_two_names(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    labels = [subjects.label(kind, pattern) for _, kind, pattern in (one, other)]
    durables = [subjects.durable(each[0], label) for each, label in zip((one, other), labels, strict=True)]
    assert (labels[0] == labels[1]) == (one[1:] == other[1:])
    assert (durables[0] == durables[1]) == (one == other)
    assert all(subjects.is_durable(name) and "." not in name for name in durables)
