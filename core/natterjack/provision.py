"""Provisioning: everything that running needs and never creates: streams, buckets, consumers, the team itself.

It needs a strong credential, and can be repeated: what is there and equal is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from natterjack import subjects
from natterjack.builtin import own_triggers
from natterjack.bus import Bus
from natterjack.components import Trigger
from natterjack.context import AgentContext
from natterjack.errors import ConfigError, NotProvisionedError, StreamError
from natterjack.needs import agent_triggers, enforced
from natterjack.ordering import GROUP, PIN_TIMEOUT
from natterjack.plugins import Plugins
from natterjack.record import known_team, store_team
from natterjack.rehearsal import Rehearsal
from natterjack.schedules import (
    SCHEDULES_STREAM,
    check_version,
    delay_source,
    delay_stream,
    remove_others,
    write,
)
from natterjack.specs import ConsumerSpec, ScheduleSpec
from natterjack.stores import ATTESTED, REFUSED, STREAMS, attested, context_stream, is_opened, is_watched, noted
from natterjack.team import Team, check_team
from natterjack.team.check import CONTEXTS

log = logging.getLogger("natterjack.provision")

_PINNED: Final[dict[str, Any]] = {
    "priority_groups": [GROUP],
    "priority_policy": "pinned_client",
    "priority_timeout": int(PIN_TIMEOUT * 10**9),
}
MOST_TOLD: Final = 100
"""Rules that the audit names of a change, and what was removed."""
ACK_WAIT: Final = 30 * 10**9
"""Nanoseconds after which what a dead process held goes to another; a living one speaks up every third of it."""
REPLICAS: Final = 3
"""Servers of a cluster that keep a copy of each stream, so that it outlives one of them."""
LIMITS: Final = frozenset({"max_age", "max_bytes", "max_msgs_per_subject"})
"""What provisioning never lowers: messages would go."""
_FEWER: Final = (10005, 10023, 10074)
"""The server's codes for: there are not so many servers, or no room on them, or no cluster."""
_NO_ROOM: Final = 10047
_ROOM: Final = (
    f"; all of a team's streams may come to {sum(each.get('max_bytes', 0) for each in STREAMS.values()) / 1024**3:.0f}"
    " GiB, which the server sets aside: free its disk, or raise `max_file_store` in its configuration"
)


@dataclass(slots=True)
class Provisioned:
    """What provisioning did, by name.

    Attributes:
        created: New.
        updated: Changed.
        kept: There already.
        removed: Consumers of agents that are no longer in the team, with what waited for them, streams of events that
            they delayed, and buckets that the team has no more; and in any case the schedules that no trigger has any
            more.
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
    dry: bool = False,
) -> Provisioned:
    """Create what the team needs on a server, and store the team there.

    In a cluster of three servers or more, each stream is kept on three. Limits that somebody has raised stay.

    Args:
        bus: A connection that may administrate streams.
        team: The team.
        plugins: What is installed.
        context: Initial state that is stored where a key was never written.
        buckets: The same for the buckets beside the main context.
        triggers: Triggers by agent where the team comes from Python; read from the team otherwise.
        prune: Remove what is gone from the team, with all it holds; see `Provisioned.removed`.
        dry: Do nothing, and return what would be done.

    Raises:
        ConfigError: The team is wrong, or the server has a stream of that name for something else.
        BrokerError: The server refuses.
    """
    bus = cast("Bus", Rehearsal(bus)) if dry else bus
    team = enforced(team, bus.server)
    check_team(team, plugins)
    given = triggers or {}
    wakes = {
        name: [*own_triggers(spec.waits), *given[name]] if name in given else agent_triggers(spec, plugins)
        for name, spec in team.agents.items()
    }
    schedules = [spec for name, each in wakes.items() for trigger in each for spec in trigger.schedules(name)]
    check_version(bus, schedules)
    done = Provisioned()
    found = await known_team(bus)
    if found is not None and found.name != team.name:
        log.warning("team %r takes the place of team %r: a server or account holds one", team.name, found.name)
    contexts = {"": context or AgentContext(team.context)}
    contexts |= {name: AgentContext(state) for name, state in team.buckets.items()} | dict(buckets or {})
    streams = await _streams(bus, team, contexts, done, prune=prune)
    streams |= {subjects.SCHEDULES: SCHEDULES_STREAM} if schedules else {}
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
    await store_team(bus, team)
    _note(bus, found, team, done)
    return done


def _note(bus: Bus, before: Team | None, after: Team, done: Provisioned) -> None:
    """Write down what somebody may do from now on, or may do no more, and what was removed."""
    if isinstance(bus, Rehearsal):
        return
    if done.removed:
        bus.audit.note("authority", "prune", count=len(done.removed), removed=done.removed[:MOST_TOLD])
    old, new = (
        {f"{rule.principal} {rule.verb} {rule.pattern}" for rule in ([*team.rules(), *team.reading()] if team else ())}
        for team in (before, after)
    )
    if old != new:
        allowed, denied = sorted(new - old), sorted(old - new)
        told = {"allowed": allowed[:MOST_TOLD], "denied": denied[:MOST_TOLD]}
        bus.audit.note("authority", "provision", team=after.name, count=len(allowed) + len(denied), **told)


async def _streams(
    bus: Bus, team: Team, contexts: Iterable[str], done: Provisioned, *, prune: bool
) -> dict[str, dict[str, Any]]:
    """Return the streams that a team needs, by name."""
    # First those of which EVENTS takes: for one that is not there the server looks again only after 10 s.
    streams = dict(delay_stream(name, spec.delays) for name, spec in team.agents.items() if spec.delays)
    streams |= dict(delay_stream(name, (">",)) for name in team.operators)
    streams |= STREAMS | dict(context_stream(name, transactions=team.transactions is not False) for name in contexts)
    await _buckets(bus, contexts, done, prune=prune)
    secured = bus.server.attests
    streams |= {name: attested(streams[name]) for name in ATTESTED} if secured else {}
    sources = [delay_source(name, attested=secured) for name in await _delays(bus, streams, done, prune=prune)]
    return streams | {subjects.EVENTS: streams[subjects.EVENTS] | {"sources": sources}}


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
        found = await bus.api(f"STREAM.INFO.{name}")
    except NotProvisionedError:
        await _create_stream(bus, wanted)
        done.created.append(f"stream {name}")
        return
    current = found["config"]
    if not any(subjects.overlap(one, other) for one in wanted["subjects"] for other in current.get("subjects") or ()):
        held = ", ".join(current.get("subjects") or ()) or "another stream"
        msg = f"the server already has a stream {name!r}, for {held}: remove it, or use another account or server"
        raise ConfigError(msg)
    wanted |= {key: value for key, value in current.items() if key in wanted and _is_more(key, value, wanted[key])}
    wanted |= await _shared_out(bus, current, found["state"]["bytes"])
    copies = REPLICAS if found["cluster"].get("name") else 1  # a server alone says only that it leads
    changed = _differs(current, wanted)
    if changed or current["num_replicas"] < copies:
        changed = await _update_stream(bus, current, wanted, copies)
    (done.updated if changed else done.kept).append(f"stream {name}")


async def _shared_out(bus: Bus, current: Mapping[str, Any], held: int) -> dict[str, Any]:
    """Return what stays as it is, because somebody sees to it that nobody fills the stream for others.

    Where nobody does any more, nobody is refused either, and the stream says so.
    """
    noting, metadata = bool(noted(current, REFUSED)), dict(current.get("metadata") or {})
    if (noting or is_opened(current, held)) and await is_watched(bus):
        kept = ("max_bytes", "subjects", "sources") if noting else ("max_bytes",)
        return {key: current.get(key) for key in kept}
    return {"metadata": metadata | {REFUSED: ""}} if noting else {}


def _is_more(key: str, current: Any, wanted: Any) -> bool:
    """Tell whether a stream holds more than we would have it: somebody wanted that, and less would lose messages."""
    return key in LIMITS and wanted > 0 and (current <= 0 or current > wanted)


async def _create_stream(bus: Bus, wanted: Mapping[str, Any]) -> None:
    try:
        await _replicated(bus, f"STREAM.CREATE.{wanted['name']}", wanted, REPLICAS, least=1)
    except StreamError as error:
        msg = f"the server cannot have a stream {wanted['name']!r} for {', '.join(wanted['subjects'])}: "
        raise ConfigError(msg + error.description + (_ROOM if error.code == _NO_ROOM else "")) from error


async def _update_stream(bus: Bus, current: Mapping[str, Any], wanted: Mapping[str, Any], copies: int) -> bool:
    """Have a stream as it is wanted, on more servers if there are so many; return whether it is another one then."""
    least = current["num_replicas"]
    try:
        name = f"STREAM.UPDATE.{wanted['name']}"
        got = await _replicated(bus, name, {**current, **wanted}, max(copies, least), least=least)
    except StreamError as error:
        msg = f"the server already has a stream {wanted['name']!r} that cannot become ours: {error.description}"
        raise ConfigError(msg) from error
    return got != least or _differs(current, wanted)


def _differs(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether a configuration is another one; what is off, the server does not mention."""
    return any((current.get(key) or None) != (value or None) for key, value in wanted.items())


async def _replicated(bus: Bus, name: str, config: Mapping[str, Any], copies: int, *, least: int) -> int:
    """Create or update a stream on so many servers, or on the least where there are fewer; return on how many."""
    try:
        await bus.api(name, {**config, "num_replicas": copies})
    except StreamError as error:
        if copies == least or error.code not in _FEWER:
            raise
        await bus.api(name, {**config, "num_replicas": least})
        return least
    return copies


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
            info = await bus.api(f"CONSUMER.INFO.{stream}.{name}")
            waiting = info["num_pending"] + info["num_ack_pending"]
            label = f"consumer {name} on {stream}" + (f", for which {waiting:,} wait" if waiting else "")
            if prune:
                await bus.api(f"CONSUMER.DELETE.{stream}.{name}")
            if prune and stream == subjects.INBOX:  # from which nobody will ever take them
                gone = subjects.stored_inbox(name.partition("=")[0])
                await bus.api(f"STREAM.PURGE.{stream}", {"filter": gone})
            (done.removed if prune else done.left).append(label)


async def _buckets(bus: Bus, contexts: Iterable[str], done: Provisioned, *, prune: bool) -> None:
    """Leave the buckets that are in the team no more, or remove them with all they hold."""
    wanted = {context_stream(name)[0] for name in contexts}
    for name in sorted(set(await bus.streams(subjects.key("*", ">"))) - wanted):
        if name.startswith(CONTEXTS):
            if prune:
                await bus.api(f"STREAM.DELETE.{name}")
            (done.removed if prune else done.left).append(f"stream {name}")
