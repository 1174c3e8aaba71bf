"""The star: an account for each principal, around one for all that is stored; a principal's authority is its imports.

Permissions inside one account do not protect what JetStream stores: a reply subject makes the server publish where its
client may not. Across accounts nothing reaches further than what was imported. So each principal has an account of its
own, and `CORE` has the streams. What it may publish and hear it imports from `CORE`, and whom it may ask from them.
Users' permissions repeat the list, so that what is refused is refused aloud.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

from natterjack import Permissions, Server, matches, widest

CORE: Final = "CORE"
API: Final = Server.SECURED_PREFIX
"""Prefix of the JetStream API in a principal's account: `$JS.API` is its own, where nothing is stored."""
PREFIX: Final = Server.ACCOUNT
"""Before a principal's name, in that of its account: no principal is called `CORE` or `SYS` so."""
JETSTREAM: Final = (
    "$JS.ACK.>",
    *(f"$JS.API.CONSUMER.{verb}.>" for verb in ("CREATE", "DELETE", "DURABLE", "INFO", "LIST", "NAMES", "PAUSE")),
    "$JS.API.DIRECT.GET.*.>",
    "$JS.API.INFO",
    "$JS.API.STREAM.>",
    "$JS.FC.>",
    "$KV.>",
    "$O.>",
)
"""What JetStream answers once."""
PAGES: Final = ("$JS.API.CONSUMER.MSG.NEXT.>", "$JS.API.DIRECT.GET.*")
"""What it answers with several messages."""
OPERATOR: Final = "operator"
_JETSTREAM: Final = "$JS.API."
_KEYS: Final = ("$KV.context", "$KV.>")
"""Keys of the shared context; the `nats` command line puts the API's prefix before them."""
_STORED: Final = ("events", "messages")
_ENDPOINTS: Final = (
    "agents.ask.",
    "agents.prompt.",
    "agents.cancel.",
    "agents.answer.",
    "agents.status.",
    "tools.",
    "$SRV.",
    "srv.",
)
"""What is answered by other principals, and not by the server."""
_DISCOVERY, _BY_NAME = "$SRV.>", "srv."
_TOLD: Final = ("agents.hb.>", "tools.*.feed.changes")
"""What principals tell whoever hears it: from account to account, as `CORE` does not pass on what comes to it."""


class Import(NamedTuple):
    """What an account may send to another, and how it calls that itself."""

    account: str
    subject: str
    to: str


@dataclass(frozen=True, slots=True)
class Account:
    """The account of a principal.

    Attributes:
        principal: Whose it is.
        calls: What it may send to `CORE`, and to those who answer it.
        hears: What it hears of `CORE`.
        listens: What it hears of other principals.
        tells: What others may hear of it.
        serves: What others may send to it.
        publish: Where its user may publish.
        subscribe: What its user may subscribe to.
    """

    principal: str
    calls: tuple[Import, ...]
    hears: tuple[str, ...]
    listens: tuple[Import, ...]
    tells: tuple[str, ...]
    serves: tuple[str, ...]
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name on the server."""
        return f"{PREFIX}{self.principal}"


def star(granted: Mapping[str, Permissions], operators: Iterable[str] = ()) -> list[Account]:
    """Return the accounts that grant each principal exactly this, and those of operators.

    Args:
        granted: What each may do, as it would be said in one account.
        operators: Who may do all that the operator may, beside it.
    """
    granted = {**granted, **{name: _all(name) for name in (OPERATOR, *operators)}}
    served = _Served(granted)
    return [_account(name, permissions, served) for name, permissions in sorted(granted.items())]


def _all(name: str) -> Permissions:
    """Return what an operator may, who provisions and looks after the team: all but to be somebody else."""
    publish = (
        *JETSTREAM,
        *PAGES,
        "$SRV.>",
        "agents.answer.>",
        "agents.ask.>",
        "agents.cancel.>",
        "agents.prompt.>",
        "agents.status.>",
        f"audit.{name}.*.*",
        "dead.>",
        f"delay.{name}.>",
        "events.>",
        "inbox.*.>",
        "journal.>",
        "messages.>",
        "schedule.>",
        "srv.*.>",
        "tools.>",
        "wake.>",
    )
    return Permissions(publish, (f"_INBOX.{name}.>", *_TOLD, "feed.>"))


def _account(name: str, permissions: Permissions, served: _Served) -> Account:
    calls = {call for subject in permissions.publish for call in _calls(name, subject, served)}
    own = {each for each in permissions.subscribe if each.startswith("_INBOX.") or each in permissions.publish}
    stored = {call.to for call in calls if call.account == CORE}
    asked = {subject for subject in permissions.publish if subject.startswith(_ENDPOINTS)}
    told = {each for each in permissions.subscribe if _is_told(each)}
    return Account(
        name,
        tuple(_widest(calls)),
        tuple(widest(sorted(set(permissions.subscribe) - own - told))),
        tuple(sorted(listen for subject in told - own for listen in served.told(name, subject))),
        _tells(permissions),
        permissions.serve,
        tuple(sorted({*stored, *asked, *_tells(permissions), "_R_.>", "_INBOX.>"})),
        tuple(sorted({*permissions.subscribe, *permissions.serve})),
    )


@cache
def _is_told(subject: str) -> bool:
    return any(matches(pattern, subject) for pattern in _TOLD)


def _tells(permissions: Permissions) -> tuple[str, ...]:
    return tuple(filter(_is_told, permissions.publish))


def _calls(name: str, subject: str, served: _Served) -> Iterator[Import]:
    """Yield what an account imports, so that its principal may publish on a subject."""
    root, _, rest = subject.partition(".")
    if subject.startswith("_INBOX.") or _is_told(subject):
        return  # replies go the way that the question came; and what one tells, others take
    if subject.startswith(_JETSTREAM):
        yield Import(CORE, subject, f"{API}.{subject.removeprefix(_JETSTREAM)}")
    elif root in _STORED:
        yield Import(CORE, f"stored.{root}.{name}.{rest}", subject)
    elif root == "inbox":
        agent, _, kind = rest.partition(".")
        yield Import(CORE, f"stored.inbox.{agent}.{name}.{kind}", subject)
    elif subject.startswith(_ENDPOINTS):
        yield from served.imports(name, subject)
    else:
        yield Import(CORE, subject, subject)
    if subject.startswith(_KEYS):
        yield Import(CORE, subject, f"{API}.{subject}")


class _Served:
    """Who answers what."""

    def __init__(self, granted: Mapping[str, Permissions]) -> None:
        self._owners: dict[str, list[str]] = {}
        self._patterns: dict[str, list[str]] = {}
        self._told = [(name, subject) for name, permissions in granted.items() for subject in _tells(permissions)]
        for name, permissions in granted.items():
            for pattern in permissions.serve:
                if pattern not in self._owners:
                    for root in {_root(pattern), pattern.partition(".")[0]}:
                        self._patterns.setdefault(root, []).append(pattern)
                self._owners.setdefault(pattern, []).append(name)

    def imports(self, name: str, subject: str) -> Iterator[Import]:
        """Yield what others answer of a pattern; what one answers oneself is in one's own account."""
        if subject.startswith(_BY_NAME):  # discovery that names whom it asks: so nobody answers for another
            others = (owner for owner in self._owners.get(_DISCOVERY, ()) if owner != name)
            yield from (Import(f"{PREFIX}{owner}", _DISCOVERY, f"{_BY_NAME}{owner}.>") for owner in others)
            return
        for pattern in [subject] if subject in self._owners else self._patterns.get(_root(subject), ()):
            both = common(subject, pattern)
            if both is not None:
                others = (owner for owner in self._owners[pattern] if owner != name)
                yield from (Import(f"{PREFIX}{owner}", both, both) for owner in others)

    def told(self, name: str, subject: str) -> Iterator[Import]:
        """Yield what others tell of a pattern."""
        for teller, told in self._told:
            both = common(subject, told)
            if both is not None and teller != name:
                yield Import(f"{PREFIX}{teller}", both, both)


def _root(pattern: str) -> str:
    first, second, *_ = [*pattern.split("."), ">"]
    return first if second in ("*", ">") else f"{first}.{second}"


def common(one: str, other: str) -> str | None:
    """Return the pattern of all subjects that match both patterns, or None."""
    left, right = one.split("."), other.split(".")
    both: list[str] = []
    for at in range(max(len(left), len(right))):
        a, b = (tokens[at] if at < len(tokens) else None for tokens in (left, right))
        if ">" in (a, b):
            rest = right if a == ">" else left
            return ".".join([*both, *rest[at:]]) if len(rest) > at else None
        if a is None or b is None or ("*" not in (a, b) and a != b):
            return None
        both.append(b if a == "*" else a)
    return ".".join(both)


def _widest(calls: Iterable[Import]) -> Iterator[Import]:
    """Leave out what others cover: what an account imports of another must not overlap."""
    by_account: dict[str, dict[str, Import]] = {}
    for call in sorted(calls):
        by_account.setdefault(call.account, {})[call.to] = call
    for given in by_account.values():
        yield from (given[to] for to in widest(given))
