"""Rights: what a principal may do, and the NATS permissions that say the same.

Components declare the rights they need; provisioning and the permissions plugin grant exactly these. The
translation to subjects is the table of least privilege inside one account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from natterjack import addresses, subjects
from natterjack.errors import PatternError
from natterjack.toolsubjects import ToolSubjects

Verb = Literal[
    "emit",
    "replay",
    "publish",
    "inject",
    "ask",
    "write",
    "read",
    "hear",
    "listen",
    "consume",
    "serve",
    "journal",
    "bury",
    "delay",
    "watch",
    "park",
    "converse",
    "call",
    "provide",
]


class Right(NamedTuple):
    """One thing that may be done.

    Attributes:
        verb: `emit` (an event type), `publish` (a topic), `inject` (`<agent>.<type>`), `ask` (an agent), `write` and
            `read` (context keys; `<bucket>/<keys>` beside the main context), `hear` (live events), `replay` (stored
            events), `listen` (plain subjects of other programs), `consume` (`<stream>/<durable>`), `serve`, `journal`,
            `bury`, `delay`, `park` and `converse` (an agent's own asks, journal, dead letters, delayed events, waiting
            runs and conversations),
            `watch` (a schedule, `<agent>.<trigger>`), `call` (`<server>/<tool>`, or all
            of a server), `provide` (a tool server).
        what: A pattern of it.
    """

    verb: Verb
    what: str

    def check(self) -> None:
        """Return if there can be something of that name, whether or not there is.

        Raises:
            InvalidNameError: A name in it is malformed.
            PatternError: It is no pattern.
        """
        if self.verb in ("read", "write"):
            subjects.check_keys(self.what)
        elif self.verb == "ask":
            _check_peer(self.what)
        elif self.verb == "call":
            _call(self.what)
        elif self.verb not in _FREE:
            subjects.check_pattern(self.what)
        elif not self.what:
            raise PatternError(self.what, "it is empty")


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """One allowance of a team: this principal may do this.

    Attributes:
        principal: Agent, or `operator`.
        verb: See `Right.verb`.
        pattern: Pattern of what.
        origin: Where it is written, e.g. `team.toml:12`; for messages.
    """

    principal: str
    verb: Verb
    pattern: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Permissions:
    """NATS subject permissions of one user: allow-lists.

    Attributes:
        publish: Where it may publish.
        subscribe: What it may hear.
        serve: Where it may answer; it subscribes to that, too.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    serve: tuple[str, ...] = ()


class _Granted(NamedTuple):
    """What one right comes to; see `Permissions`."""

    publish: list[str]
    subscribe: list[str] = []  # noqa: RUF012 - nobody changes it
    serve: list[str] = []  # noqa: RUF012


_FREE: Final = ("listen", "consume", "watch")
"""Whose names are more than tokens."""


def _check_peer(address: str) -> None:
    if "://" not in address:
        subjects.check_name(address)
    elif addresses.is_foreign(address):  # what one of another scheme looks like, its plugin knows
        addresses.split_foreign(address)


REPLIES: Final = "_INBOX.>"
"""Where all replies go within one account."""
_API: Final = "$JS.API"


def _consume(what: str) -> _Granted:
    stream, _, durable = what.partition("/")
    limits = [f"{_API}.STREAM.INFO.{stream}"] if subjects.is_log(stream) else []  # to know what expired [R9]
    return _Granted(
        [
            *limits,
            f"{_API}.CONSUMER.MSG.NEXT.{stream}.{durable}",
            f"{_API}.CONSUMER.INFO.{stream}.{durable}",
            f"$JS.ACK.{stream}.{durable}.>",
        ]
    )


def _keys(what: str) -> tuple[str, str]:
    """Return the KV bucket and the pattern of context keys that a right names."""
    name, pattern = subjects.split_keys(what)
    return subjects.context_bucket(name), pattern


def _write(what: str) -> _Granted:
    return _Granted([subjects.key(*_keys(what))])


def _read(what: str) -> _Granted:
    """All of a bucket, or some keys [R11]: then no get whose payload says what it wants, because nothing bounds it."""
    bucket, pattern = _keys(what)
    stream = subjects.bucket_stream(bucket)
    direct = f"{_API}.DIRECT.GET.{stream}"
    whole = [direct] if pattern == ">" else []
    names = [f"{_API}.STREAM.INFO.{stream}"] if subjects.is_wild(pattern) else []
    one = f"{direct}.{subjects.key(bucket, pattern)}"
    return _Granted([*names, *whole, one], [subjects.feed_context(pattern, bucket)])


def _serve(agent: str) -> _Granted:
    told = [subjects.cancel(agent, "*"), subjects.answer(agent, "*"), subjects.service(">")]
    asked = [subjects.ask(agent), subjects.prompt("*", agent), subjects.status("*", agent)]
    own = _ask(agent).publish  # for those who come by a door of its own, such as HTTP
    return _Granted([REPLIES, subjects.heartbeat("*", agent), *own, *_counts(agent)], serve=[*asked, *told])


def _counts(principal: str) -> list[str]:
    """Where a principal counts its uses, with its replicas and with the whole team."""
    keys = [subjects.key(subjects.LIMITS_BUCKET, f"{owner}.*") for owner in (principal, subjects.ANYONE)]
    stream = subjects.bucket_stream(subjects.LIMITS_BUCKET)
    return [*keys, *(f"{_API}.DIRECT.GET.{stream}.{key}" for key in keys)]


def _ask(what: str) -> _Granted:
    if addresses.is_foreign(what):  # it hears answers to its questions in its own inbox
        agent, owner, session = addresses.split_foreign(what)
        return _Granted([subjects.prompt(owner, session, agent), subjects.service("INFO", "agents"), "_INBOX.agents.>"])
    spoken = [subjects.cancel(what, "*"), subjects.answer(what, "*")]
    return _Granted([subjects.ask(what), subjects.prompt("*", what), *spoken])


def _journal(agent: str) -> _Granted:
    own = subjects.journal(agent, "*", "*")
    large = objects(subjects.JOURNAL_OBJECTS, agent)
    return _Granted([own, f"{_API}.DIRECT.GET.{subjects.JOURNAL}.{own}", *large], [subjects.feed_journal(agent)])


def _delay(principal: str) -> _Granted:
    held = subjects.delay(principal)
    return _Granted([held, f"{_API}.DIRECT.GET.{subjects.delay_stream(principal)}.{held}"])


def _watch(what: str) -> _Granted:
    agent, _, trigger = what.partition(".")
    names = (subjects.schedule(agent, trigger), subjects.fired(agent, trigger))
    return _Granted([f"{_API}.DIRECT.GET.{subjects.SCHEDULES}.{name}" for name in names])


def _park(agent: str) -> _Granted:
    own = subjects.wake(agent, "*")
    told = [f"{_API}.DIRECT.GET.{subjects.WAKES}.{own}", f"{_API}.STREAM.INFO.{subjects.WAKES}"]
    return _Granted([own, *told], [subjects.wake(agent, root="feed.wake")])


def _converse(agent: str) -> _Granted:
    bucket = subjects.CONVERSATIONS_BUCKET
    own = subjects.key(bucket, f"{agent}.*")
    return _Granted([own, f"{_API}.DIRECT.GET.{subjects.bucket_stream(bucket)}.{own}"])


def _call(what: str) -> _Granted:
    """What calls no tool, such as the list of tools, may be asked by all who may call one."""
    server, _, tool = what.partition("/")
    spoken = ToolSubjects(server)
    return _Granted([spoken.calls if tool in ("", "*") else spoken.call(tool), spoken.methods, spoken.cancels])


def _provide(server: str) -> _Granted:
    own = ToolSubjects(server)
    served = [own.calls, own.methods, own.cancels, subjects.service(">")]
    return _Granted([REPLIES, own.changes, *_counts(server)], [own.changes], served)


def objects(bucket: str, owner: str) -> list[str]:
    """Return where a principal publishes that keeps large values in a bucket, and reads back its own."""
    chunks = subjects.object_chunk(bucket, owner, "*")
    meta = subjects.object_meta(bucket, "*")
    return [chunks, meta, f"{_API}.DIRECT.GET.{subjects.object_stream(bucket)}.{chunks}"]


_SUBJECTS: Final[dict[Verb, Callable[[str], _Granted]]] = {
    "emit": lambda what: _Granted([subjects.event(what), f"{_API}.DIRECT.GET.{subjects.EVENTS}"]),
    "replay": lambda _: _Granted([f"{_API}.DIRECT.GET.{subjects.EVENTS}"]),
    "publish": lambda what: _Granted([subjects.message(what), f"{_API}.DIRECT.GET.{subjects.MESSAGES}"]),
    "inject": lambda what: _Granted([f"inbox.{what}", f"{_API}.DIRECT.GET.{subjects.INBOX}"]),
    "ask": _ask,
    "write": _write,
    "read": _read,
    "hear": lambda what: _Granted([], [subjects.feed_events(what), subjects.feed_messages(what)]),
    "listen": lambda what: _Granted([], [what]),
    "consume": _consume,
    "serve": _serve,
    "journal": _journal,
    "bury": lambda agent: _Granted([subjects.dead(agent, "*")]),
    "delay": _delay,
    "watch": _watch,
    "park": _park,
    "converse": _converse,
    "call": _call,
    "provide": _provide,
}


_LOGS: Final = {
    subjects.EVENTS: "events.>",
    subjects.MESSAGES: "messages.>",
    subjects.INBOX: "inbox.*.>",
}
"""Streams of what is published under an id, which may be there already."""


def permissions(principal: str, rights: Iterable[Right], *, attested: bool = False) -> Permissions:
    """Return the subject permissions that grant a principal exactly these rights in one account.

    Where the broker attests authors, who publishes reads back its own only.

    Every principal also reads what all may know of the team, and its own settings, receives replies in its own inbox,
    and writes down what it is refused.
    """
    team = subjects.bucket_stream(subjects.TEAM_BUCKET)
    told = (subjects.TEAM_KEY, subjects.ORIGINS_KEY, subjects.REFUSED_KEY, subjects.REVOKED_KEY)
    known = (*told, f"{subjects.SETTINGS_KEY}.{principal}")
    publish = {f"{_API}.DIRECT.GET.{team}.{subjects.key(subjects.TEAM_BUCKET, key)}" for key in known}
    publish.update(subjects.audit(principal, area, "refuse") for area in ("guard", "broker", "tools"))
    subscribe, serve = {f"_INBOX.{principal}.>"}, set[str]()
    rights = list(rights)
    for right in rights:
        granted = _SUBJECTS[right.verb](right.what)
        publish.update(granted.publish)
        subscribe.update(granted.subscribe)
        serve.update(granted.serve)
    for stream, published in _LOGS.items() if attested else ():
        whole = f"{_API}.DIRECT.GET.{stream}"
        if whole in publish and not (stream == subjects.EVENTS and any(right.verb == "replay" for right in rights)):
            publish.remove(whole)
            publish.add(f"{whole}.{subjects.stored_as(published, principal)}")
    return Permissions(tuple(sorted(publish)), tuple(sorted(subscribe)), tuple(sorted(serve)))
