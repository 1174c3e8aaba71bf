"""Provisioning: everything that running needs and never creates: streams, buckets, consumers, the team itself.

It needs a strong credential, and can be repeated: what is there and equal is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from natterjack import codec, subjects
from natterjack.builtin import own_triggers
from natterjack.bus import Bus
from natterjack.components import Trigger
from natterjack.context import AgentContext
from natterjack.conversations import MAX_DAYS
from natterjack.errors import ConfigError, NoRespondersError, NotProvisionedError, PayloadError, StreamError
from natterjack.needs import agent_triggers
from natterjack.ordering import GROUP, PIN_TIMEOUT
from natterjack.plugins import Plugins
from natterjack.schedules import (
    SCHEDULES_STREAM,
    check_version,
    delay_source,
    delay_stream,
    remove_others,
    write,
)
from natterjack.specs import ConsumerSpec, ScheduleSpec
from natterjack.team import Team, check_team
from natterjack.tickets import WAKES_STREAM

log = logging.getLogger("natterjack.provision")

_DAY: Final = 86_400 * 10**9
_MINUTE: Final = 60 * 10**9
_GIB: Final = 1024**3
_PINNED: Final[dict[str, Any]] = {
    "priority_groups": [GROUP],
    "priority_policy": "pinned_client",
    "priority_timeout": int(PIN_TIMEOUT * 10**9),
}
ACK_WAIT: Final = 30 * 10**9
"""Nanoseconds after which what a dead process held goes to another; a living one speaks up every third of it."""
MAX_CONSUMERS: Final = 100_000
"""Of one stream; without a number of its own the server stops at 1,000, and one agent has one at least."""
_A_TEAM: Final = "a team"

_LOG: Final[dict[str, Any]] = {
    "storage": "file",
    "allow_direct": True,
    "discard": "new",
    "duplicate_window": 2 * _MINUTE,
}
_BUCKET: Final[dict[str, Any]] = {
    "storage": "file",
    "max_msgs_per_subject": 16,  # with less, paged snapshots lose keys under load [R8]
    "allow_direct": True,
    "deny_delete": True,
    "deny_purge": True,  # a rollup or purge of one's own key could erase the whole bucket
    "discard": "new",
}


_LIMITS: Final[dict[str, Any]] = {
    "subjects": [subjects.key(subjects.LIMITS_BUCKET, ">")],
    "storage": "memory",
    "max_msgs_per_subject": 1,
    "max_age": _DAY,
    "allow_direct": True,
}


_CONVERSATIONS: Final[dict[str, Any]] = {
    "subjects": [subjects.key(subjects.CONVERSATIONS_BUCKET, ">")],
    "storage": "file",
    "max_msgs_per_subject": 1,
    "max_age": MAX_DAYS * _DAY,
    "max_bytes": _GIB,  # then what nobody has gone on with for the longest is forgotten
    "allow_direct": True,
    "deny_delete": True,
    "deny_purge": True,
}


def _stored(root: str) -> dict[str, Any]:
    """A stream of what anybody publishes on `<root>.>`, stored and fed with the principal in its subject."""
    return _LOG | {
        "subjects": [f"{root}.>"],
        "subject_transform": {"src": f"{root}.>", "dest": f"stored.{root}.{subjects.ANYONE}.>"},
        "republish": {"src": f"stored.{root}.>", "dest": f"feed.{root}.>"},
        "max_age": 30 * _DAY,
        "max_bytes": _GIB,
        "max_consumers": MAX_CONSUMERS,
    }


def _attested(stream: dict[str, Any]) -> dict[str, Any]:
    """Such a stream where principals have accounts: these put who publishes into the subject, which stays as it is."""
    (published,) = stream["subjects"]
    return stream | {"subjects": [published, f"stored.{published}"]}


def _objects(bucket: str, max_age: int) -> dict[str, Any]:
    """A bucket of the object store; its objects never change, so nothing needs a rollup or a purge."""
    return {
        "subjects": [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"],
        "storage": "file",
        "allow_direct": True,
        "discard": "old",
        "max_age": max_age,
        "max_bytes": 4 * _GIB,
        "deny_delete": True,
        "deny_purge": True,
    }


def context_stream(name: str = "", *, transactions: bool = True) -> tuple[str, dict[str, Any]]:
    """Return name and configuration of the stream behind a context's bucket.

    Args:
        name: The bucket's; empty for the main context.
        transactions: Whether it takes atomic batches. The server holds 50 of them at most, and what somebody begins
            and abandons counts for 10 s: so only where writers are trusted [R12].
    """
    bucket = subjects.context_bucket(name)
    keys = subjects.key(bucket, ">")
    republish = {"src": keys, "dest": subjects.feed_context(">", bucket)}
    own = {"subjects": [keys], "republish": republish, "allow_atomic": transactions, "max_consumers": MAX_CONSUMERS}
    return subjects.bucket_stream(bucket), _BUCKET | own


_OPERATORS: Final = delay_stream(subjects.OPERATOR, (">",))  # who may emit any event, and so delay any
STREAMS: Final[dict[str, dict[str, Any]]] = (
    dict([_OPERATORS])
    | {
        subjects.EVENTS: _stored("events") | {"sources": [delay_source(_OPERATORS[0])]},
        subjects.MESSAGES: _stored("messages"),
        subjects.INBOX: _LOG
        | {
            "subjects": ["inbox.*.>"],
            "subject_transform": {"src": "inbox.*.>", "dest": f"stored.inbox.{{{{wildcard(1)}}}}.{subjects.ANYONE}.>"},
            "retention": "workqueue",
            "max_consumers": MAX_CONSUMERS,
            "max_age": 30 * _DAY,
            "max_msgs_per_subject": 100_000,
            "discard_new_per_subject": True,  # one dead agent cannot block the others
        },
        subjects.JOURNAL: _LOG
        | {
            "subjects": ["journal.*.*.*"],
            "republish": {"src": "journal.>", "dest": "feed.journal.>"},
            "discard": "old",
            "max_age": 30 * _DAY,
            "max_bytes": 4 * _GIB,
            "deny_delete": True,
            "deny_purge": True,
        },
        subjects.object_stream(subjects.JOURNAL_OBJECTS): _objects(subjects.JOURNAL_OBJECTS, 30 * _DAY),
        subjects.WAKES: _LOG | WAKES_STREAM | {"max_consumers": MAX_CONSUMERS},
        subjects.DEAD: _LOG | {"subjects": ["dead.*.*"], "max_bytes": _GIB},
        subjects.bucket_stream(subjects.LIMITS_BUCKET): _LIMITS,
        subjects.bucket_stream(subjects.CONVERSATIONS_BUCKET): _CONVERSATIONS,
        subjects.bucket_stream(subjects.TEAM_BUCKET): _BUCKET | {"subjects": [subjects.key(subjects.TEAM_BUCKET, ">")]},
    }
    | dict([context_stream()])
)
ATTESTED: Final = (subjects.EVENTS, subjects.MESSAGES, subjects.INBOX)
"""Streams of what principals publish by their names."""


@dataclass(slots=True)
class Provisioned:
    """What provisioning did, by name.

    Attributes:
        created: New.
        updated: Changed.
        kept: There already.
        removed: Consumers of agents that are no longer in the team, and streams of events that they delayed; and in any
            case the schedules that no trigger has any more.
        left: Such consumers and streams, where they were not removed.
    """

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


async def provision(
    bus: Bus,
    team: Team,
    plugins: Plugins,
    *,
    context: AgentContext | None = None,
    buckets: Mapping[str, AgentContext] | None = None,
    triggers: Mapping[str, Iterable[Trigger]] | None = None,
    prune: bool = False,
) -> Provisioned:
    """Create what the team needs on a server, and store the team there.

    Args:
        bus: A connection that may administrate streams.
        team: The team.
        plugins: What is installed.
        context: Initial state that is stored where a key was never written.
        buckets: The same for the buckets beside the main context.
        triggers: Triggers by agent where the team comes from Python; read from the team otherwise.
        prune: Remove the consumers of agents that are no longer in the team, and what they emitted that is not due yet.

    Raises:
        ConfigError: The team is wrong, or the server has a stream of that name for something else.
        BrokerError: The server refuses.
    """
    team = team.closed() if bus.server.attests else team
    check_team(team, plugins)
    given = triggers or {}
    wakes = {
        name: [*own_triggers(spec.waits), *given[name]] if name in given else agent_triggers(spec, plugins)
        for name, spec in team.agents.items()
    }
    schedules = [spec for name, each in wakes.items() for trigger in each for spec in trigger.schedules(name)]
    check_version(bus, schedules)
    done = Provisioned()
    found = await _known_team(bus)
    if found is not None and found.name != team.name:
        log.warning("team %r takes the place of team %r: a server or account holds one", team.name, found.name)
    contexts = {"": context or AgentContext(team.context)}
    contexts |= {name: AgentContext(state) for name, state in team.buckets.items()} | dict(buckets or {})
    # First those of which EVENTS takes: for one that is not there the server looks again only after 10 s.
    streams = dict(delay_stream(name, spec.delays) for name, spec in team.agents.items() if spec.delays)
    streams |= STREAMS | dict(context_stream(name, transactions=team.transactions) for name in contexts)
    streams |= {subjects.SCHEDULES: SCHEDULES_STREAM} if schedules else {}
    attested = bus.server.attests
    streams |= {name: _attested(streams[name]) for name in ATTESTED} if attested else {}
    sources = [delay_source(name, attested=attested) for name in await _delays(bus, streams, done, prune=prune)]
    streams[subjects.EVENTS] = streams[subjects.EVENTS] | {"sources": sources}
    for name, config in streams.items():
        await _stream(bus, name, config, done)
    # A team's first triggers get what there is; one that is added later begins with what comes.
    wanted = await _consumers(bus, team, wakes, done, first=found is None)
    await _schedules(bus, schedules, done)
    kept = [subjects.EVENTS, subjects.MESSAGES, subjects.INBOX, subjects.WAKES]
    kept += [*(context_stream(name)[0] for name in contexts), *await bus.streams(subjects.schedule("*", "*"))]
    await _prune(bus, kept, wanted, done, prune=prune)
    for name, initial in contexts.items():
        await initial.seed(bus, name)
    await _store_team(bus, team)
    return done


async def _consumers(
    bus: Bus, team: Team, wakes: Mapping[str, Iterable[Trigger]], done: Provisioned, *, first: bool
) -> set[tuple[str, str]]:
    """Create the triggers' consumers, and return stream and name of each."""
    wanted: set[tuple[str, str]] = set()
    for name, triggers in wakes.items():
        for consumer in (each for trigger in triggers for each in trigger.consumers(name)):
            wanted.add((consumer.stream, consumer.name))
            ordered = consumer.ordered and team.agents[name].ordered_by is not None
            await _consumer(bus, consumer, consumer.first if first else "new", done, ordered=ordered)
    return wanted


async def _schedules(bus: Bus, wanted: Sequence[ScheduleSpec], done: Provisioned) -> None:
    """Write the triggers' schedules, after their consumers, and remove all others: they would fire for nobody."""
    for spec in wanted:
        getattr(done, await write(bus, spec)).append(f"schedule {spec.agent}.{spec.name}")
    done.removed += [f"schedule {name}" for name in await remove_others(bus, wanted)]


async def _delays(bus: Bus, streams: Iterable[str], done: Provisioned, *, prune: bool) -> list[str]:
    """Return the streams from which EVENTS takes what is due: those wanted, and those of agents that are gone."""
    wanted = {name for name in streams if name.startswith(subjects.delay_stream(""))}
    left = set(await bus.streams(subjects.delay("*"))) - wanted
    for name in left if prune else ():
        await bus.api(f"STREAM.DELETE.{name}")
    (done.removed if prune else done.left).extend(f"stream {name}" for name in sorted(left))
    return sorted(wanted if prune else wanted | left)


async def _stream(bus: Bus, name: str, config: Mapping[str, Any], done: Provisioned) -> None:
    wanted = {"name": name, **config}
    try:
        current = (await bus.api(f"STREAM.INFO.{name}"))["config"]
    except NotProvisionedError:
        await _create_stream(bus, wanted)
        done.created.append(f"stream {name}")
        return
    if all(current.get(key) == value for key, value in wanted.items()):
        done.kept.append(f"stream {name}")
        return
    if not set(wanted["subjects"]) & set(current.get("subjects") or ()):
        held = ", ".join(current.get("subjects") or ()) or "another stream"
        msg = f"the server already has a stream {name!r}, for {held}: remove it, or use another account or server"
        raise ConfigError(msg)
    try:
        await bus.api(f"STREAM.UPDATE.{name}", {**current, **wanted})
    except StreamError as error:
        msg = f"the server already has a stream {name!r} that cannot become ours: {error.description}"
        raise ConfigError(msg) from error
    done.updated.append(f"stream {name}")


async def _create_stream(bus: Bus, wanted: Mapping[str, Any]) -> None:
    try:
        await bus.api(f"STREAM.CREATE.{wanted['name']}", wanted)
    except StreamError as error:
        msg = f"the server cannot have a stream {wanted['name']!r} for {', '.join(wanted['subjects'])}: "
        raise ConfigError(msg + error.description) from error


async def _consumer(bus: Bus, spec: ConsumerSpec, deliver: str, done: Provisioned, *, ordered: bool) -> None:
    config: dict[str, Any] = (_PINNED if ordered else {}) | {
        "durable_name": subjects.check_durable(spec.name),
        "filter_subject": spec.filter,
        "ack_policy": "explicit",
        "ack_wait": ACK_WAIT,
        "max_deliver": -1,  # attempts are counted by the agent [R2]
        "max_ack_pending": -1 if spec.stream == subjects.WAKES else 10_000,  # as many as there are runs that wait
        "deliver_policy": "all" if spec.stream in (subjects.INBOX, subjects.WAKES) else deliver,
    }
    label = f"consumer {spec.name} on {spec.stream}"
    try:
        current = (await bus.api(f"CONSUMER.INFO.{spec.stream}.{spec.name}"))["config"]
    except NotProvisionedError:
        name = f"CONSUMER.DURABLE.CREATE.{spec.stream}.{spec.name}"
        await bus.api(name, {"stream_name": spec.stream, "config": config})
        done.created.append(label)
        return
    if current.get("filter_subject") != spec.filter:
        msg = f"the server already has a {label} for {current.get('filter_subject')!r}; remove it, or rename the agent"
        raise ConfigError(msg)
    if bool(current.get("priority_groups")) == ordered:
        done.kept.append(label)
        return
    kept = {key: value for key, value in current.items() if key not in _PINNED}
    name = f"CONSUMER.DURABLE.CREATE.{spec.stream}.{spec.name}"
    await bus.api(name, {"stream_name": spec.stream, "config": kept | (_PINNED if ordered else {})})
    done.updated.append(label)


async def _prune(
    bus: Bus, streams: Iterable[str], wanted: set[tuple[str, str]], done: Provisioned, *, prune: bool
) -> None:
    for stream in streams:
        for name in await bus.consumers(stream):
            if (stream, name) in wanted or not subjects.is_durable(name):
                continue
            label = f"consumer {name} on {stream}"
            if prune:
                await bus.api(f"CONSUMER.DELETE.{stream}.{name}")
            (done.removed if prune else done.left).append(label)


async def _store_team(bus: Bus, team: Team) -> None:
    data = codec.encode(team)
    subject = subjects.key(subjects.TEAM_BUCKET, subjects.TEAM_KEY)
    last = await bus.last(subjects.bucket_stream(subjects.TEAM_BUCKET), subject)
    if last is None or last.data != data:
        await bus.store(subject, data)


async def _known_team(bus: Bus) -> Team | None:
    try:
        return await stored_team(bus)
    except (NotProvisionedError, ConfigError):  # none, or one that is about to be replaced
        return None


async def stored_team(bus: Bus) -> Team:
    """Return the team that is provisioned on a server.

    Raises:
        NotProvisionedError: There is none.
        ConfigError: What is stored is no team of this version.
    """
    stream = subjects.bucket_stream(subjects.TEAM_BUCKET)
    try:
        message = await bus.last(stream, subjects.key(subjects.TEAM_BUCKET, subjects.TEAM_KEY))
    except NoRespondersError as error:
        raise NotProvisionedError(_A_TEAM) from error
    if message is None:
        raise NotProvisionedError(_A_TEAM)
    try:
        return Team.model_validate(codec.decode(message.data))
    except (ValidationError, PayloadError) as error:
        msg = f"the team that is provisioned on {bus.server} cannot be read; run `natterjack provision team.toml` again"
        raise ConfigError(msg) from error
